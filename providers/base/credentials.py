"""Credentials by reference: where they are is plain data, what they are is never shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from providers.base.errors import Invalid


class Secrets(dict[str, Any]):
    """Credentials that do not show their values when they are printed by accident."""

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self))})"

    __str__ = __repr__


def read_credentials(reference: str | None, *names: str) -> Secrets:
    """The JSON object that `reference` leads to, with `names` in it; empty when `reference` is None, which stands for
    the SDK's default chain.

    A reference is a path, `file:PATH`, or `env:NAME`: an environment variable that holds the JSON itself, as secret
    stores hand it to a container.

    Raises:
        Invalid: unreadable, or a name is missing. The message tells where, never what.
    """
    if reference is None:
        return Secrets()
    plain = _load(reference)
    missing = [name for name in names if not isinstance(plain, dict) or name not in plain]
    if missing or not isinstance(plain, dict):
        raise Invalid(
            f"credentials {reference} lack {', '.join(missing) or 'a JSON object'}",
            hint=f"a JSON object with {', '.join(names) or 'the keys that StoreAddress names'}",
        )
    return Secrets(plain)


def _load(reference: str) -> object:
    kind, colon, rest = reference.partition(":")
    if colon and kind == "env":
        text = os.environ.get(rest)
        if text is None:
            raise Invalid(
                f"credentials {reference} cannot be read: the environment has no {rest}",
                hint=f"set {rest} to the credentials' JSON, or name a file",
            )
    else:
        path = Path(rest if colon and kind == "file" else reference)
        try:
            text = path.read_text()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise Invalid(
                f"credentials file {path} cannot be read: {why}", hint="make it readable for this user, mode 0600"
            ) from error
    try:
        plain: object = json.loads(text)
    except ValueError:
        # Not chained: the decoder's error carries the text, which is the secret.
        raise Invalid(f"credentials {reference} are not JSON", hint="a JSON object, see StoreAddress") from None
    return plain
