"""Kubernetes events of custom resources: what `kubectl describe` and `kubectl events` show. They are news, not state:
one that cannot be written is logged and let go.
"""

from __future__ import annotations

import logging
from typing import Any

from controlplane.operator.admission import Custom
from controlplane.store.conditions import Notice, rfc3339
from controlplane.store.kube_api import FIELD_MANAGER, Kube, core_path
from providers.base.clock import Clock
from providers.base.errors import YunheError

log = logging.getLogger(__name__)

MESSAGE_MAX = 1_024
"""Longest message that the API server takes."""


class Events:
    """Of one namespace. Calls block for one request."""

    def __init__(self, kube: Kube, namespace: str, me: str, *, clock: Clock) -> None:
        self._kube, self._namespace, self._me, self._clock = kube, namespace, me, clock

    def say(self, custom: Custom, reason: str, sentence: str, *, warning: bool = False) -> None:
        """Write one. `reason`: a word."""
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
        try:
            self._kube.create(core_path(self._namespace, "events"), body)
        except YunheError as error:
            log.info("an event of %s %s was not written: %s", custom["kind"], metadata["name"], error.message)

    def notice(self, custom: Custom, notice: Notice) -> None:
        """What its conditions say now."""
        told = f"{notice.sentence} ({notice.hint})" if notice.hint else notice.sentence
        self.say(custom, notice.reason, told, warning=notice.wrong)
