"""What `apply` needs of a cloud's compute API: which machines there are, enough to attach volumes to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine. `id`: the cloud's own (i-…; a resource name on Azure and GCP). `zone`: as the cloud writes zones in
    capabilities (AWS: the zone *id*, use1-az4)."""

    id: str
    name: str
    zone: str
    kind: str
    """Machine type: m7g.xlarge, Standard_D4s_v5, n2-standard-4, ecs.g7.xlarge."""
    running: bool
    private_address: str = ""
    shares_volumes: bool | None = None
    """Whether this machine type can take a volume that others have attached too (Nitro, NVMe families); None: the
    cloud does not say."""


class Instances(Protocol):
    """The machines of one account and region. A missing answer is never taken for a death (design §5)."""

    async def describe(self, ids: Sequence[str] | None = None) -> Sequence[Instance]:
        """Those machines (ids that do not exist are left out), or all in this account and scope.

        Raises:
            Unavailable: no answer, which says nothing about any machine.
            Invalid: credentials refused.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. Further calls are errors."""
        ...
