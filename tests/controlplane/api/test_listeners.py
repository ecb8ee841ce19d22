"""A cluster's security as a user writes it: refused where it would secure less than it says, rendered for the brokers
as it stands, and shown by a plan."""

from __future__ import annotations

import dataclasses

import pytest

from controlplane.api.listeners import security_of
from controlplane.api.load import load_texts
from controlplane.api.specs import Specs
from controlplane.apply.render import Places, assignments
from controlplane.plan.model import Recorded
from controlplane.plan.plan import make_plan
from controlplane.plan.render import render_plan
from controlplane.plan.resolve import resolve
from dataplane.broker.security import check
from dataplane.contract.assignment import Assignment
from dataplane.contract.codec import from_json, to_json
from dataplane.contract.security import ClientAuth, ListenerProtocol, Mechanism, SecuritySpec, TlsSpec
from providers.base.errors import Invalid
from providers.base.registry import StoreAddress

TLS = "tls: {certificateFile: /c.pem, keyFile: /k.pem}"
SASL = "sasl: {users: 'file:/users.json'}"
PEERS = "peerSecret: 'env:PEERS'"
SECURED = f"listeners: {{protocol: SASL_SSL, {TLS}, {SASL}, {PEERS}}}"


def specs(more: str = "") -> Specs:
    text = f"""\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {{name: plant}}
spec: {{provider: private, region: plant, zones: [a, b]}}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {{name: main}}
spec:
  cloud: plant
  brokers: 2
  {more}
"""
    return load_texts([("f.yaml", text)])


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (f"listeners: {{protocol: SSL, {PEERS}}}", "needs the field tls"),
        (f"listeners: {{protocol: SASL_SSL, {TLS}, {PEERS}}}", "needs the field sasl"),
        (f"listeners: {{protocol: SASL_PLAINTEXT, {SASL}}}", "needs the field peerSecret"),
        (f"listeners: {{{TLS}}}", "tls is set although protocol is PLAINTEXT"),
        (f"listeners: {{protocol: SSL, {TLS}, {SASL}, {PEERS}}}", "sasl is set although protocol is SSL"),
        (
            f"listeners: {{protocol: SASL_PLAINTEXT, sasl: {{users: /u, mechanisms: [PLAIN]}}, {PEERS}}}",
            "hands passwords over in the clear",
        ),
        (f"listeners: {{protocol: SASL_PLAINTEXT, sasl: {{users: /u, mechanisms: []}}, {PEERS}}}", "at least 1"),
        (f'listeners: {{protocol: SASL_PLAINTEXT, sasl: {{users: \'{{"a": "b"}}\'}}, {PEERS}}}', "no reference"),
        (f"listeners: {{protocol: SASL_PLAINTEXT, sasl: {{password: x}}, {PEERS}}}", "secrets never stand in a spec"),
        ("listeners: {protocol: SASL}", "is not"),
        ("listeners: {protocol: SSL, tls: {certificateFile: /c, keyFile: /k, clientAuth: required}}", "clientCaFile"),
        ("authorization: {superUsers: ['User:a']}", "clients that say who they are"),
        (
            f"listeners: {{protocol: SSL, {TLS}, {PEERS}}}\n  authorization: {{superUsers: ['User:a']}}",
            "clients that say who they are",
        ),
        (f"{SECURED}\n  authorization: {{superUsers: []}}", "at least 1"),
        (f"{SECURED}\n  authorization: {{superUsers: [admin]}}", "write it as User:name"),
    ],
)
def test_what_would_secure_less_than_it_says_is_refused(written: str, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        specs(written)
    assert says in f"{refused.value} {refused.value.hint}"


def told(given: Specs) -> list[SecuritySpec]:
    places = Places(StoreAddress("private", "b", "r", "http://127.0.0.1:1"))
    rendered = assignments("plant", given.clusters["main"], resolve(given)["main"], places, ())
    for assignment in rendered.values():
        assert from_json(Assignment, to_json(assignment)) == assignment
    return [assignment.security for assignment in rendered.values()]


def test_brokers_are_told_what_was_written() -> None:
    tls = "tls: {certificateFile: /c.pem, keyFile: /k.pem, clientCaFile: /ca.pem, clientAuth: requested}"
    sasl = "sasl: {users: 'file:/users.json', mechanisms: [PLAIN, SCRAM-SHA-512], reauthenticate: 1h}"
    written = f"listeners: {{protocol: SASL_SSL, {tls}, {sasl}, {PEERS}}}\n  authorization: {{superUsers: ['User:a']}}"
    expected = SecuritySpec(
        ListenerProtocol.SASL_SSL,
        TlsSpec("/c.pem", "/k.pem", "/ca.pem", ClientAuth.REQUESTED),
        (Mechanism.PLAIN, Mechanism.SCRAM_SHA_512),
        "file:/users.json",
        3_600_000,
        "env:PEERS",
        True,
        ("User:a",),
    )
    assert told(specs(written)) == [expected, expected]
    check(expected)
    assert told(specs()) == [SecuritySpec(), SecuritySpec()]


@pytest.mark.parametrize(
    "broken",
    [
        {"tls": None},
        {"mechanisms": ()},
        {"protocol": ListenerProtocol.SASL_PLAINTEXT, "mechanisms": (Mechanism.PLAIN,)},
    ],
)
def test_a_broker_refuses_what_no_spec_says(broken: dict[str, object]) -> None:
    cluster = specs(SECURED).clusters["main"].spec
    good = security_of(cluster.listeners, cluster.authorization)
    check(good)
    with pytest.raises(Invalid):
        check(dataclasses.replace(good, **broken))  # type: ignore[arg-type]


def test_a_plan_shows_a_change_and_refuses_another_peer_secret() -> None:
    applied = make_plan(specs(SECURED), Recorded()).recorded_after()
    changed = make_plan(specs(f"{SECURED}\n  authorization: {{superUsers: ['User:a']}}"), applied)
    assert "authorization.superUsers unset -> [User:a]" in render_plan(changed)
    [action] = changed.actions
    assert action.downtime_ms > 0, "brokers read it when they start"
    with pytest.raises(Invalid) as refused:
        make_plan(specs(SECURED.replace("env:PEERS", "env:OTHERS")), applied)
    assert "f.yaml" in str(refused.value) and "peerSecret" in str(refused.value)


def test_a_cluster_stored_before_there_was_security_plans_no_change() -> None:
    applied = make_plan(specs(), Recorded()).recorded_after()
    key = ("BrokerCluster", "main")
    old = dict(applied.specs[key])
    spec = dict(old["spec"])
    spec["listeners"] = {"host": spec["listeners"]["host"]}
    before = dataclasses.replace(applied, specs={**applied.specs, key: {**old, "spec": spec}})
    assert make_plan(specs(), before).empty
