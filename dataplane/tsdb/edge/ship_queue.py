"""Files that the cloud is not known to have: which of them are to be sent, are in the bucket, are in a batch."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from dataplane.tsdb.edge.ship_plan import Pending


class Queue:
    """See the module. Holds what a fresh life finds again: nothing here has to survive."""

    def __init__(self) -> None:
        self.pending: dict[str, Pending] = {}
        """All of them, by id; not those that are set aside."""
        self.sent: dict[str, Pending] = {}
        """Those that are in the bucket, and in no batch."""
        self._heap: list[tuple[tuple[int, int, int, str], Pending]] = []

    @property
    def to_send(self) -> int:
        """How many are to be sent, or a few more."""
        return len(self._heap)

    def add(self, file: Pending) -> None:
        self.pending[file.meta.file_id] = file
        if not file.there:
            self.put_back(file)
        elif not file.batch:
            self.sent[file.meta.file_id] = file

    def drop(self, file_id: str) -> Pending | None:
        """It waits for nothing any more."""
        self.sent.pop(file_id, None)
        return self.pending.pop(file_id, None)

    def take(self, count: int) -> list[Pending]:
        """Those that are to be sent first."""
        files: list[Pending] = []
        while self._heap and len(files) < count:
            _, file = heapq.heappop(self._heap)
            if self.pending.get(file.meta.file_id) is file:
                files.append(file)
        return files

    def put_back(self, file: Pending) -> None:
        """It is still to be sent."""
        heapq.heappush(self._heap, (file.order, file))

    def is_there(self, file: Pending) -> None:
        """It is in the bucket."""
        file.there = True
        self.sent[file.meta.file_id] = file

    def batched(self, file_ids: Iterable[str], number: int) -> None:
        """They are in that batch."""
        for file_id in file_ids:
            self.sent.pop(file_id).batch = number

    def unbatched(self, file_ids: Iterable[str]) -> list[Pending]:
        """Their batch is over, and did not bring them into the cloud; those that are here still."""
        files = [file for file_id in file_ids if (file := self.pending.get(file_id)) is not None]
        for file in files:
            file.batch = 0
            self.sent[file.meta.file_id] = file
        return files
