"""Checks of uploads by a topic: the cluster and topic are there, edges can log in, and a file fits into a record."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.api.across import at, unknown
from controlplane.api.databases import Database, Via
from controlplane.api.source import Problem
from controlplane.api.specs import Specs

PARTITIONS_MAX = 16
"""Of one topic: the database's owner has a consumer for each."""
MEMTABLE_BYTES_MAX = 1 << 20
"""Of a table whose files go by a topic: a file of half of it fits into a record, which is 900,000 bytes at most."""


def problems_of_via(specs: Specs, database: Database, to: str, via: Via) -> Iterator[Problem]:
    """What is wrong with an upload to `to` by a topic."""
    name, path = database.metadata.name, ("spec", "upload", "via")
    cluster, topic = specs.clusters.get(via.cluster), specs.topics.get(via.topic)
    if cluster is None:
        yield unknown(specs, "Database", name, (*path, "cluster"), "BrokerCluster", via.cluster)
        return
    if topic is None:
        yield unknown(specs, "Database", name, (*path, "topic"), "Topic", via.topic)
        return
    if via.cluster not in topic.spec.clusters:
        what = f"topic {via.topic} is not on cluster {via.cluster}"
        yield at(specs, "Database", name, (*path, "topic"), what, f"it is on: {', '.join(topic.spec.clusters)}")
    if topic.spec.partitions > PARTITIONS_MAX:
        what = f"topic {via.topic} has {topic.spec.partitions} partitions, and a database consumes {PARTITIONS_MAX}"
        yield at(specs, "Database", name, (*path, "topic"), what, "name a topic with fewer partitions")
    for other in specs.databases.values():
        theirs = other.spec.upload
        if theirs is None or theirs.via is None or (theirs.via.cluster, theirs.via.topic) != (via.cluster, via.topic):
            continue
        if theirs.to != to and other.metadata.name < name:
            what = f"topic {via.topic} of {via.cluster} carries files for {theirs.to}, by {other.metadata.name}"
            yield at(specs, "Database", name, (*path, "topic"), what, "a topic is for one database: use another one")
    yield from _security(specs, name, via)
    target = specs.databases.get(to)
    tables = database.spec.tables or (target.spec.tables if target is not None else ())
    for table in tables:
        if table.options.memtable_bytes > MEMTABLE_BYTES_MAX:
            what = f"memtableBytes of table {table.name} is above 1MiB: its files would not fit into a topic's records"
            yield at(specs, "Database", name, path, what, "name the table here with less, or upload to the bucket")


def _security(specs: Specs, name: str, via: Via) -> Iterator[Problem]:
    listeners, path = specs.clusters[via.cluster].spec.listeners, ("spec", "upload", "via")
    if listeners.sasl is not None and via.login is None:
        what = f"cluster {via.cluster} wants a login ({listeners.protocol}), and via has none"
        yield at(specs, "Database", name, path, what, "for example `login: file:/etc/yunhe/edge.json`")
    if listeners.sasl is None and via.login is not None:
        what = f"login is set although cluster {via.cluster} has protocol {listeners.protocol}"
        yield at(specs, "Database", name, (*path, "login"), what, "remove the field login")
    if listeners.tls is None and via.ca_file is not None:
        what = f"caFile is set although cluster {via.cluster} has protocol {listeners.protocol}"
        yield at(specs, "Database", name, (*path, "caFile"), what, "remove the field caFile")
    if listeners.tls is not None and listeners.tls.client_auth == "required":
        what = f"cluster {via.cluster} wants certificates of its clients, which databases do not have yet"
        yield at(specs, "Database", name, path, what, "choose a SASL protocol")
