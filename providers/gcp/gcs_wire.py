"""Requests to Cloud Storage's JSON API that google-cloud-storage makes in another way than we need: puts in one request
whatever their size, upload sessions with a condition and a checksum, reads bound to one generation.

They go over the SDK's own session: its pool, its tokens.
"""

from __future__ import annotations

import base64
import json as json_of
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import google_crc32c

from providers.base.errors import Invalid, OutcomeUnknown
from providers.gcp.gcs_errors import HINT_BUCKET

ENDPOINT = "https://storage.googleapis.com"
BOUNDARY = "yunhe-7f1c9a02b6d84e35"
PIECE_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
"""Chunks of a resumable upload have multiples of it (guide: resumable uploads)."""

SESSION_OVER = (404, 410)

CONTENT_TYPE = "application/octet-stream"


class Wire:
    """One bucket's requests; all methods block, and raise the SDK's exceptions."""

    def __init__(self, session: Any, endpoint: str | None, bucket: str, timeout_s: tuple[float, float]) -> None:
        self._session = session
        self._root = endpoint or ENDPOINT
        self._bucket = quote(bucket, safe="")
        self._name = bucket
        self._timeout_s = timeout_s

    @staticmethod
    def encoded(digest: bytes) -> str:
        """As Google writes checksums."""
        return base64.b64encode(digest).decode()

    def put(self, key: str, data: bytes, *, if_absent: bool) -> None:
        """One multipart request: the SDK's uploads turn to resumable ones above 8 MiB, and join the body in memory, of
        64 MiB with the interpreter's lock held."""
        checksum = self.encoded(google_crc32c.value(data).to_bytes(4, "big"))
        body = _Related({"name": key, "crc32c": checksum, "contentType": CONTENT_TYPE}, data)
        query = {"uploadType": "multipart", **({"ifGenerationMatch": "0"} if if_absent else {})}
        self.upload("POST", query, data=body, headers={"Content-Type": f'multipart/related; boundary="{BOUNDARY}"'})

    def upload(self, method: str, query: Mapping[str, str], **more: Any) -> Any:
        """A request to the upload address of the bucket.

        Raises:
            Invalid: there is no such bucket.
        """
        url = f"{self._root}/upload/storage/v1/b/{self._bucket}/o"
        answer = self._session.request(method, url, params=query, timeout=self._timeout_s, **more)
        if answer.status_code == 404:
            raise Invalid(f"bucket {self._name} does not exist", hint=HINT_BUCKET)
        return _good(answer, range(200, 300))

    def session(
        self, method: str, url: str, *, headers: Mapping[str, str], good: Sequence[int], data: Any = None
    ) -> Any:
        """A request to an upload's session.

        Raises:
            OutcomeUnknown: the session is over, whether it made its object or not.
        """
        answer = self._session.request(
            method, url, data=data or b"", headers=headers, timeout=self._timeout_s, allow_redirects=False
        )
        if answer.status_code in SESSION_OVER and answer.status_code not in good:
            raise OutcomeUnknown("the upload's session is over")
        return _good(answer, good)

    def read(self, key: str, generation: str, start: int, length: int) -> bytes:
        """The bytes [start, start + length) of that generation of the object."""
        answer = self._session.get(
            f"{self._root}/storage/v1/b/{self._bucket}/o/{quote(key, safe='')}",
            params={"alt": "media", "generation": generation},
            headers={"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "gzip"},
            timeout=self._timeout_s,
        )
        data: bytes = _good(answer, (200, 206)).content
        return data


def _good(answer: Any, good: Sequence[int]) -> Any:
    from google.api_core.exceptions import from_http_response

    if answer.status_code not in good:
        raise from_http_response(answer)  # type: ignore[no-untyped-call]
    return answer


class _Related:
    """A `multipart/related` body of an object's metadata and its bytes, sent piece by piece and never joined."""

    def __init__(self, metadata: Mapping[str, str], data: bytes) -> None:
        head = f"--{BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json_of.dumps(metadata)}\r\n"
        self._head = f"{head}--{BOUNDARY}\r\nContent-Type: {CONTENT_TYPE}\r\n\r\n".encode()
        self._data = memoryview(data)
        self._tail = f"\r\n--{BOUNDARY}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + len(self._data) + len(self._tail)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        for at in range(0, len(self._data), PIECE_BYTES):
            yield self._data[at : at + PIECE_BYTES]
        yield self._tail
