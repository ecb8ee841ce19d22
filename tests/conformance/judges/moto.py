"""moto's S3, in memory, as a process of its own: `python -m tests.conformance.judges.moto` serves until it is ended."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.conformance.judges.process import Server
from tests.conformance.judges.s3_address import S3Judge
from tests.conformance.stores import Judge, Kind


def start(folder: Path) -> Judge:
    argv = [sys.executable, "-m", "tests.conformance.judges.moto"]
    return S3Judge(Server(argv, folder / "log"), folder)


RACES = frozenset(
    [
        "test_of_concurrent_creators_exactly_one_succeeds_and_its_bytes_stay",
        "test_of_concurrent_stream_creators_exactly_one_succeeds",
    ]
)
GAPS = {
    "test_of_concurrent_creators_exactly_one_succeeds_and_its_bytes_stay": (
        "a conditional PutObject looks for the object first and makes it later: seldom, two creators succeed"
    ),
    "test_of_concurrent_stream_creators_exactly_one_succeeds": (
        "a conditional CompleteMultipartUpload looks for the object first and makes it later: several creators succeed"
    ),
    "test_parts_of_a_killed_process_are_collected": (
        "every upload is said to have been initiated in 2010, so that a young one is taken for an old one"
    ),
    "test_of_an_upload_that_was_interrupted_only_the_rest_is_sent": (
        "ListParts tells no part's checksum, so that every part is sent again"
    ),
}

KINDS = (Kind("moto", None, "private", "yunhe-moto", judge=start, gaps=GAPS, races=RACES),)


if __name__ == "__main__":
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False).start()
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
