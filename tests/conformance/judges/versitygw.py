"""versitygw, an S3 gateway over a folder: the strictest of the S3 emulators."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.judges.process import Server, installed
from tests.conformance.judges.s3_address import S3Judge
from tests.conformance.stores import CREDENTIALS, Judge, Kind


def start(folder: Path) -> Judge:
    program = installed("versitygw")
    root = folder / "root"
    root.mkdir()
    secrets = {
        "ROOT_ACCESS_KEY_ID": CREDENTIALS["s3"]["access_key"],
        "ROOT_SECRET_ACCESS_KEY": CREDENTIALS["s3"]["secret_key"],
    }
    argv = [program, "--port", "127.0.0.1:0", "--keep-alive", "--quiet", "posix", str(root)]
    return S3Judge(Server(argv, folder / "log", secrets), folder)


GAPS = {
    "test_keys_with_unusual_characters_are_kept_apart": (
        "keys are paths of a file system: where d/e is an object, d cannot be one"
    ),
}

KINDS = (Kind("versitygw", None, "private", "yunhe-versitygw", judge=start, gaps=GAPS),)
