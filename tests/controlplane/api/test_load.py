"""A wrong spec is refused with its place, what is allowed and a hint; a right one becomes frozen objects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from controlplane.api.load import load, load_texts
from controlplane.api.specs import Specs, from_plain
from providers.base.errors import Invalid

EXAMPLES = Path(__file__).parents[3] / "examples"

GOOD = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: azure-eus}
spec:
  provider: azure
  region: eastus
  zones: [1, 2]
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec:
  cloud: azure-eus
  brokers: 2
  wal: {bytesMax: 512MiB}
  objectives: {rpoZoneLoss: 0}
---
apiVersion: yunhe.io/v1alpha1
kind: Topic
metadata: {name: orders}
spec:
  clusters: main
  partitions: 4
  configs: {retention.ms: -1}
"""


BOMB = "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True))
"""Each list holds the one before it nine times: a few lines that unfold to millions of values."""


def refusal_of(text: str, **known: Specs) -> Invalid:
    with pytest.raises(Invalid) as caught:
        load_texts([("f.yaml", text)], **known)
    return caught.value


def test_a_good_file_becomes_objects() -> None:
    specs = load_texts([("f.yaml", GOOD)])
    assert specs.clouds["azure-eus"].spec.zones == ("1", "2")
    cluster = specs.clusters["main"].spec
    assert (cluster.brokers, cluster.engine, cluster.wal.mode, cluster.wal.bytes_max) == (
        2,
        "embedded",
        "auto",
        512 << 20,
    )
    assert cluster.listeners.host == "127.0.0.1"
    topic = specs.topics["orders"].spec
    assert (topic.clusters, topic.partitions, topic.configs.retention_ms) == (("main",), 4, -1)


@pytest.mark.parametrize(
    ("old", "new", "place", "says", "hint"),
    [
        (
            "provider: azure",
            "provider: azur",
            "f.yaml:5: spec.provider",
            "one of aliyun, azure, gcp, aws, private",
            "azure?",
        ),
        (
            "brokers: 2",
            "brokerz: 2",
            "f.yaml:14: spec.brokerz",
            "unknown field; allowed: cloud, brokers,",
            "did you mean brokers?",
        ),
        ("brokers: 2", 'brokers: "2"', "f.yaml:14: spec.brokers", "whole number, not '2'", "remove the quotes"),
        ("brokers: 2", "brokers: 2.5", "f.yaml:14: spec.brokers", "whole number, not 2.5", None),
        ("brokers: 2", "brokers: true", "f.yaml:14: spec.brokers", "whole number, not true", None),
        ("brokers: 2", "brokerz:\n    2", "f.yaml:14: spec.brokerz", "unknown field", "did you mean brokers?"),
        ("brokers: 2", "brokers: 0", "f.yaml:14: spec.brokers", "at least 1, not 0", None),
        ("brokers: 2", "brokers: 65", "f.yaml:14: spec.brokers", "at most 64, not 65", None),
        ("brokers: 2", "brokers: 33", "f.yaml:14: spec.brokers", "at most 32", "two a cloud"),
        (
            "brokers: 2",
            "brokers: 2\n  engine: kafka",
            "f.yaml:15: spec.engine",
            "not here yet, see README.md",
            "embedded",
        ),
        (
            "brokers: 2",
            "brokers: 2\n  engine: automq",
            "f.yaml:15: spec.engine",
            "runs on Kubernetes, and cloud",
            "add `kubernetes:",
        ),
        ("brokers: 2", "brokersPerZone: {3: 1}", "f.yaml:14: spec.brokersPerZone.3", "has no zone 3", "1, 2"),
        ("  brokers: 2\n", "", "f.yaml:13: spec", "either brokers or brokersPerZone", "brokers: 2"),
        (
            "brokers: 2",
            "brokers: 2\n  autoscale: {brokersMax: 2}",
            "f.yaml:13: spec",
            "is no more than brokers, 2",
            "more",
        ),
        (
            "brokers: 2",
            "brokers: 2\n  autoscale: {brokersMax: 33}",
            "f.yaml:14: spec.brokers",
            "at most 32",
            "two a cloud",
        ),
        (
            "brokers: 2",
            "brokersPerZone: {1: 1}\n  autoscale: {brokersMax: 4}",
            "f.yaml:13: spec",
            "without brokers",
            "least",
        ),
        (
            "brokers: 2",
            "brokers: 2\n  settings: {balanceIntervalMs: 0}\n  autoscale: {brokersMax: 4}",
            "f.yaml:13: spec",
            "turns balancing off",
            "would get no partition",
        ),
        (
            "bytesMax: 512MiB",
            "mode: objekt",
            "f.yaml:15: spec.wal.mode",
            "one of auto, regional-block,",
            "did you mean object?",
        ),
        (
            "bytesMax: 512MiB",
            "mode: zonal-block",
            "f.yaml:13: spec",
            "has not been accepted",
            "acceptZoneLossRpo: true",
        ),
        ("512MiB", "512MB", "f.yaml:15: spec.wal.bytesMax", "not a size in bytes", "256MiB"),
        ("rpoZoneLoss: 0", "rpoZoneLoss: soon", "f.yaml:16: spec.objectives.rpoZoneLoss", "not a duration", "90s"),
        ("[1, 2]", "[1, 1]", "f.yaml:7: spec.zones", "'1' stands there twice", None),
        ("[1, 2]", "[]", "f.yaml:7: spec.zones", "at least 1", None),
        ("[1, 2]", "1", "f.yaml:7: spec.zones", "must be a list, not 1", "[a, b]"),
        ("[1, 2]", "[1, eastus-1]", "f.yaml:7: spec.zones", "not a zone of Azure", "1, 2 and 3"),
        ("region: eastus", "region:", "f.yaml:6: spec.region", "must be text, not empty", None),
        ("region: eastus", "region: 5", "f.yaml:6: spec.region", "must be text, not 5", 'quote it: "5"'),
        ("  region: eastus\n", "", "f.yaml:5: spec.region", "is required", None),
        (
            "region: eastus",
            "region: eastus\n  secretKey: x",
            "f.yaml:7: spec.secretKey",
            "unknown field",
            "credentialsFile",
        ),
        ("region: eastus", "region: eastus\n  target: real", "f.yaml:5: spec", "needs the field real", "real: {bucket"),
        ("name: orders", "name: Orders", "f.yaml:20: metadata.name", "'Orders' is not a name", "RFC 1123"),
        ("name: orders", f"name: {'o' * 41}", "f.yaml:20: metadata.name", "is not a name", "1 to 40"),
        ("clusters: main", "clusters: mian", "f.yaml:22: spec.clusters[0]", "no BrokerCluster is named mian", "main?"),
        ("cloud: azure-eus", "cloud: azure", "f.yaml:13: spec.cloud", "no Cloud is named azure", "azure-eus"),
        ("partitions: 4", "partitions: 1001", "f.yaml:23: spec.partitions", "at most 1000", None),
        (
            "partitions: 4",
            "partitions: 4\n  partitions: 5",
            "f.yaml:24: spec.partitions",
            "stands there twice, first in line 23",
            "one",
        ),
        ("retention.ms", "flush.messages", "f.yaml:24: spec.configs.flush.messages", "allowed: retention.ms", None),
        (
            "ms: -1",
            "ms: -2",
            "f.yaml:24: spec.configs.retention.ms",
            "-1",
            None,
        ),
        ("kind: Topic", "kind: Topik", "f.yaml:19: kind", "one of Cloud, BrokerCluster, Topic", "did you mean Topic?"),
        ("kind: Topic", "kind: Link", "f.yaml:19: kind", "Link is not here yet", "README.md"),
        ("kind: Topic\n", "", "f.yaml:18: kind", "is required", "Cloud, BrokerCluster, Topic"),
        (
            "v1alpha1\nkind: Topic",
            "v1\nkind: Topic",
            "f.yaml:18: apiVersion",
            "'yunhe.io/v1' is not",
            "yunhe.io/v1alpha1",
        ),
    ],
)
def test_an_error_says_where_what_and_how(old: str, new: str, place: str, says: str, hint: str | None) -> None:
    assert old in GOOD
    error = refusal_of(GOOD.replace(old, new, 1))
    assert error.message.startswith(f"{place}: "), error.message
    assert says in error.message
    assert (error.hint is None) if hint is None else (hint in (error.hint or "")), error.hint
    assert "\n" not in error.message
    assert error.fields["errors"][0]["line"] == int(place.split(":")[1])


def test_a_cloud_without_object_storage_is_one_clear_sentence() -> None:
    text = GOOD.replace("region: eastus", "region: eastus\n  capabilities: {objectStore: none}")
    error = refusal_of(text)
    assert error.message == (
        "f.yaml:7: spec.capabilities.objectStore: cloud azure-eus has no object storage, "
        "and every cell keeps its ledger and its records there"
    )


def test_two_of_a_name_are_refused_with_both_places() -> None:
    error = refusal_of(GOOD + "---\n" + GOOD.split("---\n")[2])
    assert "f.yaml:28: metadata.name: a second Topic named orders; the first is at f.yaml:18" in error.message


def test_a_second_cluster_in_a_cloud_is_refused() -> None:
    error = refusal_of(GOOD + "---\n" + GOOD.split("---\n")[1].replace("name: main", "name: other"))
    assert "azure-eus already has the cluster main" in error.message


def test_all_errors_come_together_and_at_most_twenty_are_shown() -> None:
    bad = (
        GOOD.replace("azure\n", "azur\n").replace("brokers: 2", "brokers: x").replace("partitions: 4", "partitions: -1")
    )
    error = refusal_of(bad)
    assert [line.split(": ")[0] for line in error.message.split("\n")] == ["f.yaml:5", "f.yaml:14", "f.yaml:23"]
    many = "---\n".join(
        "apiVersion: yunhe.io/v1alpha1\nkind: Cloud\nmetadata: {name: a}\nspec: {}\n" for _ in range(30)
    )
    lines = refusal_of(many).message.split("\n")
    assert len(lines) == 21
    assert lines[-1] == "… and 70 more"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f.yaml holds no objects"),
        ("---\n---\n# only a comment\n", "f.yaml holds no objects"),
        ("- a\n- b\n", "f.yaml:1: a document must hold fields"),
        ("kind: Cloud\n  spec: x\n", "f.yaml:2: not YAML: "),
        ("a:\n\tb: 1\n", "f.yaml:2: not YAML: "),
        ("a: 'open\n", "not YAML: "),
        ("a: \x01\n", "f.yaml:1: holds a character that YAML does not allow"),
        ("\na: " + "[" * 100_000, "f.yaml:2: nested more than 32 deep"),
        ("a: &x [*x]\n", "f.yaml:1: aliases that unfold without end"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + BOMB, "aliases that unfold"),
        ("a: !!python/object/apply:os.system [x]\n", "f.yaml:1: "),
        ("a: !!python/name:os.system x\n", "f.yaml:1: a: YAML tag tag:yaml.org,2002:python/name:os.system is not"),
        ("<<: {a: 1}\n", "f.yaml:1: merge keys (<<) are not used here"),
        ("? [a]\n: b\n", "f.yaml:1: a field's name must be plain text"),
    ],
)  # fmt: skip
def test_what_is_no_spec_is_one_sentence(text: str, says: str) -> None:
    assert says in refusal_of(text).message


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    missing, binary, large = tmp_path / "missing.yaml", tmp_path / "latin.yaml", tmp_path / "large.yaml"
    binary.write_bytes(b"kind: Cloud\nname: caf\xe9\n")
    large.write_bytes(b"#" * ((4 << 20) + 1))
    for path, says in [
        (missing, f"{missing} does not exist"),
        (binary, f"{binary}:2: not UTF-8 text"),
        (large, f"{large} is larger than 4 MiB"),
        (tmp_path, f"{tmp_path} is a directory, not a file of specs"),
    ]:
        with pytest.raises(Invalid) as caught:
            load([path])
        assert caught.value.message == says


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert len(load([path])) == 3


def test_references_may_point_at_what_is_applied_already() -> None:
    known = load_texts([("f.yaml", GOOD)])
    topic = GOOD.split("---\n")[2].replace("orders", "billing")
    specs = load_texts([("g.yaml", topic)], known=known)
    assert list(specs.topics) == ["billing"]
    assert not specs.clusters
    assert "no BrokerCluster is named" in refusal_of(topic.replace("main", "other"), known=known).message


def test_what_is_wrong_with_an_applied_object_is_named_without_a_line() -> None:
    known = load_texts([("f.yaml", GOOD)])
    other_zone = GOOD.split("---\n")[0].replace("[1, 2]", "[3]")
    known = Specs.of([*known, *load_texts([("g.yaml", GOOD.replace("brokers: 2", "brokersPerZone: {1: 1}"))])])
    error = refusal_of(other_zone, known=known)
    assert error.message == "BrokerCluster main: spec.brokersPerZone.1: cloud azure-eus has no zone 1"


def test_objects_are_frozen() -> None:
    cloud = load_texts([("f.yaml", GOOD)]).clouds["azure-eus"]
    with pytest.raises(ValidationError):
        cloud.spec.region = "westus"


def test_what_the_store_keeps_reads_back_equal() -> None:
    specs = load([EXAMPLES / "four-clouds.yaml", EXAMPLES / "private.yaml"])
    again = Specs.of(from_plain(json.loads(json.dumps(plain))) for plain in specs.plain().values())
    assert again == specs


def test_the_example_is_four_clouds_with_two_brokers_each() -> None:
    specs = load([EXAMPLES / "four-clouds.yaml"])
    assert sorted(cloud.spec.provider for cloud in specs.clouds.values()) == ["aliyun", "aws", "azure", "gcp"]
    assert [cluster.spec.brokers for cluster in specs.clusters.values()] == [2, 2, 2, 2]
    assert set(specs.topics["orders"].spec.clusters) == set(specs.clusters)


def test_loading_specs_imports_no_cloud_sdk() -> None:
    code = (
        "import sys; from controlplane.api.load import load; load(sys.argv[1:]);"
        "print([m for m in ('boto3', 'oss2', 'azure', 'google.cloud', 'aiohttp', 'fastapi') if m in sys.modules])"
    )
    example = str(EXAMPLES / "four-clouds.yaml")
    done = subprocess.run([sys.executable, "-c", code, example], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
