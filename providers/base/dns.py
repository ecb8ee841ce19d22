"""What traffic steering needs of a cloud's DNS: read and replace one set of records at a time.

DNS only follows: clients are steered by access points, and a failover needs no call from here (design §10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TYPES = ("A", "AAAA", "CNAME", "TXT", "SRV")
"""Types of record that can be set."""


@dataclass(frozen=True, slots=True)
class RecordSet:
    """All records of one name and type. `name`: fully qualified, lower case, without the trailing dot. `values`: as in
    a zone file, unquoted for TXT, sorted. `ttl_s` in seconds."""

    name: str
    type: str
    ttl_s: int
    values: tuple[str, ...]


class Dns(Protocol):
    """One zone (domain) at a cloud. Obligations, by number:

    1. *Never empty*: a record set is replaced by a non-empty one or deleted by name; no call passes through a state in
       which the name has no records.
    2. *Compare before replace*: `replace(..., expected=...)` changes nothing and raises `Conflict` when the zone holds
       something else: atomic where the cloud's API is (Azure's ETag, GCP's changes with deletions, Route 53's
       DELETE + CREATE batch), checked just before on Aliyun, which has no such call.
    3. *Bounded*: as every provider call.

    Every method may raise `Unavailable`, `Invalid` (bad name, type, value; credentials refused) or `NotFound` (no such
    zone).
    """

    async def get(self, name: str, type: str) -> RecordSet | None:
        """The record set, or None."""
        ...

    async def list(self) -> Sequence[RecordSet]:
        """All record sets of `TYPES` in the zone, sorted by name and type."""
        ...

    async def replace(self, record: RecordSet, *, expected: RecordSet | None) -> None:
        """Set `record` where `expected` is now (None: where nothing is). Done when the cloud has accepted it;
        propagation takes its own time.

        Raises:
            Conflict: the zone holds something else.
        """
        ...

    async def delete(self, expected: RecordSet) -> None:
        """Remove exactly `expected`; one that is not there any more is passed over.

        Raises:
            Conflict: the zone holds another set under that name and type.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. Further calls are errors."""
        ...
