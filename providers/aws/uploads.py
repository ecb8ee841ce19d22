"""Streams into S3: multipart uploads, whose parts carry crc32c and whose object carries that of all its bytes, and what
is left of those that never ended.

Sources: S3 API reference, CreateMultipartUpload (checksum type), UploadPart, CompleteMultipartUpload (If-None-Match),
ListMultipartUploads; user guide, multipart upload limits.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import Any
from urllib.parse import quote

import crc32c

from providers.aws.errors import code_of
from providers.aws.lean import LeanRequests
from providers.base.blocking import SdkCalls
from providers.base.errors import OutcomeUnknown, YunheError

PARTS_MAX = 10_000
COPY_BYTES_MAX = 5 << 30
"""What CopyObject, and one part of UploadPartCopy, copies."""


class S3Upload:
    """`PartUpload` of one stream."""

    def __init__(
        self, client: Any, lean: LeanRequests, calls: SdkCalls, bucket: str, key: str, *, if_absent: bool
    ) -> None:
        self._client = client
        self._lean = lean
        self._calls = calls
        self._bucket = bucket
        self._key = key
        self._if_absent = if_absent
        self._id = ""
        self._there: dict[int, tuple[int, str, str]] = {}
        """Of an upload that is gone on with: size, ETag and CRC-32C by the part's number."""
        self._parts: dict[int, dict[str, Any]] = {}
        self._size = self._crc = 0

    async def begin(self) -> None:
        call = partial(
            self._client.create_multipart_upload,
            Bucket=self._bucket,
            Key=self._key,
            ChecksumAlgorithm="CRC32C",
            ChecksumType="FULL_OBJECT",
        )
        # If only the answer was lost, a repeat leaves an upload without parts behind, for `collect_uploads`.
        self._id = (await self._calls.repeated(self._key, call))["UploadId"]

    async def part(self, number: int, data: bytes) -> None:
        # Parts are begun in order, so this is the checksum of all bytes up to here.
        self._crc = crc32c.crc32c(data, self._crc)
        self._size += len(data)
        query = f"partNumber={number}&uploadId={quote(self._id, safe='')}"
        call = partial(self._lean.put, self._key, data, {}, query, "UploadPart")
        answer = await self._calls.repeated(self._key, call)
        sent = base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
        self._parts[number] = {"PartNumber": number, "ETag": answer.headers["ETag"], "ChecksumCRC32C": sent}

    @property
    def name(self) -> str:
        return self._id

    async def resume(self, name: str) -> bool:
        """By ListParts: of the first thousand parts, which are more than a file of ours has."""

        def parts() -> list[dict[str, Any]] | None:
            try:
                found = self._client.list_parts(Bucket=self._bucket, Key=self._key, UploadId=name)
            except Exception as error:
                # Without the right to look at it, it is begun anew: `s3:ListMultipartUploadParts`.
                if code_of(error) not in ("NoSuchUpload", "AccessDenied", "NotImplemented", "InvalidArgument"):
                    raise
                return None
            return list(found.get("Parts", ()))

        rows = await self._calls.repeated(self._key, parts)
        if rows is None:
            return False
        self._id = name
        self._there = {row["PartNumber"]: (row["Size"], row["ETag"], row.get("ChecksumCRC32C", "")) for row in rows}
        return True

    def passed(self, number: int, data: bytes) -> bool:
        crc = base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
        size, etag, there = self._there.get(number, (0, "", ""))
        if (size, there) != (len(data), crc):
            return False
        self._crc = crc32c.crc32c(data, self._crc)
        self._size += size
        self._parts[number] = {"PartNumber": number, "ETag": etag, "ChecksumCRC32C": crc}
        return True

    async def copy_part(self, number: int, source: dict[str, str], etag: str, start: int, length: int) -> None:
        """A part that is a range of another object."""
        call = partial(
            self._client.upload_part_copy,
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._id,
            PartNumber=number,
            CopySource=source,
            CopySourceIfMatch=etag,
            CopySourceRange=f"bytes={start}-{start + length - 1}",
        )
        made = (await self._calls.repeated(self._key, call))["CopyPartResult"]
        row = {"PartNumber": number, "ETag": made["ETag"], "ChecksumCRC32C": made.get("ChecksumCRC32C")}
        self._parts[number] = {name: value for name, value in row.items() if value is not None}

    async def complete(self, count: int) -> None:
        condition = {"IfNoneMatch": "*"} if self._if_absent else {}
        whole = {}
        if self._size:
            whole = {
                "ChecksumCRC32C": base64.b64encode(self._crc.to_bytes(4, "big")).decode(),
                "ChecksumType": "FULL_OBJECT",
                "MpuObjectSize": self._size,
            }
        call = partial(
            self._client.complete_multipart_upload,
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._id,
            MultipartUpload={"Parts": [self._parts[number] for number in range(1, count + 1)]},
            **whole,
            **condition,
        )
        await self._calls.once(self._key, call, changes=True)

    async def abort(self) -> None:
        if self._id:
            await abort_upload(self._client, self._calls, self._bucket, self._key, self._id)

    async def complete_or_abort(self, count: int) -> None:
        """`complete`; a refusal leaves nothing behind, an answer that was lost leaves what it may need."""
        try:
            await self.complete(count)
        except OutcomeUnknown:
            raise
        except YunheError:
            await self.abort_quietly()
            raise

    async def abort_quietly(self) -> None:
        """`abort` after a failure, which is the one to report; `collect_uploads` removes what stays."""
        try:
            await self.abort()
        except YunheError:
            pass


async def abort_upload(client: Any, calls: SdkCalls, bucket: str, key: str, upload: str) -> bool:
    """Remove an upload; False when it is not there."""

    def abort() -> bool:
        try:
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        except Exception as error:
            if code_of(error) != "NoSuchUpload":
                raise
            return False
        return True

    return await calls.repeated(key, abort)


async def collect_uploads(client: Any, calls: SdkCalls, bucket: str, prefix: str, older_than_ms: int) -> int:
    """Remove the uploads under `prefix` that began more than `older_than_ms` ago; how many there were."""
    horizon_ms = calls.clock.wall_ms() - older_than_ms
    # A directory bucket lists whole folders only.
    listed = prefix[: prefix.rfind("/") + 1] if bucket.endswith("--x-s3") else prefix
    old: list[tuple[str, str]] = []
    marker: dict[str, str] = {}
    while True:
        call = partial(client.list_multipart_uploads, Bucket=bucket, Prefix=listed, **marker)
        page = await calls.repeated(prefix, call)
        old.extend(
            (row["Key"], row["UploadId"])
            for row in page.get("Uploads", ())
            if row["Key"].startswith(prefix) and row["Initiated"].timestamp() * 1000 <= horizon_ms
        )
        if not page.get("IsTruncated"):
            break
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}
        if not marker["UploadIdMarker"]:
            del marker["UploadIdMarker"]
    removed = [await abort_upload(client, calls, bucket, key, upload) for key, upload in old]
    return sum(removed)
