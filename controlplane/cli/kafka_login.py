"""How the command line's own Kafka clients log in to a secured cluster: a properties file, as kcat and other clients of
librdkafka take it.

    # admin.properties
    security.protocol=SASL_SSL
    sasl.mechanism=SCRAM-SHA-512
    sasl.username=admin
    # or file:PATH, or the password itself
    sasl.password=env:ADMIN_PASSWORD
    ssl.ca.location=/etc/yunhe/ca.pem

Given by `--command-config` or YUNHE_KAFKA_CONFIG: nothing of it shows in the list of processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from providers.base.errors import Invalid

KNOWN = frozenset(
    {
        "security.protocol",
        "sasl.mechanism",
        "sasl.username",
        "sasl.password",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.endpoint.identification.algorithm",
    }
)
SECRET = frozenset({"sasl.password", "ssl.key.password"})
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
FILE_BYTES_MAX = 64 << 10
HINT = "see the file of --command-config"
"""For whoever is not let in with it."""

LoginOption = Annotated[
    Path | None,
    typer.Option(
        "--command-config",
        envvar="YUNHE_KAFKA_CONFIG",
        help="Properties file with which Kafka clients of this command log in, as kcat's -F.",
    ),
]


@dataclass(frozen=True, slots=True)
class KafkaLogin:
    """What a client of a cluster needs beside its address; nothing for one that is open."""

    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def client(self, bootstrap: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Configuration of a librdkafka client."""
        return {"bootstrap.servers": bootstrap, "log_level": 0, **self.properties, **(settings or {})}

    @property
    def protocol(self) -> str:
        """One of PROTOCOLS."""
        return self.properties.get("security.protocol", "PLAINTEXT")


OPEN = KafkaLogin()
"""For clusters that let everybody in."""


def read_login(path: Path | None, environment: Mapping[str, str] = os.environ) -> KafkaLogin:
    """The login that a properties file states; OPEN without one.

    Raises:
        Invalid: the file cannot be read, or a line of it is not understood.
    """
    if path is None:
        return OPEN
    found: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        where = f"{path}:{number}"
        name = "sasl.mechanism" if name == "sasl.mechanisms" else name
        if not equals or name not in KNOWN:
            raise Invalid(f"{where}: {name!r} is not a setting of a login", hint=f"one of {', '.join(sorted(KNOWN))}")
        if name in found:
            raise Invalid(f"{where}: {name} is there twice")
        found[name] = _secret(value, where, environment) if name in SECRET else value
    protocol = found.get("security.protocol", "PLAINTEXT")
    if protocol not in PROTOCOLS:
        raise Invalid(f"{path}: {protocol!r} is not a security.protocol", hint=f"one of {', '.join(PROTOCOLS)}")
    if protocol.startswith("SASL") and not {"sasl.mechanism", "sasl.username", "sasl.password"} <= found.keys():
        raise Invalid(f"{path}: {protocol} needs sasl.mechanism, sasl.username and sasl.password")
    return KafkaLogin(MappingProxyType(found))


def _secret(value: str, where: str, environment: Mapping[str, str]) -> str:
    kind, colon, rest = value.partition(":")
    if colon and kind == "env":
        if rest not in environment:
            raise Invalid(f"{where}: the environment has no {rest}")
        return environment[rest]
    return _text(Path(rest)).strip() if colon and kind == "file" else value


def _text(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise Invalid(f"{path} has more than {FILE_BYTES_MAX} bytes: it is no properties file")
        return data.decode()
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is no text") from error
