"""Events are news: nobody waits for them, and those that cannot be written are let go."""

from __future__ import annotations

from controlplane.operator.events import Events
from controlplane.store.behind import Behind
from controlplane.store.conditions import Notice
from providers.base.clock import SystemClock
from tests.controlplane.store.fake_kube import NAMESPACE, FakeKube

CUSTOM = {"apiVersion": "yunhe.io/v1alpha1", "kind": "Topic", "metadata": {"name": "t", "uid": "u"}}


def test_events_are_written_behind_and_let_go_where_they_cannot_be() -> None:
    api, clock = FakeKube(), SystemClock()
    behind = Behind(clock=clock)
    events = Events(api.kube, NAMESPACE, "me", behind, clock=clock)
    api.away = True
    events.say(CUSTOM, "Planned", "lost")
    assert behind.drain(10_000) == 0
    api.away = False
    events.notice(CUSTOM, Notice("Refused", "too many", "write fewer"))
    events.say(CUSTOM, "Planned", "plan 1")
    assert behind.drain(10_000) == 0
    behind.stop()
    told = {e["reason"]: (e["message"], e["type"]) for e in api.objects.values()}
    assert told == {"Refused": ("too many (write fewer)", "Warning"), "Planned": ("plan 1", "Normal")}
