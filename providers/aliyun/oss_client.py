"""One OSS bucket through alibabacloud-oss-v2, call by call, blocking: what `objects.py` runs in threads.

The calls that are many (put, get, head, append) are handed to the SDK as operations: signed, addressed and their errors
read by it, without the models that it builds around each request. The others use its models. Its own retries are off.

Checksums: a body of up to `MD5_BYTES_MAX` carries Content-MD5, which OSS compares before it stores anything. MD5 is
slower than the network for larger ones: of them, and of all others too, the CRC-64 that OSS answers is compared here
(`x-oss-hash-crc64ecma`, computed by OSS while it receives); a difference is `Corrupt`, never a success.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from fastcrc import crc64

from providers.aliyun.oss_errors import code_of
from providers.aliyun.oss_http import PooledHttp
from providers.base.blocking import StoreSettings
from providers.base.buckets import not_empty
from providers.base.errors import Corrupt, Invalid, Unavailable
from providers.base.objects import ObjectInfo
from providers.base.registry import StoreAddress

MD5_BYTES_MAX = 1 << 20

VERSIONED_HINT = "use a bucket that was never versioned"

_STORED_CRC = "x-oss-hash-crc64ecma"


class OssBucket:
    """See the module. Methods raise the SDK's exceptions, and ours where the SDK has none."""

    def __init__(self, client: Any, sdk: Any, name: str, http: PooledHttp) -> None:
        self._client = client
        self._sdk = sdk
        self._http = http
        self.name = name

    # ---- the bucket

    def create(self, redundancy: str | None) -> None:
        """Create it; one's own bucket of that name is checked instead.

        Raises:
            Invalid: it is or was versioned.
        """
        try:
            found = self._client.get_bucket_info(self._sdk.GetBucketInfoRequest(bucket=self.name))
        except Exception as error:
            if code_of(error) != "NoSuchBucket":
                raise
            configuration = self._sdk.CreateBucketConfiguration(
                storage_class="Standard", data_redundancy_type=redundancy
            )
            self._client.put_bucket(
                self._sdk.PutBucketRequest(bucket=self.name, create_bucket_configuration=configuration)
            )
            return
        if getattr(found.bucket_info, "versioning", None):
            raise versioned(self.name)

    def exists(self) -> bool:
        try:
            self._client.get_bucket_info(self._sdk.GetBucketInfoRequest(bucket=self.name))
        except Exception as error:
            if code_of(error) != "NoSuchBucket":
                raise
            return False
        return True

    def remove(self) -> None:
        """Delete it; one that is gone is passed over.

        Raises:
            Conflict: it holds objects, or parts of unfinished uploads.
        """
        try:
            self._client.delete_bucket(self._sdk.DeleteBucketRequest(bucket=self.name))
        except Exception as error:
            if code_of(error) == "BucketNotEmpty":
                raise not_empty(self.name) from error
            if code_of(error) != "NoSuchBucket":
                raise

    # ---- objects

    def put(self, key: str, data: bytes, *, if_absent: bool) -> None:
        headers = {"x-oss-forbid-overwrite": "true"} if if_absent else {}
        answer = self._send("PutObject", "PUT", key, headers=headers, data=data)
        self._check_unversioned(answer)
        _check_crc(key, answer, crc64.xz(data))

    def append(self, key: str, offset: int, data: bytes, before: int | None) -> int | None:
        """The object's CRC-64 afterwards, by OSS; `before`: what it was before, where that is known."""
        parameters = {"append": "", "position": str(offset)}
        answer = self._send("AppendObject", "POST", key, parameters=parameters, data=data, md5=before is None)
        self._check_unversioned(answer)
        if before is not None:
            _check_crc(key, answer, crc64.xz(data, before))
        stored = answer.headers.get(_STORED_CRC)
        return None if stored is None else int(stored)

    def get(self, key: str, start: int, length: int | None, etag: str | None = None) -> bytes:
        whole = start == 0 and length is None
        headers = {"If-Match": etag} if etag else {}
        if not whole:
            headers["Range"] = f"bytes={start}-" + ("" if length is None else str(start + length - 1))
            # Without this OSS answers a range that reaches past the end with the whole object (OSS, GetObject).
            headers["x-oss-range-behavior"] = "standard"
        answer = self._send("GetObject", "GET", key, headers=headers)
        data: bytes = answer.http_response.content
        announced = int(answer.headers.get("Content-Length", -1))
        if len(data) != announced or (length is not None and len(data) > length):
            raise Unavailable(f"{key}: {len(data)} bytes came where {announced} were announced")
        if whole:
            _check_crc(key, answer, crc64.xz(data))
        return data

    def head(self, key: str) -> tuple[ObjectInfo, int | None]:
        """What is known of it, and its CRC-64."""
        found = self._send("HeadObject", "HEAD", key).headers
        crc = found.get(_STORED_CRC)
        modified_ms = int(parsedate_to_datetime(found["Last-Modified"]).timestamp() * 1000)
        info = ObjectInfo(key, int(found["Content-Length"]), modified_ms, found.get("ETag", ""))
        return info, int(crc) if crc else None

    def list(self, prefix: str, start_after: str, limit: int) -> tuple[Sequence[ObjectInfo], bool]:
        """A page, and whether there is more."""
        answer = self._client.list_objects_v2(
            self._sdk.ListObjectsV2Request(
                bucket=self.name, prefix=prefix, start_after=start_after, max_keys=limit, encoding_type="url"
            )
        )
        rows = [
            ObjectInfo(row.key, int(row.size), int(row.last_modified.timestamp() * 1000), row.etag or "")
            for row in answer.contents or []
        ]
        return rows, bool(answer.is_truncated)

    def delete_one(self, key: str) -> None:
        self._send("DeleteObject", "DELETE", key)

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Those that OSS did not report as deleted; absent ones are reported."""
        request = self._sdk.DeleteMultipleObjectsRequest(
            bucket=self.name, objects=[self._sdk.DeleteObject(key=key) for key in keys], quiet=False
        )
        answer = self._client.delete_multiple_objects(request)
        gone = {row.key for row in answer.deleted_objects or []}
        return [key for key in keys if key not in gone]

    def copy(self, source: str, key: str, *, if_absent: bool) -> None:
        headers = {"x-oss-copy-source": self._source(source)}
        if if_absent:
            headers["x-oss-forbid-overwrite"] = "true"
        self._check_unversioned(self._send("CopyObject", "PUT", key, headers=headers))

    def _source(self, key: str) -> str:
        return f"/{self.name}/{quote(key, safe='/')}"

    # ---- uploads in parts

    def begin(self, key: str) -> str:
        request = self._sdk.InitiateMultipartUploadRequest(
            bucket=self.name, key=key, content_type="application/octet-stream"
        )
        upload: str = self._client.initiate_multipart_upload(request).upload_id
        return upload

    def part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """The part's ETag."""
        parameters = {"partNumber": str(number), "uploadId": upload}
        answer = self._send("UploadPart", "PUT", key, parameters=parameters, data=data)
        _check_crc(f"part {number} of {key}", answer, crc64.xz(data))
        return str(answer.headers.get("ETag", ""))

    def parts(self, key: str, upload: str) -> dict[int, tuple[int, str, str]] | None:
        """Size, ETag and CRC-64 of the upload's first thousand parts, by number; None: it is gone, or may not be looked
        at (`oss:ListParts`)."""
        try:
            answer = self._client.list_parts(
                self._sdk.ListPartsRequest(bucket=self.name, key=key, upload_id=upload, max_parts=1000)
            )
        except Exception as error:
            if code_of(error) not in ("NoSuchUpload", "AccessDenied"):
                raise
            return None
        return {row.part_number: (row.size, row.etag, str(row.hash_crc64)) for row in answer.parts or []}

    def part_copy(self, key: str, upload: str, number: int, source: ObjectInfo, start: int, length: int) -> str:
        request = self._sdk.UploadPartCopyRequest(
            bucket=self.name,
            key=key,
            part_number=number,
            upload_id=upload,
            source_key=source.key,
            source_bucket=self.name,
            source_range=f"bytes={start}-{start + length - 1}",
            if_match=source.etag,
        )
        return str(self._client.upload_part_copy(request).etag)

    def complete(self, key: str, upload: str, etags: Sequence[str], crc: int | None, *, if_absent: bool) -> None:
        parts = [self._sdk.UploadPart(part_number=at + 1, etag=etag) for at, etag in enumerate(etags)]
        request = self._sdk.CompleteMultipartUploadRequest(
            bucket=self.name,
            key=key,
            upload_id=upload,
            complete_multipart_upload=self._sdk.CompleteMultipartUpload(parts=parts),
            forbid_overwrite=True if if_absent else None,
        )
        answer = self._client.complete_multipart_upload(request)
        self._check_unversioned(answer)
        if crc is not None and answer.hash_crc64 and int(answer.hash_crc64) != crc:
            raise Corrupt(f"{key} was put together with another checksum than its parts have")

    def abort(self, key: str, upload: str) -> None:
        """Passed over when it is gone."""
        try:
            self._client.abort_multipart_upload(
                self._sdk.AbortMultipartUploadRequest(bucket=self.name, key=key, upload_id=upload)
            )
        except Exception as error:
            if code_of(error) != "NoSuchUpload":
                raise

    def uploads(self, prefix: str, marker: tuple[str, str]) -> tuple[Sequence[tuple[str, str, int]], tuple[str, str]]:
        """A page of (key, upload, began ms), and the marker of the next, ("", "") at the end."""
        answer = self._client.list_multipart_uploads(
            self._sdk.ListMultipartUploadsRequest(
                bucket=self.name,
                prefix=prefix,
                key_marker=marker[0],
                upload_id_marker=marker[1],
                max_uploads=1000,
                encoding_type="url",
            )
        )
        rows = [(row.key, row.upload_id, int(row.initiated.timestamp() * 1000)) for row in answer.uploads or []]
        more = (answer.next_key_marker or "", answer.next_upload_id_marker or "") if answer.is_truncated else ("", "")
        return rows, more

    def close(self) -> None:
        self._http.close()

    # ---- one request

    def _send(
        self,
        name: str,
        method: str,
        key: str,
        *,
        headers: dict[str, str] | None = None,
        parameters: dict[str, str] | None = None,
        data: bytes | None = None,
        md5: bool = False,
    ) -> Any:
        """`md5`: send it however long the body is."""
        headers = dict(headers or {})
        if data is not None:
            headers["Content-Type"] = "application/octet-stream"
            headers["Content-Length"] = str(len(data))
            if md5 or len(data) <= MD5_BYTES_MAX:
                digest = hashlib.md5(data, usedforsecurity=False).digest()
                headers["Content-MD5"] = base64.b64encode(digest).decode()
        operation = self._sdk.OperationInput(
            op_name=name, method=method, headers=headers, parameters=parameters, body=data, bucket=self.name, key=key
        )
        return self._client.invoke_operation(operation)

    def _check_unversioned(self, answer: Any) -> None:
        headers = answer.headers
        if headers.get("x-oss-version-id") is not None:
            # forbid-overwrite is ignored once versioning was enabled, suspended or not (OSS, PutObject).
            raise versioned(self.name)


def versioned(bucket: str) -> Invalid:
    """Of a bucket in which create-if-absent does not hold."""
    return Invalid(f"bucket {bucket} is or was versioned, so create-if-absent does not hold in it", hint=VERSIONED_HINT)


def _check_crc(subject: str, answer: Any, expected: int) -> None:
    stored = answer.headers.get(_STORED_CRC)
    if stored is not None and int(stored) != expected:
        raise Corrupt(f"{subject}: OSS and this process have different checksums of the same bytes")


def open_bucket(address: StoreAddress, settings: StoreSettings, secrets: Mapping[str, Any]) -> OssBucket:
    """
    Raises:
        Invalid: malformed endpoint.
    """
    import alibabacloud_oss_v2 as sdk

    config = sdk.config.load_default()
    config.region = address.region
    config.retry_max_attempts = 1
    config.credentials_provider = _credentials(sdk, secrets)
    http = PooledHttp(settings, proxies=address.endpoint is None)
    config.http_client = http
    if address.endpoint is not None:
        parts = urlsplit(address.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Invalid(f"endpoint {address.endpoint!r} is not http(s)://host:port", field="endpoint")
        config.endpoint = f"{parts.scheme}://{parts.netloc}"
        config.use_path_style = not (parts.hostname or "").endswith(".aliyuncs.com")
    return OssBucket(sdk.Client(config), sdk, address.bucket, http)


def _credentials(sdk: Any, secrets: Mapping[str, Any]) -> Any:
    """From the file; else OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET; else the default chain of
    alibabacloud-credentials, whose instance-role credentials renew themselves."""
    if secrets:
        return sdk.credentials.StaticCredentialsProvider(
            secrets["access_key"], secrets["secret_key"], secrets.get("security_token")
        )
    try:
        return sdk.credentials.EnvironmentVariableCredentialsProvider()
    except sdk.exceptions.CredentialsBaseError:
        pass

    class DefaultChain(sdk.credentials.CredentialsProvider):  # type: ignore[misc]
        def __init__(self) -> None:
            from alibabacloud_credentials.client import Client

            self._chain = Client()

        def get_credentials(self) -> Any:
            found = self._chain.get_credential()
            return sdk.credentials.Credentials(found.access_key_id, found.access_key_secret, found.security_token)

    return DefaultChain()
