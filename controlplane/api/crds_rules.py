"""What the specs' validators say over several fields of one object, in CEL, and which rules cannot be said so.

Kept beside the pydantic kinds by a test that hands the same objects to both, and by `ANSWERED`: a validator that is not
in it stops the generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule over `self`; `message`: the CLI's sentence and, in brackets, its hint. `path`: the field that is to
    blame."""

    cel: str
    message: str
    path: str = ""

    def plain(self) -> dict[str, Any]:
        """As a CustomResourceDefinition writes it."""
        return {"rule": self.cel, "message": self.message} | ({"fieldPath": self.path} if self.path else {})


def duration_ms(of: str) -> str:
    """CEL: milliseconds of a duration that is text."""
    head = f"{of}.substring(0, size({of}) - 1)"
    units = {"s": 1_000, "m": 60_000, "h": 3_600_000}
    text = f"int({head}) * 86400000"
    for unit, factor in reversed(units.items()):
        text = f"{of}.endsWith('{unit}') ? int({head}) * {factor} : ({text})"
    return f"({of}.endsWith('ms') ? int({of}.substring(0, size({of}) - 2)) : ({text}))"


def _bytes(of: str) -> str:
    """CEL: the bytes of a size, number or text."""
    text = f"int({of}.trim())"
    for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), 1):
        text = f"{of}.endsWith('{unit}') ? int({of}.replace('{unit}', '').trim()) * {1 << 10 * power} : ({text})"
    return f"({text})"


def size_rule(field: str, least: int, most: int) -> Rule:
    """The bounds of a size that is written as text: a schema's own minimum and maximum hold for numbers only."""
    amount = _bytes("string(self)")
    return Rule(
        f"type(self) == int || ({amount} >= {least} && {amount} <= {most})",
        f"{field} must be at least {least} and at most {most} bytes",
    )


def _more_than_nothing(field: str, hint: str) -> Rule:
    return Rule(
        f"!has(self.{field}) || (type(self.{field}) == string && string(self.{field}).matches('[1-9]'))",
        f"{field} must be more than 0 ({hint})",
        f".{field}",
    )


def _url(field: str) -> tuple[Rule, ...]:
    return (
        Rule(
            f"!has(self.{field}) || self.{field}.matches('^https?://[\\\\s\\\\S]')",
            f"{field} is not a URL (write it as https://host or http://host:port)",
            f".{field}",
        ),
        Rule(
            f"!has(self.{field}) || !self.{field}.matches('^https?://[^/]*@')",
            f"{field} holds a user or a password (put credentials into the file that credentialsFile names)",
            f".{field}",
        ),
    )


def _with_protocol(field: str, protocols: str) -> tuple[Rule, ...]:
    wanted = f"self.protocol in [{protocols}]"
    return (
        Rule(f"!({wanted}) || has(self.{field})", f"the protocol needs the field {field}", ".protocol"),
        Rule(f"{wanted} || !has(self.{field})", f"{field} is not for this protocol (remove the field {field})"),
    )


def _of_role(role: str, *fields: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            f"self.role == '{role}' || !has(self.{field})",
            f"{field} is for role {role} (remove the field {field})",
            f".{field}",
        )
        for field in fields
    )


RULES: Mapping[str, tuple[Rule, ...]] = {
    "RealTarget": (*_url("endpoint"), *_url("controlEndpoint")),
    "CloudSpec": (
        Rule(
            "self.zones.all(z, self.zones.exists_one(y, string(y) == string(z)))", "a zone stands there twice", ".zones"
        ),
        Rule("self.target != 'real' || has(self.real)", "target real needs the field real", ".target"),
        Rule(
            "self.target != 'lab' || !has(self.real)",
            "real is set although target is lab (set target: real, or remove the field real)",
            ".real",
        ),
        Rule(
            "self.target != 'lab' || !has(self.kubernetes)",
            "kubernetes is set although target is lab (set target: real, or remove kubernetes)",
            ".kubernetes",
        ),
        Rule(
            "!has(self.kubernetes) || !has(self.kubernetes.storageClasses)"
            " || self.kubernetes.storageClasses.all(k, self.zones.exists(z, string(z) == k))",
            "kubernetes.storageClasses names a zone that is none of the cloud's zones",
            ".kubernetes",
        ),
    ),
    "GreptimeDb": (
        Rule(
            "!has(self.version) || !has(self.image)",
            "version and image are both set (write the version as the image's tag, and drop version)",
        ),
    ),
    "Settings": (
        Rule(
            "self.sessionTimeoutMs >= 3 * self.heartbeatIntervalMs",
            "sessionTimeoutMs is less than three heartbeats (one late heartbeat would count as a death)",
            ".sessionTimeoutMs",
        ),
    ),
    "BrokerClusterSpec": (
        Rule(
            "has(self.brokers) != has(self.brokersPerZone)",
            "either brokers or brokersPerZone is needed, and not both (for example brokers: 2)",
        ),
        Rule(
            "!has(self.brokersPerZone) || (self.brokersPerZone.map(z, self.brokersPerZone[z]).sum() >= 1"
            " && self.brokersPerZone.map(z, self.brokersPerZone[z]).sum() <= 64)",
            "brokersPerZone must add up to 1 to 64 brokers",
            ".brokersPerZone",
        ),
        Rule(
            "!has(self.brokersPerZone) || self.brokersPerZone.all(z, size(z) >= 1 && size(z) <= 40)",
            "a zone has 1 to 40 characters",
            ".brokersPerZone",
        ),
        Rule(
            "!has(self.autoscale) || self.engine == 'embedded'",
            "autoscale is set although engine is automq (remove autoscale)",
            ".autoscale",
        ),
        Rule(
            "!has(self.autoscale) || has(self.brokers)",
            "autoscale is set without brokers (write brokers, the least, instead of brokersPerZone)",
            ".autoscale",
        ),
        Rule(
            "!has(self.autoscale) || !has(self.brokers) || self.autoscale.brokersMax > self.brokers",
            "autoscale.brokersMax is no more than brokers (write more, or remove autoscale)",
            ".autoscale",
        ),
        Rule(
            "!has(self.autoscale) || self.settings.balanceIntervalMs > 0",
            "autoscale is set although settings.balanceIntervalMs 0 turns balancing off (remove one of the two)",
            ".autoscale",
        ),
        Rule(
            "self.wal.mode != 'zonal-block' || self.wal.acceptZoneLossRpo",
            "wal.mode zonal-block loses acked records when its zone dies, and that has not been accepted"
            " (add acceptZoneLossRpo: true to wal, or choose another mode)",
            ".wal.mode",
        ),
        Rule(
            "self.wal.mode != 'zonal-block' || !has(self.objectives.rpoZoneLoss)"
            " || (type(self.objectives.rpoZoneLoss) == string && string(self.objectives.rpoZoneLoss).matches('[1-9]'))",
            "objectives.rpoZoneLoss 0 contradicts wal.mode zonal-block (drop one of the two)",
            ".objectives",
        ),
        Rule(
            "!has(self.automq) || self.engine == 'automq'",
            "automq is set although engine is another one (set engine: automq, or remove automq)",
            ".automq",
        ),
        Rule(
            "!has(self.authorization) || !(self.listeners.protocol == 'PLAINTEXT' || (self.listeners.protocol == 'SSL'"
            " && (!has(self.listeners.tls) || self.listeners.tls.clientAuth == 'none')))",
            "authorization needs clients that say who they are"
            " (choose a SASL protocol, or SSL with clientAuth: required)",
            ".authorization",
        ),
        Rule(
            "has(self.listeners.peerSecret) == has(oldSelf.listeners.peerSecret) && (!has(self.listeners.peerSecret)"
            " || self.listeners.peerSecret == oldSelf.listeners.peerSecret)",
            "peerSecret of a running cluster cannot change yet"
            " (change what is in the file that it names, or create a second cluster)",
            ".listeners",
        ),
        Rule(
            "self.cloud == oldSelf.cloud",
            "a cluster cannot move to another cloud (create a second cluster there)",
            ".cloud",
        ),
    ),
    "Tls": (
        Rule(
            "self.clientAuth == 'none' || has(self.clientCaFile)",
            "clientAuth needs the field clientCaFile (name who signs clients' certificates)",
            ".clientAuth",
        ),
    ),
    "Listeners": (
        *_with_protocol("tls", "'SSL', 'SASL_SSL'"),
        *_with_protocol("sasl", "'SASL_PLAINTEXT', 'SASL_SSL'"),
        Rule(
            "!has(self.sasl) || !('PLAIN' in self.sasl.mechanisms) || self.protocol == 'SASL_SSL'",
            "PLAIN hands passwords over in the clear (set protocol: SASL_SSL, or leave PLAIN out)",
            ".sasl",
        ),
        Rule(
            "self.protocol == 'PLAINTEXT' || has(self.peerSecret)",
            "the protocol needs the field peerSecret"
            " (else whoever reaches a broker's other port can speak as a broker)",
            ".protocol",
        ),
    ),
    "TopicSpec": (
        Rule(
            "self.partitions >= oldSelf.partitions || !self.clusters.exists(c, c in oldSelf.clusters)",
            "partitions cannot be taken away (write as many or more, or create another topic)",
            ".partitions",
        ),
    ),
    "TableOptions": (
        _more_than_nothing("walSyncInterval", "for example 1s"),
        _more_than_nothing("flushInterval", "for example 1s"),
        _more_than_nothing("ttl", "leave it out to keep rows for ever"),
    ),
    "Table": (
        Rule(
            "self.columns.exists_one(c, c.role == 'time')",
            "a table needs exactly one column with role time (for example {name: ts, type: timestamp_ms, role: time})",
            ".columns",
        ),
    ),
    "TableColumn": (
        Rule(
            "self.role != 'time' || self.type.startsWith('timestamp')",
            "the time index must be a timestamp (for example timestamp_ms)",
            ".type",
        ),
        Rule(
            "self.role != 'time' || !has(self.nullable) || !self.nullable",
            "the time index cannot be nullable (remove nullable there)",
            ".nullable",
        ),
        Rule(
            "self.role != 'tag' || !(self.type in ['float32', 'float64', 'binary'])",
            "a tag of this type names no series (floats and bytes are fields)",
            ".type",
        ),
        Rule(
            "!has(self.decimals) || (self.role == 'field' && self.type in ['float32', 'float64'])",
            "this column cannot have decimals (they are of fields of type float32 or float64)",
            ".decimals",
        ),
    ),
    "Upload": (
        Rule(
            f"type(self.interval) == string && {duration_ms('string(self.interval)')} >= 50",
            "upload.interval must be at least 50ms (each look costs a request)",
            ".interval",
        ),
    ),
    "DatabaseSpec": (
        *_of_role("edge", "edges", "edgeNames", "upload"),
        *_of_role("cloud", "nodes", "wal", "lease", "cache", "createTables"),
        Rule(
            "has(self.users) || self.host == 'localhost' || (isIP(self.host) && ip(self.host).isLoopback())",
            "host is reached by others, and without users everybody could read and write"
            " (name where users and their passwords are: users: /etc/yunhe/users.json)",
            ".host",
        ),
        Rule(
            "!has(self.greptimedb) || self.engine == 'greptimedb'",
            "greptimedb is set although engine is another one (set engine: greptimedb, or remove greptimedb)",
            ".greptimedb",
        ),
        Rule(
            "self.role != 'edge' || self.engine == 'embedded'",
            "this engine is for role cloud (leave engine out, or write embedded)",
            ".engine",
        ),
        Rule(
            "self.role != 'edge' || has(self.edges) != has(self.edgeNames)",
            "role edge needs either edges or edgeNames, and not both (for example edges: 10)",
        ),
        Rule(
            "!has(self.lease) || (type(self.lease) == string"
            f" && {duration_ms('string(self.lease)')} >= 500 && {duration_ms('string(self.lease)')} <= 600000)",
            "lease must be 500ms to 10m (shorter, and a pause of a busy machine is a failover)",
            ".lease",
        ),
        Rule("self.role == oldSelf.role", "a database's role cannot change (create another one beside it)", ".role"),
        Rule(
            "self.cloud == oldSelf.cloud",
            "a database cannot move to another cloud (create another one there; its data stays where it is)",
            ".cloud",
        ),
    ),
}
"""By the model's name. `oldSelf` makes a rule one of changes: what the planner refuses of what exists."""

ANSWERED = frozenset(
    {
        "RealTarget._endpoints_are_plain",
        "CloudSpec._is_consistent",
        "GreptimeDb._one_image",
        "Settings._timeout_spans_heartbeats",
        "BrokerClusterSpec._is_consistent",
        "Tls._has_an_authority",
        "Listeners._is_consistent",
        "TableOptions._spans_are_positive",
        "Table._is_a_schema",
        "Upload._looks_now_and_then",
        "DatabaseSpec._is_consistent",
    }
)
"""The models' validators that the rules above stand for."""

STRICTER = {
    "one cluster without brackets": "clusters of a Topic is a list, and one name stands in brackets",
    "an unquoted off": "a table's wal: off is written in quotes, for YAML reads the bare word as false",
    "free text": "text that names a host, a file or an address has at most 1024 characters",
    "tables": "a Database names at most 250 tables; clients can make more",
    "zones named": "brokersPerZone names at most eight zones; no cloud has more",
}
"""What a custom resource refuses and a YAML file may hold: matters of form."""

WEBHOOKS = {
    "references": "a Cloud, BrokerCluster or Database that is named has to be there",
    "zones": "a zone of brokersPerZone is one of the cloud's, and the cloud's zones are the provider's",
    "one cluster a cloud": "a cloud has one cluster",
    "lab": "brokers and databases of the lab, together, fit on one machine",
    "names of processes": "an edge's name is its own over all databases, and no broker's",
    "prefixes": "a database is not called as a cluster or cell in whose bucket it is",
    "tables": "an edge's tables are those of the database that it uploads to",
    "names in bytes": "names of tables and columns have at most 200 bytes, and a schema counts characters",
    "null for a default": "null where a field has a default is taken as left out, not refused",
    "a cloud's place": "provider, region, target and bucket stay while a cluster or database has data there",
    "columns": "a table's columns keep their places, and new ones are nullable fields at the end",
    "volumes": "a running broker's zone and WAL volume stay",
    "WAL": "a WAL mode or an objective that the cloud does not meet",
}
"""What one object's schema cannot say: it compares objects, or states, or needs the planner. The validating webhook
refuses it, in the CLI's words; `null for a default` is let through."""
