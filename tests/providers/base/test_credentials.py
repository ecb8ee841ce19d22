"""Credentials come by reference and are never shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from providers.base.credentials import read_credentials
from providers.base.errors import Invalid

SECRET = {"access_key": "AKIDEXAMPLE", "secret_key": "very-secret-1234"}


def test_references_lead_to_the_same_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps(SECRET))
    monkeypatch.setenv("YUNHE_TEST_SECRET", json.dumps(SECRET))
    for reference in (str(path), f"file:{path}", "env:YUNHE_TEST_SECRET"):
        assert read_credentials(reference, "access_key", "secret_key") == SECRET
    assert read_credentials(None, "access_key") == {}


@pytest.mark.parametrize(
    "content", ['{"access_key": "very-secret-1234"', '{"access_key": "very-secret-1234"}', '"very-secret-1234"']
)
def test_bad_credentials_are_told_by_place_and_never_by_content(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(content)
    monkeypatch.setenv("YUNHE_TEST_SECRET", content)
    for reference in (str(path), "env:YUNHE_TEST_SECRET"):
        with pytest.raises(Invalid) as caught:
            read_credentials(reference, "access_key", "secret_key")
        told = f"{caught.value!r} {caught.value.hint} {caught.value.__cause__!r}"
        assert "very-secret-1234" not in told
        assert reference in str(caught.value) and caught.value.hint


def test_missing_references_name_what_is_missing(tmp_path: Path) -> None:
    for reference in (str(tmp_path / "no.json"), "env:YUNHE_TEST_NOT_SET"):
        with pytest.raises(Invalid) as caught:
            read_credentials(reference, "access_key")
        assert reference.removeprefix("env:") in str(caught.value)
        assert caught.value.hint


def test_credentials_do_not_print_themselves(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps(SECRET))
    found = read_credentials(str(path))
    assert "very-secret-1234" not in f"{found} {found!r} {[found]}"
