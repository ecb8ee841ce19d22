"""A resumable upload of Cloud Storage: a session to which an object's bytes are sent in order, and which makes the
object with its last request.

Nothing is visible before that, and `ifGenerationMatch` holds then, whatever came between (guide: resumable uploads). A
session that is not ended is dropped by Google after a week; it cannot be listed, so nobody else can drop it sooner.
Every chunk but the last has a multiple of 256 KiB. One piece is held back, so that whatever is sent before `complete`
cannot end the upload.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import google_crc32c

from providers.base.blocking import SdkCalls
from providers.base.errors import OutcomeUnknown, Unavailable, invariant
from providers.gcp.gcs_wire import CHUNK_BYTES, CONTENT_TYPE, SESSION_OVER, Wire

CANCELLED = 499
"""What Google answers to the cancelling of a session."""


class ResumableUpload:
    """See `providers.base.streams.PartUpload`; parts come one after the other."""

    def __init__(self, wire: Wire, calls: SdkCalls, key: str, *, if_absent: bool) -> None:
        self._wire = wire
        self._calls = calls
        self._key = key
        self._if_absent = if_absent
        self._session = ""
        self._held = b""
        self._sent = 0
        self._persisted: int | None = 0
        """Bytes that Google has; None while that is to be asked."""
        self._crc32c: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    async def begin(self) -> None:
        # A session that nobody hears of is as good as none: beginning may be repeated.
        self._session = await self._calls.repeated(self._key, self._begin)

    def _begin(self) -> str:
        query = {"uploadType": "resumable", "name": self._key}
        if self._if_absent:
            query["ifGenerationMatch"] = "0"
        headers = {"Content-Type": "application/json; charset=UTF-8", "X-Upload-Content-Type": CONTENT_TYPE}
        answer = self._wire.upload(query, b"{}", headers)
        return str(answer.headers["Location"])

    async def part(self, number: int, data: bytes) -> None:
        if self._held:
            await self._calls.repeated(self._key, partial(self._send, self._held), changes=True)
            self._sent += len(self._held)
        self._held = data
        self._crc32c.update(data)

    def _send(self, data: bytes) -> None:
        """Send all of `data` that is not there yet; may be called again after a failure."""
        invariant(len(data) % CHUNK_BYTES == 0, "a chunk has a multiple of 256 KiB", size=len(data))
        end = self._sent + len(data)
        while (there := self._there()) < end:
            rest = memoryview(data)[there - self._sent :]
            self._persisted = None
            headers = {"Content-Range": f"bytes {there}-{end - 1}/*"}
            answer = self._wire.session("PUT", self._session, data=rest, headers=headers, good=(308,))
            self._persisted = _persisted(answer)
            if self._persisted <= there:
                raise Unavailable(f"{self._key}: the upload does not get on")

    def _there(self) -> int:
        if self._persisted is None:
            headers = {"Content-Range": "bytes */*"}
            self._persisted = _persisted(self._wire.session("PUT", self._session, headers=headers, good=(308,)))
        return self._persisted

    async def complete(self, count: int) -> None:
        finish = partial(self._calls.once, self._key, self._finish, changes=True)
        if self._if_absent:
            await finish()
            return
        try:
            await finish()
        except OutcomeUnknown:
            # The session says what became of it, and ends only once: asking again does no harm.
            await self._calls.repeated(self._key, self._finish_again, changes=True)

    def _finish(self) -> None:
        total = self._sent + len(self._held)
        headers = {"Content-Range": f"bytes {self._sent}-{total - 1}/{total}", "X-Goog-Hash": self._hash()}
        self._wire.session("PUT", self._session, data=self._held, headers=headers, good=(200, 201))

    def _finish_again(self) -> None:
        answer = self._wire.session("PUT", self._session, headers={"Content-Range": "bytes */*"}, good=(200, 201, 308))
        if answer.status_code in (200, 201):
            return
        there = _persisted(answer)
        if there == self._sent:
            self._finish()
            return
        total = self._sent + len(self._held)
        rest = memoryview(self._held)[there - self._sent :]
        span = f"{there}-{total - 1}" if rest else "*"
        headers = {"Content-Range": f"bytes {span}/{total}", "X-Goog-Hash": self._hash()}
        self._wire.session("PUT", self._session, data=rest, headers=headers, good=(200, 201))

    def _hash(self) -> str:
        return f"crc32c={self._wire.encoded(self._crc32c.digest())}"

    async def abort(self) -> None:
        if self._session:
            await self._calls.repeated(self._key, self._cancel)

    def _cancel(self) -> None:
        self._wire.session("DELETE", self._session, headers={}, good=(204, CANCELLED, *SESSION_OVER))


def _persisted(answer: Any) -> int:
    found = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("Range", ""))
    return int(found[1]) + 1 if found else 0
