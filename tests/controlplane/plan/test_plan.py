"""Plans: empty after apply, the same for the same input, honest about what is lost, refused where not possible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.api.load import load_texts
from controlplane.api.specs import Specs
from controlplane.plan.model import Change, Recorded, Verb
from controlplane.plan.plan import Plan, make_plan
from controlplane.plan.render import plan_plain, render_plan
from providers.base.errors import Conflict, Corrupt, Invalid

EXAMPLE = (Path(__file__).parents[3] / "examples" / "four-clouds.yaml").read_text()


def specs(text: str = EXAMPLE) -> Specs:
    return load_texts([("f.yaml", text)])


def edited(old: str, new: str) -> Specs:
    assert old in EXAMPLE
    return specs(EXAMPLE.replace(old, new))


APPLIED = make_plan(specs(), Recorded()).recorded_after()


def names(plan: Plan, verb: Verb) -> list[str]:
    return [f"{action.kind} {action.name}" for action in plan.actions if action.verb is verb]


def test_first_plan_creates_everything_in_an_order_that_can_be_applied() -> None:
    plan = make_plan(specs(), Recorded())
    assert plan.exit_code == 2
    assert {action.verb for action in plan.actions} == {Verb.CREATE}
    kinds = [action.kind for action in plan.actions]
    assert {kind: kinds.count(kind) for kind in kinds} == {"Cloud": 4, "BrokerCluster": 4, "Broker": 8, "Topic": 4}
    for action in plan.actions:
        if action.kind in ("Broker", "Topic"):
            at = [f"{a.kind} {a.name}" for a in plan.actions]
            assert at.index(f"BrokerCluster {action.name.split('/')[0]}") < plan.actions.index(action)


def test_plan_is_empty_after_apply() -> None:
    plan = make_plan(specs(), APPLIED)
    assert plan.empty
    assert plan.exit_code == 0
    assert render_plan(plan) == "nothing to do: revision 1 is what the specs say"
    assert make_plan(specs(), APPLIED, prune=True).empty


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(4, 40),
    st.sampled_from(["auto", "object", "regional-block"]),
    st.booleans(),
    st.booleans(),
)
def test_plan_is_empty_after_apply_whatever_was_applied(
    brokers: int, partitions: int, mode: str, prune: bool, configured: bool
) -> None:
    def wanted(count: int, parts: int) -> Specs:
        text = EXAMPLE.replace("partitions: 4", f"partitions: {parts}")
        if configured:
            text += "  configs: {retention.ms: -1}\n"
        spec = f"{{cloud: gcp-usc1, brokers: {count}, wal: {{mode: {mode}}}}}"
        return specs(text.replace("{cloud: gcp-usc1, brokers: 2}", spec))

    first = make_plan(wanted(2, 4), Recorded())
    second = make_plan(wanted(brokers, partitions), first.recorded_after(), prune=prune)
    assert second.empty is ((brokers, partitions) == (2, 4))
    assert make_plan(wanted(brokers, partitions), second.recorded_after(), prune=prune).empty


def test_what_the_store_kept_as_json_plans_the_same() -> None:
    kept = {key: json.loads(json.dumps(plain)) for key, plain in APPLIED.specs.items()}
    assert make_plan(specs(), replace(APPLIED, specs=kept)).empty


def test_hash_changes_exactly_when_the_plan_does() -> None:
    plan = make_plan(specs(), Recorded())
    assert make_plan(specs(), Recorded()).hash == plan.hash
    documents = EXAMPLE.split("---\n")
    assert make_plan(specs("---\n".join(reversed(documents))), Recorded()).hash == plan.hash
    assert make_plan(specs(EXAMPLE + "# a comment\n"), Recorded()).hash == plan.hash
    others = [
        make_plan(specs(), Recorded(revision=1)),
        make_plan(specs(), APPLIED),
        make_plan(edited("partitions: 4", "partitions: 5"), Recorded()),
        make_plan(edited("brokers: 2}", "brokers: 3}"), Recorded()),
        make_plan(edited("cn-hangzhou-i]", "cn-hangzhou-j]"), Recorded()),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == len(others) + 1


def test_a_stale_plan_is_refused() -> None:
    plan = make_plan(specs(), Recorded())
    plan.require(plan.hash[:4])
    plan.require(plan.hash.upper())
    with pytest.raises(Conflict, match="is stale"):
        make_plan(specs(), Recorded(revision=1)).require(plan.hash[:8])
    with pytest.raises(Invalid, match="at least 4"):
        plan.require("")


def test_objects_that_are_not_named_stay_unless_pruned() -> None:
    without_topic = specs("---\n".join(EXAMPLE.split("---\n")[:-1]))
    assert make_plan(without_topic, APPLIED).empty
    plan = make_plan(without_topic, APPLIED, prune=True)
    assert names(plan, Verb.DELETE) == [
        "Topic aliyun-hz/orders", "Topic azure-eus/orders", "Topic gcp-usc1/orders", "Topic aws-use1/orders"
    ]  # fmt: skip
    assert all(action.data_at_risk == "all records of 4 partitions" for action in plan.actions)
    assert "at risk: all records" in render_plan(plan)


def test_deleting_a_cluster_says_what_is_lost() -> None:
    kept = [d for d in EXAMPLE.split("---\n") if "aws-use1}" not in d and "name: aws-use1" not in d]
    plan = make_plan(specs("---\n".join(kept).replace(", aws-use1]", "]")), APPLIED, prune=True)
    assert names(plan, Verb.DELETE) == [
        "Broker aws-use1/b-1", "Broker aws-use1/b-2", "BrokerCluster aws-use1", "Cloud aws-use1"
    ]  # fmt: skip
    [cluster] = [action for action in plan.actions if action.kind == "BrokerCluster"]
    assert cluster.data_at_risk == "all records of the cluster: orders"
    assert sum(action.monthly_usd or 0 for action in plan.actions) < 0


def test_more_brokers_are_only_added() -> None:
    plan = make_plan(edited("{cloud: aws-use1, brokers: 2}", "{cloud: aws-use1, brokers: 3}"), APPLIED)
    assert names(plan, Verb.CREATE) == ["Broker aws-use1/b-3"]
    assert names(plan, Verb.UPDATE) == ["BrokerCluster aws-use1"]
    [update] = [action for action in plan.actions if action.verb is Verb.UPDATE]
    assert update.changes == (Change("spec.brokers", 2, 3),)
    assert update.downtime_ms == 0


def test_fewer_brokers_are_taken_away_with_their_downtime() -> None:
    plan = make_plan(edited("{cloud: azure-eus, brokers: 2}", "{cloud: azure-eus, brokers: 1}"), APPLIED)
    [gone] = [action for action in plan.actions if action.verb is Verb.DELETE]
    assert (gone.name, gone.downtime_ms, gone.data_at_risk) == ("azure-eus/b-2", 20_000, None)


def test_settings_that_need_a_restart_say_how_long_partitions_are_away() -> None:
    spec = "{cloud: aws-use1, brokers: 2, settings: {uploadIntervalMs: 5000}}"
    [action] = make_plan(edited("{cloud: aws-use1, brokers: 2}", spec), APPLIED).actions
    what = "settings.uploadIntervalMs 10000 -> 5000; its brokers restart one by one"
    assert (action.what, action.downtime_ms) == (what, 300)


def test_a_cache_on_disk_is_a_setting_like_others() -> None:
    spec = "{cloud: aws-use1, brokers: 2, settings: {diskCache: {path: %s, size: 1GiB}}}"
    [action] = make_plan(edited("{cloud: aws-use1, brokers: 2}", spec % "/var/cache"), APPLIED).actions
    assert action.what.startswith("settings.diskCache") and "its brokers restart one by one" in action.what
    for wrong in ("var/cache", "/", "//"):
        with pytest.raises(Invalid, match=r"spec.settings.diskCache.path: '.*' is no absolute path of a folder"):
            make_plan(edited("{cloud: aws-use1, brokers: 2}", spec % wrong), APPLIED)


def test_partitions_grow_and_never_shrink() -> None:
    plan = make_plan(edited("partitions: 4", "partitions: 9"), APPLIED)
    assert [action.what for action in plan.actions] == ["partitions 4 -> 9"] * 4
    with pytest.raises(Invalid, match=r"^f.yaml:\d+: spec.partitions: aliyun-hz/orders has 4 partitions"):
        make_plan(edited("partitions: 4", "partitions: 3"), APPLIED)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("region: us-east-1", "region: eu-west-1", "cannot change from us-east-1 to eu-west-1 while aws-use1"),
        (
            "{cloud: gcp-usc1, brokers: 2}",
            "{cloud: gcp-usc1, brokers: 2, wal: {bytesMax: 1GiB}}",
            "volume cannot change yet",
        ),
        ("[us-central1-a, us-central1-b]", "[us-central1-a, us-central1-c]", "volume cannot change yet"),
        ("[use1-az4, use1-az5]", "[use1-az5, use1-az4]", "volume cannot change yet"),
    ],
)
def test_what_cannot_be_done_on_running_brokers_is_refused_with_its_place(old: str, new: str, says: str) -> None:
    with pytest.raises(Invalid, match=r"^f\.yaml:\d+: ") as caught:
        make_plan(edited(old, new), APPLIED)
    assert says in caught.value.message
    assert caught.value.hint


def test_a_switch_of_the_wal_shows_its_steps_what_each_costs_and_the_price_of_both() -> None:
    wanted = edited("{cloud: gcp-usc1, brokers: 2}", "{cloud: gcp-usc1, brokers: 2, wal: {mode: object}}")
    plan = make_plan(wanted, APPLIED)
    assert names(plan, Verb.UPDATE) == ["BrokerCluster gcp-usc1", "Broker gcp-usc1/b-1", "Broker gcp-usc1/b-2"]
    cluster, *brokers = plan.actions
    before, after = make_plan(specs(), Recorded()).resolved["gcp-usc1"].choice, plan.resolved["gcp-usc1"].choice
    assert cluster.what.startswith("wal regional-block -> object, broker by broker; ")
    assert f"{before.price.total:,.0f} USD -> {after.price.total:,.0f} USD a month" in cluster.what
    assert [b.what for b in brokers] == ["hands its partitions over and restarts on wal object"] * 2
    assert all(b.downtime_ms == 300 and b.api_calls == 3 for b in brokers)
    assert before.standing_usd_month and after.standing_usd_month is not None
    saved = after.standing_usd_month - before.standing_usd_month
    assert saved < 0 and [b.monthly_usd for b in brokers] == [saved, saved]
    assert make_plan(wanted, plan.recorded_after()).empty
    back = make_plan(
        edited("{cloud: gcp-usc1, brokers: 2}", "{cloud: gcp-usc1, brokers: 2, wal: {mode: regional-block}}"),
        plan.recorded_after(),
    )
    assert [b.monthly_usd for b in back.actions[1:]] == [-saved, -saved]


def test_a_single_broker_is_told_that_nobody_serves_while_its_wal_is_switched() -> None:
    one = "{cloud: gcp-usc1, brokers: 1"
    before = make_plan(edited("{cloud: gcp-usc1, brokers: 2}", f"{one}}}"), Recorded()).recorded_after()
    plan = make_plan(edited("{cloud: gcp-usc1, brokers: 2}", f"{one}, wal: {{mode: object}}}}"), before)
    cluster, broker = plan.actions
    assert "its one broker restarts, and nobody serves meanwhile" in cluster.what
    assert broker.downtime_ms == 20_000 and broker.what == "restarts on wal object"


def test_a_wal_that_loses_its_tail_with_a_zone_is_shown_as_data_at_risk() -> None:
    spec = "{cloud: gcp-usc1, brokers: 2, wal: {mode: zonal-block, acceptZoneLossRpo: true}}"
    plan = make_plan(edited("{cloud: gcp-usc1, brokers: 2}", spec), APPLIED)
    assert "up to 10 s of acked records" in (plan.actions[0].data_at_risk or "")


def test_a_broker_moves_to_a_zone_where_its_volume_is_attached() -> None:
    plan = make_plan(edited("[cn-hangzhou-h, cn-hangzhou-i]", "[cn-hangzhou-i, cn-hangzhou-h]"), APPLIED)
    assert names(plan, Verb.MOVE) == ["Broker aliyun-hz/b-1", "Broker aliyun-hz/b-2"]
    [first, _] = [action for action in plan.actions if action.verb is Verb.MOVE]
    assert first.what == "zone cn-hangzhou-h -> cn-hangzhou-i"
    assert first.downtime_ms == 20_000
    assert first.data_at_risk is None


def test_a_new_zone_leaves_running_brokers_where_they_are() -> None:
    plan = make_plan(edited("us-central1-b]", "us-central1-b, us-central1-c]"), APPLIED)
    assert [(action.verb, action.kind) for action in plan.actions] == [(Verb.UPDATE, "Cloud")]


def test_a_running_cluster_keeps_its_mode_when_its_cloud_learns_more() -> None:
    old = make_plan(
        edited("region: us-central1", "region: us-central1\n  capabilities: {regionalBlock: false}"), Recorded()
    )
    assert old.resolved["gcp-usc1"].choice.mode.value == "object"
    assert make_plan(specs(), Recorded()).resolved["gcp-usc1"].choice.mode.value == "regional-block"
    new = make_plan(specs(), old.recorded_after(), prune=True)
    assert new.resolved["gcp-usc1"].choice.mode.value == "object"
    assert names(new, Verb.UPDATE) == ["Cloud gcp-usc1"]


def test_an_impossible_wal_is_refused_at_its_place() -> None:
    text = EXAMPLE.replace(
        "{cloud: aws-use1, brokers: 2}", "{cloud: aws-use1, brokers: 2, wal: {mode: regional-block}}"
    )
    with pytest.raises(Invalid, match=r"^f\.yaml:60: spec\.wal: aws us-east-1 cannot have wal\.mode regional-block"):
        make_plan(specs(text), Recorded())


def test_real_clouds_get_the_object_wal_for_now() -> None:
    real = "target: real\n  real: {bucket: yunhe-cell, credentialsFile: /etc/yunhe/aws.json}"
    plan = make_plan(edited("region: us-east-1", f"region: us-east-1\n  {real}"), Recorded())
    assert plan.resolved["aws-use1"].choice.mode.value == "object"


def test_a_store_that_holds_nonsense_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        make_plan(specs(), Recorded(specs={("Cloud", "x"): {"kind": "Cloud"}}))


def test_plan_as_json_says_what_the_text_says() -> None:
    plan = make_plan(specs(), Recorded())
    plain = json.loads(json.dumps(plan_plain(plan)))
    assert (plain["plan"], plain["baseRevision"], plain["empty"]) == (plan.hash, 0, False)
    assert len(plain["actions"]) == 20
    modes = {cluster["cloud"]: cluster["wal"]["mode"] for cluster in plain["clusters"]}
    assert modes.pop("aws-use1") == "block+express"
    assert modes == dict.fromkeys(["aliyun-hz", "azure-eus", "gcp-usc1"], "regional-block")
    assert plain["monthlyUsd"] is None  # no price of an Aliyun node is published


def test_autoscaling_shows_its_spare_brokers_and_more_brokers_are_made_of_them() -> None:
    spec = "{cloud: aws-use1, brokers: %d, autoscale: {brokersMax: %d}}"
    scaled = edited("{cloud: aws-use1, brokers: 2}", spec % (2, 4))
    changed, *made = make_plan(scaled, APPLIED).actions
    assert changed.what.startswith("autoscale.") and changed.what.endswith("; its brokers restart one by one")
    assert [(a.name, a.what.split(", zone")[0]) for a in made] == [
        ("aws-use1/b-3", "new, spare"),
        ("aws-use1/b-4", "new, spare"),
    ]
    applied = make_plan(scaled, APPLIED).recorded_after()
    more = make_plan(edited("{cloud: aws-use1, brokers: 2}", spec % (3, 4)), applied)
    assert [(a.name, a.what.split("; it starts")[0]) for a in more.actions if a.kind == "Broker"] == [
        ("aws-use1/b-3", "spare 1 -> no"),
        ("aws-use1/b-4", "spare 2 -> 1"),
    ]
