"""A wrong Database is refused with its place, what is allowed and a hint; a right one is what the database itself calls
a schema."""

from __future__ import annotations

import typing
from dataclasses import fields
from typing import Any

import pytest

from controlplane.api import databases
from controlplane.api.databases import ColumnRoleName, ColumnTypeName, Table, TableOptions
from controlplane.api.load import load_texts
from controlplane.api.specs import Specs, from_plain
from dataplane.contract.database import LIVE_FIELDS, DatabaseSpec, needs_restart
from dataplane.tsdb.process.tables import columns_of
from dataplane.tsdb.schema import tables as schema
from providers.base.errors import Invalid

GOOD = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [a, b]}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: fleet}
spec:
  role: cloud
  cloud: plant
  nodes: 2
  lease: 3s
  cache: 256MiB
  tables:
    - name: motor
      columns:
        - {name: vehicle, type: string, role: tag}
        - {name: ts, type: timestamp_ms, role: time}
        - {name: rpm, type: float32}
      options: {ttl: 30d, mergeMode: last_non_null}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: cars}
spec:
  role: edge
  cloud: plant
  edges: 2
  memory: 32MiB
  upload: {to: fleet, bytesPerSecond: 1MiB, interval: 500ms, keepLocal: 1h}
  tables:
    - name: motor
      columns:
        - {name: vehicle, type: string, role: tag}
        - {name: ts, type: "timestamp[ms]", role: time}
        - {name: rpm, type: float32}
      options: {wal: off, flushInterval: 5s, memtableBytes: 4MiB, uploadPriority: 3}
"""

# Of the edge's table only: what stands there that does not stand in the cloud's.
VEHICLE = 'type: string, role: tag}\n        - {name: ts, type: "'
RPM = "name: rpm, type: float32}\n      options: {wal"


def refusal_of(text: str, **known: Specs) -> Invalid:
    with pytest.raises(Invalid) as caught:
        load_texts([("f.yaml", text)], **known)
    return caught.value


def test_a_good_pair_becomes_objects_and_reads_back_equal() -> None:
    specs = load_texts([("f.yaml", GOOD)])
    fleet, cars = specs.databases["fleet"], specs.databases["cars"]
    assert fleet.node_names == ("fleet-1", "fleet-2") and cars.node_names == ("cars-1", "cars-2")
    assert cars.spec.tables[0].options.wal == "off", "YAML's bare off is a word here"
    assert cars.spec.upload is not None and cars.spec.upload.bytes_per_second == 1 << 20
    assert Specs.of(from_plain(plain) for plain in specs.plain().values()) == specs


@pytest.mark.parametrize(
    ("old", "new", "place", "says", "hint"),
    [
        ("role: cloud\n  cloud: plant", "role: cloud\n  cloud: plan", "f.yaml:11: spec.cloud", "no Cloud", "plant?"),
        ("role: edge", "role: egde", "f.yaml:27: spec.role", "one of edge, cloud", "edge?"),
        ("upload: {to: fleet,", "upload: {to: flet,", "f.yaml:31: spec.upload.to", "no Database", "fleet?"),
        (
            "upload: {to: fleet,",
            "upload: {to: cars,",
            "f.yaml:31: spec.upload.to",
            "cars has role edge",
            "known: fleet",
        ),
        ("edges: 2", "nodes: 2", "f.yaml:27: spec", "nodes is for role cloud", "remove the field nodes"),
        ("nodes: 2", "edges: 2", "f.yaml:10: spec", "edges is for role edge", "remove the field edges"),
        ("nodes: 2", "wal: {mode: regional-block}", "f.yaml:12: spec.wal.mode", "not here yet", "mode: object"),
        ("nodes: 2", "engine: graphite", "f.yaml:12: spec.engine", "one of embedded, greptimedb", None),
        ("edges: 2", "edges: 2\n  engine: greptimedb", "f.yaml:27: spec", "greptimedb is for role cloud", "embedded"),
        ("nodes: 2", "nodes: 4", "f.yaml:12: spec.nodes", "at most 3", None),
        ("nodes: 2", "host: 0.0.0.0", "f.yaml:10: spec", "reached by others", "users"),
        ("lease: 3s", "lease: 10ms", "f.yaml:10: spec", "lease must be 500ms", "failover"),
        ("  edges: 2\n", "", "f.yaml:27: spec", "either edges or edgeNames", "edges: 10"),
        ("edges: 2", "edgeNames: [v-1, v-1]", "f.yaml:29: spec.edgeNames", "'v-1' stands there twice", None),
        ("edges: 2", "edgeNames: [fleet-1]", "f.yaml:29: spec.edgeNames", "process of Database fleet too", "rename"),
        ("edges: 2", "edgeNames: [b-1]", "f.yaml:29: spec.edgeNames", "what a broker is called", "another name"),
        ("bytesPerSecond", "bytesPersecond", "f.yaml:31: spec.upload.bytesPersecond", "unknown", "bytesPerSecond?"),
        ("uploadPriority", "priority", "f.yaml:38: spec.tables[0].options.priority", "unknown field", None),
        (
            "type: float32}\n      options: {ttl",
            "type: flaot32}\n      options: {ttl",
            "f.yaml:20",
            "one of",
            "float32?",
        ),
        ("mergeMode: last_non_null", "mergeMode: last_nonnull", "f.yaml:21", "one of last_row", "last_non_null?"),
        ("ttl: 30d", "ttl: 0s", "f.yaml:21: spec.tables[0].options", "ttl must be more than 0", "for ever"),
        ("wal: off", "wal: sometimes", "f.yaml:38", "one of always, periodic, off", None),
        ('"timestamp[ms]", role: time', '"timestamp[ms]"', "f.yaml:33: spec.tables[0]", "exactly one column", "ts"),
        ('"timestamp[ms]", role: time', "int64, role: time", "f.yaml:33: spec.tables[0]", "must be a timestamp", None),
        (RPM, RPM.replace("rpm", "ts"), "f.yaml:33", "'ts' stands there twice", None),
        (VEHICLE, VEHICLE.replace("string", "float64"), "f.yaml:33: spec.tables[0]", "names no series", "fields"),
        (
            f"motor\n      columns:\n        - {{name: vehicle, {VEHICLE}",
            f"engine\n      columns:\n        - {{name: vehicle, {VEHICLE}",
            "f.yaml:33: spec.tables[0]",
            "not in fleet",
            "createTables",
        ),
        (RPM, RPM.replace("float32", "string"), "f.yaml:33", "rpm is string here and float32 there", "columns"),
        (RPM, RPM.replace("float32", "float32, decimals: 1"), "f.yaml:33", "rpm has other decimals here", "decimals"),
        (
            "type: float32}\n      options: {ttl",
            "type: int8, decimals: 1}\n      options: {ttl",
            "f.yaml:16: spec.tables[0]",
            "rpm of motor is a field of type int8, and has decimals",
            "float32 or float64",
        ),
        (
            "type: float32}\n      options: {ttl",
            "type: float32, decimals: 10}\n      options: {ttl",
            "f.yaml:20",
            "at most 9",
            None,
        ),
        (RPM, RPM.replace("rpm", "rps"), "f.yaml:33", "column 3 is rps here and rpm there", "columns"),
        (
            "metadata: {name: fleet}",
            "metadata: {name: plant}",
            "f.yaml:8: metadata.name",
            "keeps its own ledger",
            "-db",
        ),
    ],
)
def test_an_error_says_where_what_and_how(old: str, new: str, place: str, says: str, hint: str | None) -> None:
    assert old in GOOD
    error = refusal_of(GOOD.replace(old, new, 1))
    assert place in error.message and says in error.message, error.message
    if hint is not None:
        assert hint in (error.hint or error.message), (error.hint, error.message)


def test_two_databases_of_one_name_are_refused_with_both_places() -> None:
    assert "the first is at f.yaml:6" in refusal_of(GOOD.replace("name: cars", "name: fleet")).message


def test_more_processes_than_a_machine_holds_are_refused() -> None:
    assert "at most 64" in refusal_of(GOOD.replace("edges: 2", "edges: 63")).message


def test_columns_grow_at_the_end_on_either_side() -> None:
    more = "type: float32}\n        - {name: temp, type: float32}"
    load_texts([("f.yaml", GOOD.replace("type: float32}", more, 1))])
    load_texts([("f.yaml", more.join(GOOD.rsplit("type: float32}", 1)))])


def test_references_may_point_at_what_is_applied_already() -> None:
    first, edges = GOOD.rsplit("---\n", 1)
    known = load_texts([("f.yaml", first)])
    assert list(load_texts([("g.yaml", edges)], known=known).databases) == ["cars"]


def test_words_and_defaults_are_the_databases_own() -> None:
    assert typing.get_args(ColumnTypeName) == tuple(kind.value for kind in schema.ColumnType)
    assert set(typing.get_args(ColumnRoleName)) == {role.value for role in schema.ColumnRole}
    for bound in ("COLUMNS_MAX", "NAME_BYTES_MAX", "DECIMALS_MAX"):
        assert getattr(databases, bound) == getattr(schema, bound)
    assert databases._NAME.pattern == schema._NAME.pattern
    for field, kind in (("merge_mode", schema.MergeMode), ("wal", schema.WalSync)):
        words: Any = TableOptions.model_fields[field].annotation
        assert set(typing.get_args(words)) == {word.value for word in kind}
    theirs, told = schema.TableOptions(), table().to_contract().options
    assert {f.name for f in fields(theirs)} == {*told, "ttl_ms"}
    assert all(getattr(theirs, name) == value for name, value in told.items())
    node = DatabaseSpec("d", "d-1", role="edge", zone="a")  # type: ignore[arg-type]
    assert databases.DatabaseSpec.model_fields["memory"].default == node.memory_bytes_max


def table(**options: Any) -> Table:
    columns = [{"name": "ts", "type": "timestamp_us", "role": "time"}, {"name": "v", "type": "int8"}]
    columns.append({"name": "w", "type": "float32", "decimals": 2})
    return Table.model_validate({"name": "t", "columns": columns, "options": options})


def test_what_is_told_of_a_table_makes_a_schema() -> None:
    told = table(ttl="1h", wal=False, memtableBytes="2MiB").to_contract()
    columns = columns_of(told)
    made = schema.TableSchema(told.name, columns, options=schema.TableOptions(**told.options))  # type: ignore[arg-type]
    assert (made.options.ttl_ms, made.options.wal, made.options.memtable_bytes_max) == (3_600_000, "off", 2 << 20)
    assert [(c.nullable, c.decimals) for c in made.columns] == [(False, None), (True, None), (True, 2)]


def test_a_process_takes_over_trust_and_topics_while_it_runs_and_nothing_else() -> None:
    running = DatabaseSpec("d", "d-1", role="cloud", zone="a", http_port=4000, mysql_port=4001, postgres_port=4003)  # type: ignore[arg-type]
    wanted = DatabaseSpec("d", "d-1", role="cloud", zone="a", trust={"v": "00"})  # type: ignore[arg-type]
    assert LIVE_FIELDS == ("trust", "topics", "pin") and not needs_restart(running, wanted)
    assert needs_restart(running, DatabaseSpec("d", "d-1", role="cloud", zone="a", lease_ms=9))  # type: ignore[arg-type]
    assert needs_restart(running, DatabaseSpec("d", "d-1", role="cloud", zone="a", http_port=5000))  # type: ignore[arg-type]
