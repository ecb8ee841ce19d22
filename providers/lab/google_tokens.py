"""Google's sign-in, emulated: service accounts get access tokens from a token endpoint (RFC 7523), and requests show
them.

The credentials file's `service_account` is the only account that is let in; its key file with `token_uri` set to the
lab's `<endpoint>/token` works with google-auth as it is. Tokens are signed by the lab with a key made from the
account's own, so that each server process of one lab accepts the others' and a restart forgets none. With
`anonymous: true` nothing is checked.

Sources: RFC 7515, 7519, 7523; Google's page "Using OAuth 2.0 for server to server applications" (claims, lifetimes and
the sentences of its refusals).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from providers.base.clock import Clock
from providers.base.errors import Invalid
from providers.lab.wire import Reply, Request

TOKEN_PATH = "/token"
TOKEN_S = 3599
"""Seconds that a token is good for; Google's are a second short of an hour."""
ASSERTION_S_MAX = 3600
"""Longest life of a signed assertion."""
SKEW_S_MAX = 300
"""How far ahead of the lab's clock an assertion's `iat` may be."""
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
AUDIENCE = "https://oauth2.googleapis.com/token"
PREFIX = "ya29.lab-"

TIMES_REFUSED = (
    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
    "Check your iat and exp values in the JWT claim."
)


class Refused(Exception):
    """`code` and `message` as the token endpoint states them: `error` and `error_description`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class GoogleTokens:
    """What one lab lets in.

    Raises (constructor):
        KeyError: the credentials have neither `service_account` nor `anonymous`.
        Invalid: its key cannot be read.
    """

    def __init__(self, credentials: Mapping[str, Any], clock: Clock) -> None:
        self.anonymous = credentials.get("anonymous") is True
        account = None if self.anonymous else credentials["service_account"]
        self._email = str(account["client_email"]) if account else ""
        private_key = str(account["private_key"]) if account else ""
        self._secret = hashlib.sha256(b"access tokens of " + private_key.encode()).digest()
        self._verify = _verifier(private_key) if account else None
        self.project = str(account["project_id"]) if account else ""
        self._clock = clock

    def answer(self, request: Request) -> Reply | None:
        """The token endpoint's answer; None: the request is for something else."""
        if request.method != "POST" or request.raw_path != TOKEN_PATH:
            return None
        form = parse_qs(request.body.decode("ascii", "replace"))
        try:
            if form.get("grant_type") != [GRANT]:
                raise Refused("unsupported_grant_type", f"grant_type must be {GRANT}")
            if self.anonymous:
                raise Refused("invalid_grant", "this lab lets everybody in and gives no tokens")
            self._check_assertion("".join(form.get("assertion", ())), (AUDIENCE, request.headers.get("host", "")))
        except Refused as refused:
            return _json(400, {"error": refused.code, "error_description": refused.message})
        return _json(200, {"access_token": self._token(), "expires_in": TOKEN_S, "token_type": "Bearer"})

    def refusal(self, request: Request) -> str | None:
        """None: the request shows a good token. Otherwise the reason: `required` (none is shown) or `authError`."""
        if self.anonymous:
            return None
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if not shown:
            return "required"
        if scheme.lower() == "bearer" and (self._is_ours(shown) or self._is_self_signed(shown)):
            return None
        return "authError"

    def _token(self) -> str:
        expires_s = self._clock.wall_ms() // 1000 + TOKEN_S
        body = f"{self._email} {expires_s}".encode()
        return PREFIX + _encode(body) + "." + _encode(hmac.digest(self._secret, body, "sha256"))

    def _is_ours(self, token: str) -> bool:
        body, _, signature = token.removeprefix(PREFIX).partition(".")
        try:
            plain = _decode(body)
            good = hmac.compare_digest(_decode(signature), hmac.digest(self._secret, plain, "sha256"))
            return token.startswith(PREFIX) and good and int(plain.split()[-1]) > self._clock.wall_ms() // 1000
        except (ValueError, IndexError):
            return False

    def _is_self_signed(self, token: str) -> bool:
        """A JWT that the account signed itself, in place of an access token (Google's "self-signed JWT")."""
        try:
            self._check_assertion(token, None)
        except Refused:
            return False
        return True

    def _check_assertion(self, assertion: str, audiences: tuple[str, ...] | None) -> None:
        parts = assertion.split(".")
        try:
            head, claims = (json.loads(_decode(part)) for part in parts[:2])
            signature = _decode(parts[2])
            issued_s, expires_s = int(claims["iat"]), int(claims["exp"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Refused("invalid_grant", "Invalid JWT: Failed to parse the assertion.") from error
        if claims.get("iss") != self._email:
            raise Refused("invalid_grant", "Invalid grant: account not found")
        if head.get("alg") != "RS256" or not self._verified(f"{parts[0]}.{parts[1]}".encode(), signature):
            raise Refused("invalid_grant", "Invalid JWT Signature.")
        now_s = self._clock.wall_ms() // 1000
        if issued_s > now_s + SKEW_S_MAX or expires_s <= now_s or expires_s - issued_s > ASSERTION_S_MAX:
            raise Refused("invalid_grant", TIMES_REFUSED)
        audience = str(claims.get("aud", ""))
        if audiences is not None and not any(known and known in audience for known in audiences):
            raise Refused("invalid_grant", "Invalid JWT: the audience is not the token endpoint.")

    def _verified(self, data: bytes, signature: bytes) -> bool:
        return self._verify is not None and self._verify(data, signature)


def _verifier(private_key: str) -> Callable[[bytes, bytes], bool]:
    """Whether a signature (RS256) of the data is of that key; made at the start, so that nobody waits for it later."""
    # Imported here: it takes longer than all else at the start, and an anonymous lab does not need it.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        # The lab's own key: checking that it is a sound one would take longer than all it is used for.
        key = load_pem_private_key(private_key.encode(), None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError) as error:
        raise Invalid(
            "the credentials' service_account has no usable private_key", hint="PEM, not encrypted"
        ) from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise Invalid("the credentials' service_account has no RSA key", hint="Google's keys are RSA keys")
    public = key.public_key()

    def verify(data: bytes, signature: bytes) -> bool:
        try:
            public.verify(signature, data, padding.PKCS1v15(), SHA256())
        except InvalidSignature:
            return False
        return True

    return verify


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _json(status: int, value: Any) -> Reply:
    return Reply(status, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(value).encode())
