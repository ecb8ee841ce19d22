"""The lab's S3 by a client in another language: the test client that versitygw brings, over Amazon's SDK for Go and
requests by hand (chunked bodies with signatures and trailers, which botocore does not send over plain HTTP).

Runs where versitygw is among the judges. Its tests make a bucket and remove it again; removing is not emulated, so each
gets a server of its own, and that one complaint is passed over.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conformance.judges.process import installed
from tests.conformance.stores import CREDENTIALS, NotInstallable, start_object_server

PASSES = (
    *("Authentication_unsigned_required_header", "AbortMultipartUpload_success", "GetObject_large_object"),
    *(
        "CompleteMultipartUpload_small_upload_size",
        "CopyObject_should_copy_the_existing_checksum",
        "CopyObject_success",
    ),
    *("DeleteObject_success", "HeadObject_conditional_reads", "ListObjects_marker_not_from_obj_list"),
    *("ListParts_truncated", "PresignedAuth_Put_GetObject_with_UTF8_chars", "PresignedAuth_UploadPart"),
    *("PutObject_special_chars", "PutObject_with_metadata", "UploadPartCopy_success", "UploadPart_success"),
    *("UploadPartCopy_by_range_success", "UnsignedStreamingPayloadTrailer_sdk_algo_and_trailer_mismatch"),
)
"""Names of its tests. Others ask for what the lab leaves out (ACLs, tags, locks, crc64nvme) or for wordings."""

NOT_REMOVED = ("failed to delete the bucket", "S3: DeleteBucket")

wanted = {name.strip() for name in os.environ.get("YUNHE_JUDGES", "").split(",")}


@pytest.mark.skipif(not wanted & {"all", "versitygw"}, reason="versitygw is not among YUNHE_JUDGES")
@pytest.mark.parametrize("name", PASSES)
def test_the_lab_passes_a_test_of_amazons_go_sdk(name: str, tmp_path: Path) -> None:
    try:
        program = installed("versitygw")
    except NotInstallable as why:
        pytest.skip(f"versitygw: {why}")
    keys = CREDENTIALS["s3"]
    # Its SDK does not take a bundle of certificates from the environment; there is no TLS here.
    environment = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
    with start_object_server("s3", tmp_path) as server:
        argv = [program, "test", "-a", keys["access_key"], "-s", keys["secret_key"], "-e", server.endpoint, name]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)
    said = re.sub(r"\x1b\[\d+m", "", done.stdout + done.stderr).splitlines()
    assert any(line.startswith("RUN") and name in line for line in said), said
    complaints = [line for line in said if "FAIL" in line or "error" in line]
    assert [line for line in complaints if not any(known in line for known in NOT_REMOVED)] == []
