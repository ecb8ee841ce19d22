"""libiscsi (Debian: libiscsi7) by ctypes: one session to one target, driven by the event loop, without a thread.

    command ─► iscsi_scsi_command_async ─► iscsi_service(POLLOUT) ─► socket
    future  ◄─ callback                 ◄─ iscsi_service(POLLIN)  ◄─

A session that is lost stays lost: libiscsi's own reconnect would send queued writes again, whenever it likes, and a
write that nobody waits for any more must not land. Sources: iscsi/iscsi.h and iscsi/scsi-lowlevel.h of 1.19.
"""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import select
import socket
from dataclasses import dataclass
from functools import cache
from typing import Any

from providers.base.errors import Invalid, OutcomeUnknown, Unavailable
from providers.base.scsi import Sense, parse_sense

_LIBRARIES = ("libiscsi.so.7", "libiscsi.so.8", "libiscsi.so.9", "libiscsi.so.10", "libiscsi.so.11")
_SESSION_NORMAL = 2
_XFER_NONE, _XFER_READ, _XFER_WRITE = 0, 1, 2
_CHECK_CONDITION = 2
_STATUS_MAX = 0xFF
"""Above it, a callback's status is libiscsi's own: cancelled, error, timed out."""

_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _ScsiData(ctypes.Structure):
    _fields_ = (("size", ctypes.c_int), ("data", ctypes.c_void_p))


class _Task(ctypes.Structure):
    """The head of struct scsi_task, as far as it is read here. `sense` is skipped: its raw bytes are in `datain`."""

    _fields_ = (
        ("status", ctypes.c_int),
        ("cdb_size", ctypes.c_int),
        ("xfer_dir", ctypes.c_int),
        ("expxferlen", ctypes.c_int),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", ctypes.c_int),
        ("residual", ctypes.c_size_t),
        ("sense", ctypes.c_int * 4),
        ("datain", _ScsiData),
    )


class _OutData(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Ended:
    """A command's end: SCSI status, sense, and the reply (empty where it went to the caller's own memory)."""

    status: int
    sense: Sense
    data: bytes


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Bounds of a session."""

    connect_timeout_ms: int = 5_000
    """Milliseconds for TCP, login and the first TEST UNIT READY."""
    command_timeout_ms: int = 5_000
    """Milliseconds until a command without an answer fails; it may still be carried out. As the lab's client."""
    commands_in_flight_max: int = 64
    """Commands under way; more are refused. A WAL has a few."""


@cache
def _library() -> Any:
    """Raises:
    Invalid: libiscsi is not installed.
    """
    found = ctypes.util.find_library("iscsi")
    for name in (*_LIBRARIES, *([found] if found else [])):
        try:
            library: Any = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        raise Invalid("libiscsi is not installed on this host", hint="install it (Debian: apt install libiscsi7)")
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for function, result, arguments in (
        ("iscsi_create_context", pointer, [text]),
        ("iscsi_destroy_context", number, [pointer]),
        ("iscsi_set_targetname", number, [pointer, text]),
        ("iscsi_set_session_type", number, [pointer, number]),
        ("iscsi_set_initiator_username_pwd", number, [pointer, text, text]),
        ("iscsi_set_noautoreconnect", None, [pointer, number]),
        ("iscsi_full_connect_async", number, [pointer, text, number, _Callback, pointer]),
        ("iscsi_get_fd", number, [pointer]),
        ("iscsi_which_events", number, [pointer]),
        ("iscsi_service", number, [pointer, number]),
        ("iscsi_get_error", text, [pointer]),
        ("iscsi_logout_async", number, [pointer, _Callback, pointer]),
        ("iscsi_scsi_command_async", number, [pointer, number, pointer, _Callback, pointer, pointer]),
        ("scsi_create_task", pointer, [number, text, number, number]),
        ("scsi_free_scsi_task", None, [pointer]),
        ("scsi_task_add_data_in_buffer", number, [pointer, number, pointer]),
    ):
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library


class Session:
    """Open with `Session.login`, on the running loop."""

    def __init__(self, name: str, settings: SessionSettings) -> None:
        self._name = name
        self._settings = settings
        self._library = _library()
        self._loop = asyncio.get_running_loop()
        self._context: int | None = None
        self._file = -1
        self._reading = self._writing = False
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[Ended]] = {}
        self._memory: dict[int, object] = {}
        """What libiscsi still points into, by command: a command that its caller gave up may still be using it."""
        self._tasks: dict[int, int] = {}
        self._lost = False
        self._servicing = False
        self._callback = _Callback(self._ended)

    @staticmethod
    async def login(
        host: str,
        port: int,
        target: str,
        *,
        initiator: str,
        user: tuple[str, str] | None = None,
        lun: int = -1,
        settings: SessionSettings,
    ) -> Session:
        """Connect and log in. `lun`: -1 checks none. `user`: CHAP name and secret.

        Raises:
            Unavailable: nobody answers there, or the login is refused.
            Invalid: libiscsi is not installed, or the names are malformed.
        """
        session = Session(f"iscsi://{host}:{port}/{target}", settings)
        try:
            async with asyncio.timeout(settings.connect_timeout_ms / 1000):
                # libiscsi's own look-up would hold up the loop.
                found = await session._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                address = str(found[0][4][0])
                portal = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
                await session._connect(portal, target, initiator, user, lun)
        except (OSError, TimeoutError) as error:
            await session.close()
            raise Unavailable(f"{session._name} cannot be reached", hint="is the target up?") from error
        except BaseException:
            await session.close()
            raise
        return session

    async def _connect(self, portal: str, target: str, initiator: str, user: tuple[str, str] | None, lun: int) -> None:
        library = self._library
        self._context = library.iscsi_create_context(initiator.encode())
        if not self._context:
            raise Invalid(f"libiscsi takes {initiator!r} for no initiator name")
        # Before the socket exists: nothing is ever sent again by itself.
        library.iscsi_set_noautoreconnect(self._context, 1)
        library.iscsi_set_session_type(self._context, _SESSION_NORMAL)
        refused = library.iscsi_set_targetname(self._context, target.encode())
        if user is not None:
            refused |= library.iscsi_set_initiator_username_pwd(self._context, user[0].encode(), user[1].encode())
        if refused:
            raise Invalid(f"{self._name} is no target's address: {self._error()}")
        number, ended = self._begin()
        if library.iscsi_full_connect_async(self._context, portal.encode(), lun, self._callback, number):
            raise Unavailable(f"{self._name} cannot be reached: {self._error()}")
        self._file = library.iscsi_get_fd(self._context)
        self._watch()
        try:
            end = await ended
        except OutcomeUnknown as error:
            raise Unavailable(f"{self._name} cannot be reached: {self._error()}") from error
        finally:
            self._waiting.pop(number, None)
        if end.status:
            raise Unavailable(f"{self._name} refused the login: {self._error()}")

    @property
    def lost(self) -> bool:
        return self._lost

    async def command(
        self,
        lun: int,
        cdb: bytes,
        *,
        out: memoryview | bytes | None = None,
        into: bytearray | None = None,
        room: int = 0,
    ) -> Ended:
        """One command. `out`: data for the device, left alone until this returns, and for good when it raises. `into`:
        memory for the reply; else `room`, the bytes of reply expected.

        Raises:
            OutcomeUnknown: it was sent and not answered.
            Unavailable: the session is lost; nothing was sent.
        """
        if self._lost or self._context is None:
            raise Unavailable(f"the session to {self._name} is lost", hint="open the volume again")
        if len(self._memory) >= self._settings.commands_in_flight_max:
            raise Unavailable(f"{len(self._memory)} commands to {self._name} are under way already")
        library = self._library
        length = len(out) if out is not None else len(into) if into is not None else room
        direction = _XFER_WRITE if out is not None else _XFER_READ if length else _XFER_NONE
        task = library.scsi_create_task(len(cdb), cdb, direction, length)
        number, ended = self._begin()
        outgoing = None
        kept: list[object] = [out, into]
        if out is not None:
            source = (
                ctypes.c_char.from_buffer(out)
                if isinstance(out, memoryview) and not out.readonly
                else ctypes.create_string_buffer(bytes(out), len(out))
            )
            described = _OutData(len(out), ctypes.addressof(source))
            outgoing = ctypes.byref(described)
            kept += [source, described]
        elif into is not None:
            target = (ctypes.c_char * len(into)).from_buffer(into)
            library.scsi_task_add_data_in_buffer(task, len(into), ctypes.addressof(target))
            kept.append(target)
        self._memory[number], self._tasks[number] = kept, task
        if library.iscsi_scsi_command_async(self._context, lun, task, self._callback, outgoing, number):
            self._forget(number)
            self._waiting.pop(number, None)
            raise Unavailable(f"{self._name} took no command: {self._error()}")
        timer = self._loop.call_later(self._settings.command_timeout_ms / 1000, self._time_out, number)
        self._service(select.POLLOUT)  # at once, rather than in the loop's next turn
        try:
            return await ended
        finally:
            timer.cancel()
            self._waiting.pop(number, None)

    def _begin(self) -> tuple[int, asyncio.Future[Ended]]:
        self._next_id += 1
        ended: asyncio.Future[Ended] = self._loop.create_future()
        self._waiting[self._next_id] = ended
        return self._next_id, ended

    def _time_out(self, number: int) -> None:
        waiter = self._waiting.get(number)
        if waiter is not None and not waiter.done():
            waiter.set_exception(OutcomeUnknown(f"{self._name} did not answer in time"))

    # ---- from libiscsi

    def _ended(self, _context: int | None, status: int, data: int | None, private: int | None) -> None:
        """The callback. Only notes what happened: libiscsi must not be called from here."""
        number = private or 0
        task = self._tasks.pop(number, None)
        waiter = self._waiting.get(number)
        if task is None:  # the end of a login, or later of the session
            if waiter is not None and not waiter.done():
                if status > _STATUS_MAX:
                    waiter.set_exception(OutcomeUnknown(f"the session to {self._name} was lost"))
                else:
                    waiter.set_result(Ended(status, Sense(), b""))
            return
        end = None
        if status <= _STATUS_MAX:
            seen = _Task.from_address(task)
            size, at = seen.datain.size, seen.datain.data
            raw = ctypes.string_at(at, size) if at and size > 0 else b""
            if status == _CHECK_CONDITION:
                # Two bytes of length lead the sense data (RFC 7143, 11.4.7.2).
                end = Ended(status, parse_sense(raw[2:]), b"")
            else:
                end = Ended(status, Sense(), raw)
        self._library.scsi_free_scsi_task(task)
        self._memory.pop(number, None)
        if waiter is not None and not waiter.done():
            if end is None:
                waiter.set_exception(OutcomeUnknown(f"the session to {self._name} was lost"))
            else:
                waiter.set_result(end)

    def _service(self, events: int) -> None:
        if self._context is None or self._servicing:
            return
        self._servicing = True
        failed = self._library.iscsi_service(self._context, events)
        self._servicing = False
        if failed:
            self._lose()
        else:
            self._watch()

    def _watch(self) -> None:
        """Tell the loop what libiscsi waits for."""
        wanted = self._library.iscsi_which_events(self._context)
        reading, writing = bool(wanted & select.POLLIN), bool(wanted & select.POLLOUT)
        if reading != self._reading:
            if reading:
                self._loop.add_reader(self._file, self._service, select.POLLIN)
            else:
                self._loop.remove_reader(self._file)
            self._reading = reading
        if writing != self._writing:
            if writing:
                self._loop.add_writer(self._file, self._service, select.POLLOUT)
            else:
                self._loop.remove_writer(self._file)
            self._writing = writing

    def _lose(self) -> None:
        """The connection broke, or is being closed. Commands under way end as unknown."""
        self._lost = True
        if self._reading:
            self._loop.remove_reader(self._file)
        if self._writing:
            self._loop.remove_writer(self._file)
        self._reading = self._writing = False
        if self._context is not None:
            context, self._context = self._context, None
            self._library.iscsi_destroy_context(context)  # calls back for each command under way
        for number in list(self._tasks):
            self._forget(number)
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(OutcomeUnknown(f"the session to {self._name} was lost"))

    def _forget(self, number: int) -> None:
        self._library.scsi_free_scsi_task(self._tasks.pop(number))
        self._memory.pop(number, None)

    def _error(self) -> str:
        if self._context is None:
            return "the connection was lost"
        text = self._library.iscsi_get_error(self._context)
        return text.decode("utf-8", "replace").strip() if text else "no reason given"

    async def close(self) -> None:
        """Log out, which ends the session's commands at the target, and cut the connection. Bounded in time."""
        if self._context is not None and not self._lost and self._file >= 0:
            number, ended = self._begin()
            if self._library.iscsi_logout_async(self._context, self._callback, number) == 0:
                self._service(select.POLLOUT)
                try:
                    async with asyncio.timeout(self._settings.connect_timeout_ms / 1000):
                        await ended
                except (TimeoutError, OutcomeUnknown):
                    pass  # cut instead
            self._waiting.pop(number, None)
        if not self._lost:
            self._lose()

    def cut(self) -> None:
        """Drop the connection without a word, as a host that loses power."""
        if not self._lost:
            self._lose()
