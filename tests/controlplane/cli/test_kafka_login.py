"""A login is read from a properties file whole or not at all, and shows its secrets to nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.cli.kafka_channel import Scram
from controlplane.cli.kafka_login import OPEN, read_login
from providers.base.errors import Corrupt, Invalid

WHOLE = """\
# who we are
security.protocol = SASL_SSL
sasl.mechanisms=SCRAM-SHA-256

sasl.username=admin
sasl.password=env:SECRET
ssl.ca.location=/etc/ca.pem
"""


def test_a_properties_file_is_a_clients_configuration(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text(WHOLE)
    login = read_login(path, {"SECRET": "a=b, c"})
    assert login.client("host:1", {"linger.ms": 2}) == {
        "bootstrap.servers": "host:1",
        "log_level": 0,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "admin",
        "sasl.password": "a=b, c",
        "ssl.ca.location": "/etc/ca.pem",
        "linger.ms": 2,
    }
    assert "a=b" not in repr(login)
    assert read_login(None) is OPEN


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bootstrap.servers=other:9092", ":8: 'bootstrap.servers' is not a setting of a login"),
        ("just words", ":8: 'just words' is not a setting of a login"),
        ("sasl.username=eve", ":8: sasl.username is there twice"),
        ("ssl.key.password=env:NOT_THERE", ":8: the environment has no NOT_THERE"),
        ("ssl.key.password=file:/not/there", "/not/there cannot be read: No such file or directory"),
    ],
)
def test_what_is_not_understood_is_named_by_its_line(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text(f"{WHOLE}{line}\n")
    with pytest.raises(Invalid, match=f"^.*{said}"):
        read_login(path, {"SECRET": "x"})


def test_a_login_without_a_name_or_with_another_protocol_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("security.protocol=SASL_SSL\nsasl.username=admin\n")
    with pytest.raises(Invalid, match=r"SASL_SSL needs sasl.mechanism, sasl.username and sasl.password"):
        read_login(path)
    path.write_text("security.protocol=TLS\n")
    with pytest.raises(Invalid, match=r"'TLS' is not a security\.protocol"):
        read_login(path)
    with pytest.raises(Invalid, match="cannot be read"):
        read_login(tmp_path / "missing")


def test_scram_says_what_its_rfc_says() -> None:
    """RFC 7677, section 3."""
    scram = Scram("sha256", "user", "pencil", "rOprNGfwEbeRWgbNEkqO")
    assert scram.first() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    assert scram.final(f"r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode()) == (
        f"c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=".encode()
    )
    assert scram.proven(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert not scram.proven(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize(
    "answer",
    [b"", b"r=other,s=AAAA,i=4096", b"r=mine1,s=AAAA,i=999999999", b"r=mine1,s=*,i=1", b"r=mine1,i=1", b"\xff"],
)
def test_an_answer_that_is_not_for_this_login_ends_it(answer: bytes) -> None:
    with pytest.raises(Corrupt):
        Scram("sha256", "user", "pencil", "mine").final(answer)
