"""Volumes that somebody else has made and attached: a host's devices, an array's units. What both share: they can be
opened here and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

from providers.base.errors import Invalid
from providers.base.volumes import Volume


class ReadyVolumes:
    """The control half of `BlockVolumes` where there is none: every call of it is `Invalid` and changes nothing."""

    def _elsewhere(self, done: str) -> Invalid:
        """That it is not `done` here, with a hint where it is."""
        raise NotImplementedError

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        raise self._elsewhere("created")

    async def attach(self, volume_id: str, zone: str) -> Volume:
        raise self._elsewhere("attached")

    async def detach(self, volume_id: str, zone: str) -> Volume:
        raise self._elsewhere("detached")

    async def describe(self) -> Sequence[Volume]:
        raise self._elsewhere("described")

    async def delete(self, volume_id: str) -> None:
        raise self._elsewhere("deleted")
