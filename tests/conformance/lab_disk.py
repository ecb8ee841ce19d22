"""What tests do to the files under a lab object server: damage, and what a crash leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

MAGIC = b"YHL1"
"""Each record of the log begins with it (`providers/lab/storage_log.py`)."""


def flip_a_bit(root: Path, content: bytes, occurrence: int = 0) -> None:
    """Flip one bit in the middle of where `content` lies, in the log or in a payload file."""
    for path in sorted([*(root / "log").glob("*.seg"), *(root / "data").glob("*.data")]):
        raw = path.read_bytes()
        at = raw.find(content)
        while at >= 0 and occurrence:
            occurrence -= 1
            at = raw.find(content, at + len(content))
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at + len(content) // 2)
                file.write(bytes([raw[at + len(content) // 2] ^ 1]))
            return
    raise AssertionError(f"{root} does not hold these bytes")


def log_end(root: Path) -> tuple[Path, int]:
    """The newest segment, and where its last record ends (records never end in a zero byte here)."""
    path = max((root / "log").glob("*.seg"))
    return path, len(path.read_bytes().rstrip(b"\0"))


def leave_torn_record(root: Path) -> None:
    """As a record cut short by a crash would: the server is not running."""
    path, end = log_end(root)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(MAGIC + os.urandom(700))


def leave_torn_payload(root: Path) -> Path:
    """As a body cut short by a crash would: the server is not running."""
    path = root / "data" / f"{999_999:016}.data"
    path.write_bytes(b"half of something")
    return path
