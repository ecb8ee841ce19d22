"""The custom resources of a namespace as they are, for requests that each must know what was there when they came.

Requests that come while a list is under way wait for the next one and share it: it begins after all of them came, so it
is as good as one of their own. However many there are, the API server is asked for one list at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count, islice

from controlplane.api.kinds import KINDS
from controlplane.operator.admission import Custom
from controlplane.store.kube_api import Kube, resources_path
from providers.base.errors import Unavailable

OBJECTS_MAX = 20_000
"""Of one namespace and kind; beyond, changes are not judged, and failurePolicy decides."""


class Present:
    """See the module. From one event loop."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._moments = count(1)
        self._listing = asyncio.Lock()
        self._waiting = 0
        self._list: tuple[int, str, list[Custom]] | None = None
        """When it began, of which namespace, what was there; kept only while somebody waits."""

    async def __call__(self, namespace: str) -> Sequence[Custom]:
        """The resources of `namespace` at a moment after this call.

        Raises:
            Unavailable: the API server did not answer, or there are too many.
        """
        came = next(self._moments)
        self._waiting += 1
        try:
            async with self._listing:
                if self._list is None or self._list[0] < came or self._list[1] != namespace:
                    began = next(self._moments)
                    self._list = (began, namespace, await asyncio.to_thread(self._read, namespace))
                return self._list[2]
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._list = None

    def _read(self, namespace: str) -> list[Custom]:
        found: list[Custom] = []
        for kind in KINDS:
            listed = list(islice(self._kube.listed(resources_path(namespace, kind)), OBJECTS_MAX + 1))
            if len(listed) > OBJECTS_MAX:
                raise Unavailable(f"{namespace} has more than {OBJECTS_MAX} objects of kind {kind}")
            found += listed
        return found
