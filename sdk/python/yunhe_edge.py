"""The edge SDK from Python, over the C ABI: `YUNHE_EDGE_LIBRARY` names the built `libyunhe_edge.so`.

    with Edge("/run/yunhe/ring.sock") as edge:
        speed = edge.declare("speed", [("ts", "timestamp[ms]", "time"), ("kmh", "float32", "field")], create=True)
        edge.write_row(speed, [1_760_000_000_000, 88.5])
        edge.flush()

`dataplane/tsdb/ring/client.py` does the same without Rust, and takes Arrow.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from types import TracebackType

TYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"),
    *("bool", "string", "binary", "timestamp[s]", "timestamp[ms]", "timestamp[us]", "timestamp[ns]"),
)
ROLES = ("tag", "field", "time")
STATUSES = ("ok", "full", "invalid", "not-found", "unavailable", "other")


class EdgeError(Exception):
    """What the database or the SDK says; `status` is one of `STATUSES`."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_uint32),
        ("role", ctypes.c_uint32),
        ("nullable", ctypes.c_bool),
    ]


class _Value(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("i", ctypes.c_int64),
        ("u", ctypes.c_uint64),
        ("f", ctypes.c_double),
        ("text", ctypes.c_char_p),
    ]


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ.get("YUNHE_EDGE_LIBRARY", "libyunhe_edge.so"))
    handle, size, u32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
    library.yunhe_edge_connect.restype = handle
    library.yunhe_edge_connect.argtypes = [ctypes.c_char_p, size, ctypes.c_char_p, size]
    library.yunhe_edge_declare_decimals.argtypes = [
        *(handle, ctypes.c_char_p, ctypes.POINTER(_Spec), ctypes.POINTER(ctypes.c_int8)),
        *(size, ctypes.c_bool, ctypes.POINTER(u32)),
    ]
    library.yunhe_edge_write_row.argtypes = [handle, u32, ctypes.POINTER(_Value), size, u32]
    library.yunhe_edge_flush.argtypes = [handle, u32]
    library.yunhe_edge_error.restype = ctypes.c_char_p
    library.yunhe_edge_error.argtypes = [handle]
    library.yunhe_edge_close.argtypes = [handle]
    library.yunhe_edge_close.restype = None
    return library


class Edge:
    """A connection, for one thread at a time."""

    def __init__(self, path: str, ring_bytes: int = 0) -> None:
        self._library = _library()
        error = ctypes.create_string_buffer(512)
        self._handle = self._library.yunhe_edge_connect(path.encode(), ring_bytes, error, len(error))
        if not self._handle:
            raise EdgeError("unavailable", error.value.decode())

    def declare(
        self,
        table: str,
        columns: Sequence[tuple[str, str, str]],
        *,
        decimals: Mapping[str, int] | None = None,
        create: bool = False,
    ) -> int:
        """Name, type and role of each column; returns the table's number for `write_row`. `decimals`: to how many
        digits behind the point values of which columns are rounded; others have what the table has."""
        digits = [(decimals or {}).get(name, -1) for name, _, _ in columns]
        specs = (_Spec * len(columns))()
        for spec, (name, kind, role) in zip(specs, columns, strict=True):
            spec.name, spec.kind, spec.role = name.encode(), TYPES.index(kind), ROLES.index(role)
            spec.nullable = role != "time"
        found = ctypes.c_uint32()
        self._check(
            self._library.yunhe_edge_declare_decimals(
                self._handle,
                table.encode(),
                specs,
                (ctypes.c_int8 * len(columns))(*digits),
                len(columns),
                create,
                ctypes.byref(found),
            )
        )
        return found.value

    def write_row(
        self, table: int, values: Sequence[int | float | bool | str | bytes | None], *, wait_ms: int = 0
    ) -> None:
        """One row, in the order of the declared columns."""
        row = (_Value * len(values))()
        for its, value in zip(row, values, strict=True):
            if value is None:
                its.kind = 0
            elif isinstance(value, bool):
                its.kind, its.i = 4, value
            elif isinstance(value, int):
                its.kind, its.i, its.u = (1, value, 0) if value < 1 << 63 else (2, 0, value)
            elif isinstance(value, float):
                its.kind, its.f = 3, value
            else:
                text = value.encode() if isinstance(value, str) else value
                its.kind, its.text, its.length = 5 if isinstance(value, str) else 6, text, len(text)
        self._check(self._library.yunhe_edge_write_row(self._handle, table, row, len(values), wait_ms))

    def flush(self, *, wait_ms: int = 10_000) -> None:
        """Wait until all rows so far are stored, as durable as their tables' logs promise."""
        self._check(self._library.yunhe_edge_flush(self._handle, wait_ms))

    def close(self) -> None:
        """Hang up."""
        if self._handle:
            self._library.yunhe_edge_close(self._handle)
            self._handle = None

    def __enter__(self) -> Edge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, status: int) -> None:
        if status:
            raise EdgeError(STATUSES[status], self._library.yunhe_edge_error(self._handle).decode())
