"""Who may: Shared Key signatures of requests, and shared access signatures that let a copy read its source.

Sources: the REST reference (Authorize with Shared Key, Create a service SAS); `generate_blob_sas` of azure-storage-blob
12.31 for the string that is signed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from providers.base.clock import Clock
from providers.lab.dialect_azure_wire import VERSION, Refused
from providers.lab.wire import Request

SKEW_MS_MAX = 15 * 60 * 1000
"""A request that is dated further off is refused."""

_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
"""In the order of "Authorize with Shared Key"."""

_SAS_FIELDS = ("sp", "st", "se", "", "si", "sip", "spr", "sv", "sr", "snapshot", "ses", "rscc", "rscd", "rsce", "rscl")
"""In the order of the string to sign; the empty one is the resource, and `rsct` comes last without a line's end."""

_DATED = re.compile(r"\d{4}-\d\d-\d\d")


class AzureAuth:
    """`credentials`: `account`, `account_key` (base64)."""

    def __init__(self, credentials: Mapping[str, Any], clock: Clock) -> None:
        self.account = str(credentials["account"])
        self._key = base64.b64decode(str(credentials["account_key"]))
        self._clock = clock

    def check(self, request: Request, *, batched: bool = False) -> None:
        """
        Raises:
            Refused: no signature, a wrong one, or a date too far off.
        """
        headers = request.headers
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        account, _, signature = rest.partition(":")
        if scheme != "SharedKey":
            raise _failed("Server failed to authenticate the request: only Shared Key is emulated.")
        if account != self.account:
            raise _failed("Server failed to authenticate the request: no such account.")
        self._check_date(headers)
        if not batched:
            _check_version(headers)
        if not hmac.compare_digest(self._sign(self._string(request)), signature):
            raise _failed(
                "Server failed to authenticate the request. Make sure the value of Authorization header is formed "
                "correctly including the signature.",
                "The MAC signature found in the HTTP request is not the same as any computed signature.",
            )

    def _string(self, request: Request) -> str:
        signed = [request.headers.get(name, "") for name in _SIGNED_HEADERS]
        if signed[2] == "0":
            signed[2] = ""
        own = sorted(
            ((name, value) for name, value in request.headers.items() if name.startswith("x-ms-")),
            # The service passes over hyphens when it sorts.
            key=lambda pair: (pair[0].replace("-", ""), pair[0]),
        )
        string = "\n".join([request.method, *signed, *(f"{name}:{value}" for name, value in own), ""])
        string += f"/{self.account}{request.raw_path}"
        return string + "".join(f"\n{name.lower()}:{unquote(value)}" for name, value in sorted(request.query.items()))

    def _sign(self, string: str) -> str:
        return base64.b64encode(hmac.new(self._key, string.encode(), hashlib.sha256).digest()).decode()

    def _check_date(self, headers: Mapping[str, str]) -> None:
        given = headers.get("x-ms-date") or headers.get("date")
        if given is None:
            raise _failed("Server failed to authenticate the request.", "x-ms-date or Date header is missing.")
        try:
            dated_ms = parsedate_to_datetime(given).timestamp() * 1000
        except ValueError as error:
            raise Refused(400, "InvalidHeaderValue", f"x-ms-date: {given} is no date.") from error
        if abs(dated_ms - self._clock.wall_ms()) > SKEW_MS_MAX:
            raise _failed("Server failed to authenticate the request.", f"Request date header too old: '{given}'")

    def source(self, request: Request, *, own_account: bool) -> tuple[str, str]:
        """Container and blob that `x-ms-copy-source` names, when this request may read them. `own_account`: the
        request's own signature is enough inside the account.

        Raises:
            Refused
        """
        url = urlsplit(request.headers["x-ms-copy-source"])
        account, _, rest = unquote(url.path).removeprefix("/").partition("/")
        container, _, blob = rest.partition("/")
        if url.netloc != request.headers.get("host", "") or account != self.account or not blob:
            raise Refused(400, "InvalidHeaderValue", "x-ms-copy-source: only blobs of this account can be copied.")
        if url.query:
            self._check_sas({name: values[0] for name, values in parse_qs(url.query).items()}, container, blob)
        elif not own_account:
            raise _unreadable("no shared access signature")
        return container, blob

    def _check_sas(self, given: Mapping[str, str], container: str, blob: str) -> None:
        resource = f"/blob/{self.account}/{container}/{blob}"
        lines = [given.get(name, "") if name else resource for name in _SAS_FIELDS]
        string = "\n".join([*lines, given.get("rsct", "")])
        if given.get("sr") != "b" or "r" not in given.get("sp", ""):
            raise _unreadable("the signature does not allow to read this blob")
        if not hmac.compare_digest(self._sign(string), given.get("sig", "")):
            raise _unreadable("the signature is wrong")
        now_ms = self._clock.wall_ms()
        if _ms(given["se"]) <= now_ms or ("st" in given and _ms(given["st"]) > now_ms):
            raise _unreadable("the signature is not valid now")


def _ms(given: str) -> float:
    return datetime.fromisoformat(given.replace("Z", "+00:00")).timestamp() * 1000


def _check_version(headers: Mapping[str, str]) -> None:
    version = headers.get("x-ms-version", "")
    if not _DATED.fullmatch(version) or version > VERSION:
        raise Refused(
            400,
            "InvalidHeaderValue",
            "The value for one of the HTTP headers is not in the correct format.",
            ("HeaderName", "x-ms-version"),
            ("HeaderValue", version),
        )


def _failed(message: str, detail: str = "") -> Refused:
    more = (("AuthenticationErrorDetail", detail),) if detail else ()
    return Refused(403, "AuthenticationFailed", message, *more)


def _unreadable(why: str) -> Refused:
    return Refused(403, "CannotVerifyCopySource", f"Could not verify the copy source: {why}.")
