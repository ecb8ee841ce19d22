"""Requests to one bucket's objects that google-cloud-storage makes in another way than we need: puts in one request
whatever their size, upload sessions with a condition and a checksum, reads bound to one generation; and with as little
work a request as can be, since a WAL makes hundreds a second.

Tokens come from google-auth; only the request is put together here, over urllib3's connections. What is rare (listings,
copies, deletes, buckets) goes through the SDK's client.
Source: JSON API reference, Objects: insert, get; guide: resumable uploads.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import google_crc32c

from providers.base.blocking import StoreSettings, read_all
from providers.base.errors import Corrupt, Invalid, OutcomeUnknown, Unavailable
from providers.gcp.account import Signer
from providers.gcp.gcs_errors import HINT_BUCKET

ENDPOINT = "https://storage.googleapis.com"
BOUNDARY = "yunhe-7f1c9a02b6d84e35"
PIECE_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
"""Chunks of a resumable upload have multiples of it (guide: resumable uploads)."""

SESSION_OVER = (404, 410)
CONTENT_TYPE = "application/octet-stream"
FIELDS = "name,size,updated,generation,crc32c"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is read; header names are case-insensitive."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Wire:
    """One bucket's requests. Thread-safe; all methods block, and raise the SDK's exceptions or urllib3's."""

    def __init__(self, sign: Signer, endpoint: str | None, bucket: str, settings: StoreSettings) -> None:
        self._sign = sign
        self._root = (endpoint or ENDPOINT).rstrip("/")
        self._bucket = quote(bucket, safe="")
        self._name = bucket
        self._pool = _connections(self._root, settings, own_endpoint=endpoint is not None)

    @staticmethod
    def encoded(digest: bytes) -> str:
        """As Google writes checksums."""
        return base64.b64encode(digest).decode()

    def put(self, key: str, data: bytes, *, if_absent: bool) -> None:
        """One multipart request with the bytes' crc32c. The SDK's uploads turn to resumable ones above 8 MiB, and join
        the body in memory, of 64 MiB with the interpreter's lock held."""
        checksum = self.encoded(google_crc32c.value(data).to_bytes(4, "big"))
        body = _Related({"name": key, "crc32c": checksum, "contentType": CONTENT_TYPE}, data)
        query = {"uploadType": "multipart", **({"ifGenerationMatch": "0"} if if_absent else {})}
        headers = {"Content-Type": f'multipart/related; boundary="{BOUNDARY}"', "Content-Length": str(len(body))}
        self.upload(query, b"".join(body) if len(data) <= PIECE_BYTES else body, headers)

    def upload(self, query: Mapping[str, str], body: Any, headers: Mapping[str, str]) -> Answer:
        """A request to the upload address of the bucket.

        Raises:
            Invalid: there is no such bucket.
        """
        url = f"{self._root}/upload/storage/v1/b/{self._bucket}/o?{urlencode(query)}"
        answer = self._send("POST", url, headers, body, good=(200, 201, 404))
        if answer.status_code == 404:
            raise Invalid(f"bucket {self._name} does not exist", hint=HINT_BUCKET)
        return answer

    def session(
        self, method: str, url: str, *, headers: Mapping[str, str], good: Container[int], data: Any = b""
    ) -> Answer:
        """A request to an upload's session.

        Raises:
            OutcomeUnknown: the session is over, whether it made its object or not.
        """
        try:
            return self._send(method, url, {"Content-Length": str(len(data)), **headers}, data, good=good)
        except Exception as error:
            if getattr(error, "code", 0) in SESSION_OVER:
                raise OutcomeUnknown("the upload's session is over") from error
            raise

    def get(self, key: str, start: int, length: int | None) -> bytes:
        """The bytes [start, start + length), or all from `start`. Those of a whole object are compared with its
        crc32c.

        Raises:
            Corrupt: they do not match.
        """
        if start == 0 and length is None:
            answer = self._media(key, {}, {}, (200,))
            for stated in answer.headers.get("X-Goog-Hash", "").replace(" ", "").split(","):
                if stated.startswith("crc32c=") and stated[7:] != self.encoded(
                    google_crc32c.value(answer.content).to_bytes(4, "big")
                ):
                    raise Corrupt(f"{key}: the bytes that came do not match their checksum", key=key)
            return answer.content
        span = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
        answer = self._media(key, {}, {"Range": span}, (200, 206, 416))
        if answer.status_code == 416:
            return b""
        if length is not None and len(answer.content) > length:
            raise Unavailable(f"{key}: {len(answer.content)} bytes came where at most {length} were asked for")
        return answer.content

    def read(self, key: str, generation: str, start: int, length: int) -> bytes:
        """The bytes [start, start + length) of that generation of the object."""
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        return self._media(key, {"generation": generation}, headers, (200, 206)).content

    def _media(self, key: str, query: Mapping[str, str], headers: Mapping[str, str], good: Container[int]) -> Answer:
        url = f"{self._object(key)}?{urlencode({'alt': 'media', **query})}"
        # As it is stored: an object with a content encoding would come decoded otherwise, and fail its checksum.
        return self._send("GET", url, {"Accept-Encoding": "gzip", **headers}, good=good)

    def metadata(self, key: str) -> Mapping[str, str]:
        """FIELDS of the object."""
        url = f"{self._object(key)}?{urlencode({'fields': FIELDS})}"
        return dict(self._send("GET", url, {}, good=(200,)).json())

    def _object(self, key: str) -> str:
        return f"{self._root}/storage/v1/b/{self._bucket}/o/{quote(key, safe='')}"

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Any = None, *, good: Container[int]
    ) -> Answer:
        read = self._exchange(method, url, headers, body, fresh=False)
        if read.status_code == 401:
            # A token may be refused before its time is over; what was refused was not done.
            read = self._exchange(method, url, headers, body, fresh=True)
        if read.status_code not in good:
            raise failure_of(read, method, url)
        return read

    def _exchange(self, method: str, url: str, headers: Mapping[str, str], body: Any, *, fresh: bool) -> Answer:
        signed = dict(headers)
        self._sign(method, url, signed, fresh=fresh)
        answer = self._pool.urlopen(
            method,
            url[len(self._root) :] if url.startswith(self._root) else url,
            body=body,
            headers=signed,
            preload_content=False,
            decode_content=False,
            retries=False,
            redirect=False,
            assert_same_host=False,
        )
        try:
            data = read_all(answer.read)
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
        return Answer(answer.status, answer.headers, data)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()


def failure_of(answer: Any, method: str, url: str) -> Exception:
    """The SDK's exception for a refusal, from anything with `status_code` and `json()`."""
    from google.api_core.exceptions import format_http_response_error

    try:
        payload = answer.json()
    except ValueError:
        payload = None
    if not isinstance(payload, dict) or not isinstance(payload.get("error"), dict):
        # Media and upload addresses may answer with a plain sentence.
        text = getattr(answer, "text", "") or bytes(getattr(answer, "content", b"")).decode(errors="replace")
        payload = {"error": {"message": text[:1000] or "no words"}}
    shown = SimpleNamespace(status_code=answer.status_code, headers=answer.headers, json=lambda: payload)
    made: Exception = format_http_response_error(shown, method, url, payload)
    return made


def _connections(root: str, settings: StoreSettings, *, own_endpoint: bool) -> Any:
    """Kept connections to the API's host: through the environment's proxy, but for a given endpoint."""
    from urllib.request import getproxies, proxy_bypass

    import certifi
    import urllib3

    where = urlsplit(root)
    timeout = urllib3.Timeout(connect=settings.connect_timeout_ms / 1000, read=settings.read_timeout_ms / 1000)
    options: dict[str, Any] = {"maxsize": settings.threads, "block": False, "retries": False, "timeout": timeout}
    if where.scheme == "https":
        options["ca_certs"] = certifi.where()
    proxy = None if own_endpoint else getproxies().get(where.scheme)
    if proxy and not proxy_bypass(where.hostname or ""):
        manager: Any = urllib3.ProxyManager(proxy, **options)
    else:
        manager = urllib3.PoolManager(**options)
    return manager.connection_from_url(root)


class _Related:
    """A `multipart/related` body of an object's metadata and its bytes, a large one sent piece by piece and never
    joined."""

    def __init__(self, metadata: Mapping[str, str], data: bytes) -> None:
        head = f"--{BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(metadata)}\r\n"
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
