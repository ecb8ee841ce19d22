"""Kubernetes events of custom resources: what `kubectl describe` and `kubectl events` show. They are news, not state:
they are written behind, and one that cannot be written is logged and let go.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from controlplane.operator.admission import Custom
from controlplane.store.behind import Behind
from controlplane.store.conditions import Notice, rfc3339
from controlplane.store.kube_api import FIELD_MANAGER, Kube, core_path
from providers.base.clock import Clock
from providers.base.errors import YunheError

log = logging.getLogger(__name__)

MESSAGE_MAX = 1_024
"""Longest message that the API server takes."""


class Events:
    """Of one namespace. No call waits for the API server."""

    def __init__(self, kube: Kube, namespace: str, me: str, behind: Behind, *, clock: Clock) -> None:
        self._kube, self._namespace, self._me, self._behind, self._clock = kube, namespace, me, behind, clock

    def say(self, custom: Custom, reason: str, sentence: str, *, warning: bool = False) -> None:
        """Write one. `reason`: a word.

        Raises:
            Fenced: nothing is written any more.
        """
        metadata = custom["metadata"]
        now = rfc3339(self._clock.wall_ms())
        body: dict[str, Any] = {
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": self._namespace},
            "involvedObject": {
                "apiVersion": custom["apiVersion"],
                "kind": custom["kind"],
                "namespace": self._namespace,
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": sentence[:MESSAGE_MAX],
            "type": "Warning" if warning else "Normal",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": FIELD_MANAGER, "host": self._me},
        }
        self._behind.put(("Event", metadata["uid"], reason), partial(self._write, body))

    def notice(self, custom: Custom, notice: Notice) -> None:
        """What its conditions say now."""
        told = f"{notice.sentence} ({notice.hint})" if notice.hint else notice.sentence
        self.say(custom, notice.reason, told, warning=notice.wrong)

    def _write(self, body: dict[str, Any]) -> None:
        try:
            self._kube.create(core_path(self._namespace, "events"), body)
        except YunheError as error:
            of = body["involvedObject"]
            log.info("an event of %s %s was not written: %s", of["kind"], of["name"], error.message)
