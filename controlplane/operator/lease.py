"""Which replica leads: a Lease of coordination.k8s.io, taken when its holder has not renewed it for its duration.

    follows ──(nobody holds it, or the holder was silent for the duration)──► leads ──(not renewed in time)──► lost

A silent holder is judged by the time that passed here since its record last changed, so that clocks need not agree. The
lease only says who tries; what keeps two from writing is the store's term.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.store.kube_api import Kube
from providers.base.clock import Clock, Rng
from providers.base.errors import AlreadyExists, Conflict, Invalid, NotFound, YunheError

log = logging.getLogger(__name__)

NAME = "yunhe-operator"
DURATION_MIN_MS = 1_000.0
CONFLICTS_MAX = 3
"""Tries of one look while others write the lease."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Bounds of the election; those that Kubernetes' own controllers have."""

    duration_ms: float = 15_000.0
    """How long a holder may be silent until others take over."""
    renew_within_ms: float = 10_000.0
    """A holder that could not renew for so long stops leading, before others begin."""
    every_ms: float = 2_000.0
    """Between two looks, or two renewals, with a quarter of jitter."""

    @staticmethod
    def lasting(duration_ms: float) -> LeaseSettings:
        """The same for another duration.

        Raises:
            Invalid: too short to be renewed in time.
        """
        if duration_ms < DURATION_MIN_MS:
            raise Invalid(f"a lease lasts {DURATION_MIN_MS / 1000:g} s or more, not {duration_ms / 1000:g} s")
        return LeaseSettings(duration_ms, duration_ms * 2 / 3, min(2_000.0, duration_ms / 7))


@dataclass(frozen=True, slots=True)
class Observed:
    """A record of the lease, and when it was first seen here."""

    record: tuple[str, str, int]
    """(holder, time of its renewal as it wrote it, transitions)."""
    at_ms: float


def observe(before: Observed | None, lease: Mapping[str, Any], now_ms: float) -> Observed:
    """What is known of the lease now."""
    spec = lease.get("spec") or {}
    transitions = int(spec.get("leaseTransitions") or 0)
    record = (str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or ""), transitions)
    return before if before is not None and before.record == record else Observed(record, now_ms)


def may_take(seen: Observed, lease: Mapping[str, Any], me: str, now_ms: float) -> bool:
    """Whether the lease is ours, nobody's, or of one who has been silent for as long as it promised not to be."""
    holder = seen.record[0]
    silent_ms = 1000.0 * float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
    return holder in ("", me) or now_ms - seen.at_ms > silent_ms


class Election:
    """One replica's part in it."""

    def __init__(
        self, kube: Kube, namespace: str, me: str, *, clock: Clock, rng: Rng, settings: LeaseSettings = LeaseSettings()
    ) -> None:
        """`me`: a name that no other process has, nor an earlier life of this one."""
        self._kube, self._me, self._clock, self._rng, self._settings = kube, me, clock, rng, settings
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._seen: Observed | None = None
        self._lease: dict[str, Any] = {}
        self._renewed_ms: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is certain that no other leads, nor will before a call that begins now has ended: it was renewed
        lately by this host's clock. From any thread.
        """
        renewed_ms = self._renewed_ms
        return renewed_ms is not None and self._clock.monotonic_ms() - renewed_ms < self._settings.renew_within_ms

    async def lead(self) -> None:
        """Wait until this replica leads, for as long as that takes."""
        said = ""
        while True:
            try:
                if await asyncio.to_thread(self._try):
                    log.info("leads as %s", self._me)
                    return
                sentence = f"follows {self._seen.record[0] if self._seen else 'nobody'}"
            except YunheError as error:
                sentence = f"the lease cannot be read or written: {error.message}"
            if sentence != said:
                log.info(sentence)
            said = sentence
            await self._pause()

    async def lost(self) -> str:
        """Renew the lease until that fails for too long; returns why it is lost."""
        while True:
            await self._pause()
            try:
                if not await asyncio.to_thread(self._try):
                    return f"{self._seen.record[0] if self._seen else 'another'} holds the lease"
            except YunheError as error:
                if not self.holds:
                    return f"the lease was not renewed for {self._settings.renew_within_ms / 1000:g} s: {error.message}"

    def release(self) -> None:
        """Give it up, so that another need not wait for its end."""
        try:
            spec = {**self._lease.get("spec", {}), "holderIdentity": "", "leaseDurationSeconds": 1}
            self._kube.replace(f"{self._collection}/{NAME}", {**self._lease, "spec": spec})
        except YunheError as error:
            log.info("the lease was not released: %s", error.message)

    def _try(self) -> bool:
        """Take it or renew it; False: another has it.

        Raises:
            Unavailable: the API server does not answer.
        """
        for _ in range(CONFLICTS_MAX):
            try:
                lease = self._kube.get(f"{self._collection}/{NAME}")
            except NotFound:
                lease = {}
            now_ms = self._clock.monotonic_ms()
            self._seen = observe(self._seen, lease, now_ms)
            if not may_take(self._seen, lease, self._me, now_ms):
                self._renewed_ms = None
                return False
            body = {
                **(lease or {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME}}),
                "spec": self._spec(self._seen),
            }
            try:
                # A replacement carries the resourceVersion that was read: of two that take it, one meets Conflict.
                if lease:
                    self._lease = self._kube.replace(f"{self._collection}/{NAME}", body)
                else:
                    self._lease = self._kube.create(self._collection, body)
            except (Conflict, AlreadyExists, NotFound):
                continue  # somebody wrote it meanwhile, perhaps only a label
            self._renewed_ms = now_ms
            return True
        return False

    def _spec(self, seen: Observed) -> dict[str, Any]:
        now = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours, before = seen.record[0] == self._me, self._lease.get("spec", {})
        return {
            "holderIdentity": self._me,
            "leaseDurationSeconds": max(1, round(self._settings.duration_ms / 1000)),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "leaseTransitions": seen.record[2] + (0 if ours else 1),
        }

    async def _pause(self) -> None:
        await self._clock.sleep_ms(self._settings.every_ms * self._rng.uniform(1.0, 1.25))
