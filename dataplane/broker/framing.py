"""From a socket's bytes to whole request frames.

    read into common memory ──► whole frames, handled where they are ──► the rest: ─┬─ a large frame: goes on there
                                                                                   ├─ handled later: stays there
                                                                                   └─ a few bytes: to the head

Most reads bring whole requests, and nothing of them is copied. Where too many connections hold common memory up
(`receive_memory.py`), one reads into memory of its own: small frames into its head, large ones from their first bytes
on into a buffer that grows with what has arrived.
"""

from __future__ import annotations

import asyncio
import struct
from abc import abstractmethod

from dataplane.broker import wire
from dataplane.broker.caller import Caller
from dataplane.broker.receive_memory import ReceiveMemory
from dataplane.broker.receiving import FrameMemory
from dataplane.broker.sasl import FRAME_BYTES_MAX as LOGIN_BYTES_MAX
from dataplane.broker.server_settings import ServerSettings
from dataplane.broker.wire_primitives import Malformed

PRODUCE_KEY = wire.PRODUCE.to_bytes(2, "big")
HEAD_BYTES = 16 << 10
"""A connection's own receive buffer: small frames are handled in it, large ones begin in it."""
FRAME_BYTES_AT_ONCE = 128 << 10
"""What a larger frame gets before anything of it has arrived; then FRAME_GROWTH times as much as has."""
FRAME_GROWTH = 16
KEPT_FROM_BYTES = 8 << 10
"""A frame from this size on has its bytes for good; of a smaller one, which shares them with its neighbours, a handler
keeps copies."""

_SIZE = struct.Struct(">i")


class FrameReceiver(asyncio.BufferedProtocol):
    """The receiving half of a connection; what a frame means, and when the next one has to wait, is its subclass's."""

    def __init__(self, memory: ReceiveMemory, frames: FrameMemory, settings: ServerSettings, caller: Caller) -> None:
        self._caller = caller
        self._memory = memory
        self._frames = frames
        self._frame_bytes_max = settings.frame_bytes_max
        self._other_frame_bytes_max = settings.other_frame_bytes_max
        self._head: memoryview | None = None
        self._have = 0
        # The read under way goes to common memory. No view of that is kept meanwhile: who reads nothing for an hour
        # would keep its chunk for an hour.
        self._into_common = False
        self._unhandled: memoryview | None = None  # in common memory
        self._frame: memoryview | None = None  # a large frame under receipt, without its length
        self._filled = self._frame_size = 0
        self._waits_for_room = False

    # ---- what the subclass does

    @abstractmethod
    def abort(self) -> None:
        """Cut the connection."""

    @abstractmethod
    def _handle(self, frame: memoryview, *, kept: bool) -> None:
        """Begin a request. `kept`: the frame's memory is not used again.

        Raises:
            Malformed: the connection ends.
        """

    @abstractmethod
    def _blocked(self) -> bool:
        """The next frame has to wait."""

    @abstractmethod
    def _waits_for_wal(self) -> bool:
        """The frame that was handled last is still needed as it is."""

    @abstractmethod
    def _throttle(self) -> None:
        """Stop or resume reading."""

    @abstractmethod
    def _refuse(self, error: Malformed) -> None:
        """End the connection for what it has sent."""

    # ---- the transport's side

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._frame is not None:
            return self._frame[self._filled :]
        self._into_common = False
        if not self._have:
            space = self._memory.space()
            self._into_common = space is not None
            if space is not None:
                return space
        if self._head is None:
            self._head = memoryview(bytearray(HEAD_BYTES))
        return self._head[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._frame is not None:
            self._filled += nbytes
            if self._filled < len(self._frame):
                return
            if self._filled < self._frame_size:
                self._grow()
                return
            self._frames.whole(self)
        elif self._into_common:
            self._into_common = False
            try:
                self._take_from_space(*self._memory.keep(nbytes))
            except Malformed as error:
                self._refuse(error)
                return
            self._throttle()
            return
        else:
            self._have += nbytes
        self._take_frames()

    def _forget_frames(self) -> None:
        """The connection is gone."""
        self._frames.release(self)
        self._memory.release(self)
        self._frame = self._unhandled = None
        self._have = 0

    def room_again(self) -> None:
        """There may be room for the frame under receipt."""
        if self._frame is not None:
            self._grow()

    # ---- frames

    def _take_frames(self) -> None:
        """Handle every whole frame that has arrived, as far as the bounds allow."""
        try:
            if self._frame is not None and self._filled == self._frame_size and not self._blocked():
                frame, self._frame = self._frame, None
                self._handle(frame, kept=True)
                if not self._waits_for_wal():
                    self._let_go()
            if self._unhandled is not None:
                self._take_unhandled(self._unhandled)
            if self._frame is None and self._have:
                self._take_from_head()
        except Malformed as error:
            self._refuse(error)
            return
        self._throttle()

    def _let_go(self) -> None:
        """Nothing that has arrived waits any more."""
        self._frames.release(self)
        self._memory.release(self)

    def _size_at(self, data: memoryview, at: int) -> int:
        size: int = _SIZE.unpack_from(data, at)[0]
        if not (8 <= size <= self._frame_bytes_max if self._caller.gate is None else 0 <= size <= LOGIN_BYTES_MAX):
            raise Malformed(f"a frame of {size} bytes")
        return size

    def _take_from_space(self, data: memoryview, position: int) -> None:
        """`data` was just read into common memory, up to `position`."""
        at, kept_to = self._handle_whole(data)
        end = len(data)
        if self._waits_for_wal():
            self._memory.hold(self)
        if at < end and not self._leave(data, at, position):
            return
        self._memory.give_back(position, end - kept_to)

    def _take_unhandled(self, data: memoryview) -> None:
        self._unhandled = None
        at, _ = self._handle_whole(data)
        left = at < len(data) and not self._leave(data, at, None)
        if not left and not self._waits_for_wal() and self._frame is None:
            self._memory.release(self)

    def _handle_whole(self, data: memoryview) -> tuple[int, int]:
        """Handle the whole frames that `data` begins with; where the first one begins that was not, and where the last
        one ends whose bytes are kept."""
        at = kept_to = 0
        end = len(data)
        while end - at >= 4 and not self._blocked():
            behind = at + 4 + self._size_at(data, at)
            if behind > end:
                break
            kept = behind - at >= KEPT_FROM_BYTES
            self._handle(data[at + 4 : behind], kept=kept)
            at = behind
            if kept:
                kept_to = at
        return at, kept_to

    def _leave(self, data: memoryview, at: int, position: int | None) -> bool:
        """Keep `data` from `at` on, which could not be handled yet; True when that is not in common memory. `position`:
        of its end there, if more could follow."""
        rest = len(data) - at
        size = self._size_at(data, at) if rest >= 4 else 0
        if 4 + size > HEAD_BYTES and rest >= 6 and not self._blocked() and 4 + size > rest:
            return not self._begin_large(data, at, size, position)
        if rest <= HEAD_BYTES:
            if self._head is None:
                self._head = memoryview(bytearray(HEAD_BYTES))
            self._head[:rest] = data[at:]
            self._have = rest
            return True
        self._unhandled = data[at:]
        self._memory.hold(self)
        return False

    def _begin_large(self, data: memoryview, at: int, size: int, position: int | None) -> bool:
        """A large frame has begun; True when it goes on in common memory."""
        if data[at + 4 : at + 6] != PRODUCE_KEY and size > self._other_frame_bytes_max:
            raise Malformed(f"a frame of {size} bytes that is no Produce")
        self._frames.begin(self)
        self._frame_size = size
        self._filled = len(data) - at - 4
        # What is announced costs nothing: memory comes with what has arrived, as in `_grow`.
        if size <= max(FRAME_BYTES_AT_ONCE, self._filled * FRAME_GROWTH):
            if size <= FRAME_BYTES_AT_ONCE or self._frames.take(self, size):
                return self._begin_whole(data, at, size, position)
            self._waits_for_room = True
        self._frame = memoryview(bytearray(max(self._filled, min(size, FRAME_BYTES_AT_ONCE))))
        self._frame[: self._filled] = data[at + 4 :]
        return False

    def _begin_whole(self, data: memoryview, at: int, size: int, position: int | None) -> bool:
        """As `_begin_large`, with memory for all of the frame."""
        rest = len(data) - at
        piece = self._memory.extend(position, rest, 4 + size - rest) if position is not None else None
        if piece is not None:
            self._frame = piece[4:]
            self._memory.hold(self)
            return True
        self._frame = self._memory.take(size, self)
        self._frame[: self._filled] = data[at + 4 :]
        return False

    def _take_from_head(self) -> None:
        head, have = self._head, self._have
        assert head is not None
        at = 0
        while have - at >= 4 and not self._blocked():
            size = self._size_at(head, at)
            end = at + 4 + size
            if end <= have:
                self._handle(head[at + 4 : end], kept=False)
                at = end
            elif size + 4 > HEAD_BYTES:
                if have - at < 6:
                    break  # the api key says how large it may be
                self._begin_large(head[:have], at, size, None)
                at = have
                break
            else:
                break
        if at:
            self._have = have - at
            head[: self._have] = bytes(head[at:have])

    def _grow(self) -> None:
        """More memory for the frame under receipt; if there is none, nothing is read until there is."""
        frame = self._frame
        if frame is None:
            return
        size = min(self._frame_size, len(frame) * FRAME_GROWTH)
        self._waits_for_room = not self._frames.take(self, size)
        if not self._waits_for_room:
            self._frame = memoryview(bytearray(size))
            self._frame[: len(frame)] = frame
        self._throttle()
