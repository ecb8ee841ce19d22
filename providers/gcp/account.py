"""Signing in to Google Cloud: credentials, the one HTTP session that a client uses, and what each refusal means.

Shared by the object store and the control APIs, so that a wrong key or a slow clock reads the same everywhere.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from providers.base.blocking import StoreSettings, read_credentials
from providers.base.errors import Full, Internal, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
"""The one scope that Google advises: what is allowed is decided by the account's roles (docs: Authentication, OAuth 2.0
scopes)."""

GOOGLE = "https://oauth2.googleapis.com/token"

HINT_CLOCK = "set this host's clock (NTP): Google refuses tokens whose times are more than some minutes off"
HINT_KEY = "create a new key for this service account, or point credentials_file at the right one"
HINT_NO_CREDENTIALS = (
    "name a credentials_file with `service_account`, or run on Google Cloud with a service account attached, "
    "or `gcloud auth application-default login`"
)

_RATE_REASONS = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"})
_QUOTA_REASONS = frozenset({"quotaExceeded", "QUOTA_EXCEEDED", "limitExceeded", "LIMIT_EXCEEDED"})
_DISABLED_REASONS = frozenset({"accessNotConfigured", "SERVICE_DISABLED"})
_BILLING_REASONS = frozenset({"accountDisabled", "billingNotEnabled", "BILLING_DISABLED"})
_PAYER_REASONS = frozenset({"userProjectMissing", "userProjectInvalid", "userProjectAccountProblem"})


@dataclass(frozen=True, slots=True)
class SignIn:
    """Credentials as google-auth has them, and the project that they belong to ("": they do not say)."""

    credentials: Any
    project: str


def sign_in(credentials_file: str | None, endpoint: str | None) -> SignIn:
    """Credentials from the file (`service_account`: a key as Google hands it out; `anonymous: true`), or Google's
    application default credentials. A `token_uri` that is only a path is at `endpoint`, as the lab's is.

    Raises:
        Invalid: unreadable, malformed or missing credentials.
    """
    import google.auth
    import google.auth.credentials
    import google.auth.exceptions
    import google.oauth2.service_account

    # Published without types for their constructors.
    service_account: Any = google.oauth2.service_account.Credentials
    anonymous: Any = google.auth.credentials.AnonymousCredentials

    class Elsewhere(service_account):  # type: ignore[misc]
        """A key whose tokens are not Google's asks Google nothing: google-auth would look up at iamcredentials, in a
        thread of its own, which locations the account may use."""

        def _is_regional_access_boundary_lookup_required(self) -> bool:
            return False

    secrets = read_credentials(credentials_file)
    try:
        if "service_account" in secrets:
            key = dict(secrets["service_account"])
            if endpoint and str(key.get("token_uri", "")).startswith("/"):
                key["token_uri"] = endpoint + key["token_uri"]
            host = urlsplit(str(key.get("token_uri", GOOGLE))).hostname or ""
            kind = service_account if host.endswith(".googleapis.com") else Elsewhere
            made = kind.from_service_account_info(key, scopes=SCOPES)
            return SignIn(made, str(made.project_id or ""))
        if secrets.get("anonymous") is True:
            return SignIn(anonymous(), "")
        if credentials_file is not None:
            raise Invalid(
                f"credentials file {credentials_file} lacks service_account",
                hint="the key file's whole JSON object goes under `service_account`",
            )
        made, project = google.auth.default(scopes=SCOPES)
        return SignIn(made, str(project or ""))
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise Invalid("no Google credentials were found", hint=HINT_NO_CREDENTIALS) from error
    except (google.auth.exceptions.GoogleAuthError, ValueError, AttributeError, TypeError) as error:
        # Neither sentence repeats the key: google-auth names the missing field or the parser's complaint.
        raise Invalid(f"no usable Google credentials: {error}", hint=HINT_KEY) from error


def authorized_session(signed: SignIn, *, own_endpoint: bool, connections: int) -> Any:
    """A `requests` session that adds the token, keeps `connections` open and repeats a request only when its token was
    refused and a new one could be had.

    `own_endpoint`: a given endpoint, its token endpoint included, is reached without the environment's proxies.
    """
    import google.auth.transport.requests

    # Published without types for its constructor.
    make: Any = google.auth.transport.requests.AuthorizedSession
    session = make(signed.credentials)
    tune(session, own_endpoint=own_endpoint, connections=connections)
    return session


def tune(session: Any, *, own_endpoint: bool, connections: int) -> None:
    """What `authorized_session` promises, for a session that the SDK made."""
    import requests

    session.trust_env = not own_endpoint
    adapter = requests.adapters.HTTPAdapter(pool_connections=connections, pool_maxsize=connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    # Tokens are fetched by a session of their own.
    session._auth_request_session.trust_env = not own_endpoint


class Signer(Protocol):
    """Adds a token to a request's headers. `fresh`: the last one was refused, so another is fetched."""

    def __call__(self, method: str, url: str, headers: dict[str, str], *, fresh: bool = False) -> None: ...


def signer(signed: SignIn, session: Any, settings: StoreSettings) -> Signer:
    """Tokens are fetched by `session`'s means when there is none or it is about to end: once for all threads, where
    google-auth would fetch one in each."""
    import google.auth.credentials

    lock = threading.Lock()
    # What the session fetches its own tokens by.
    request = partial(session._auth_request, timeout=settings.read_timeout_ms / 1000)

    known = signed.credentials
    renews = not isinstance(known, google.auth.credentials.AnonymousCredentials)

    def sign(method: str, url: str, headers: dict[str, str], *, fresh: bool = False) -> None:
        if known.valid and not fresh:
            known.before_request(request, method, url, headers)
            return
        with lock:
            if fresh and renews:
                known.refresh(request)
            known.before_request(request, method, url, headers)

    return sign


def status_of(error: Exception) -> int:
    """HTTP status of an API error, or of an upload or download helper's; 0: there was no answer."""
    response = getattr(error, "response", None)
    status = getattr(error, "code", None) or getattr(response, "status_code", 0)
    return int(status) if isinstance(status, int) else 0


def reasons_of(error: Exception) -> frozenset[str]:
    """The words by which Google's APIs tell refusals apart: `error.errors[].reason`, and `ErrorInfo.reason`."""
    told = getattr(error, "errors", None) or ()
    reasons = {str(each["reason"]) for each in told if isinstance(each, dict) and "reason" in each}
    newer = getattr(error, "reason", None)
    return frozenset(reasons | ({str(newer)} if newer else set()))


def said(error: Exception) -> str:
    """The service's own sentence, without the request's address around it."""
    response = getattr(error, "response", None)
    try:
        message = response.json()["error"]["message"]  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError, ValueError):
        return str(error)
    return str(message)


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """What every Google API refuses in the same way. `changes`: a lost answer is `OutcomeUnknown`.

    Callers decide before on what their service means by 404, 409 and 412.
    """
    import google.auth.exceptions
    import requests
    import urllib3.exceptions

    unknown = OutcomeUnknown if changes else Unavailable
    if isinstance(error, google.auth.exceptions.TransportError):
        return Unavailable(f"{subject}: no access token: {error}")
    if isinstance(error, google.auth.exceptions.RefreshError):
        return _no_token(error, subject)
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return Invalid(f"{subject}: {error}", hint=HINT_NO_CREDENTIALS)
    status, words = status_of(error), said(error)
    if status == 401:
        return Invalid(f"{subject}: the credentials were refused: {words}", hint=f"{HINT_KEY}; or {HINT_CLOCK}")
    if status == 403:
        return _forbidden(reasons_of(error), subject, words)
    if status == 404:
        return NotFound(f"{subject}: {words}")
    if status == 429:
        # Of a change Google does not say that it was not begun.
        return unknown(f"{subject}: throttled: {words}", hint="fewer requests a second, or a higher quota")
    if status == 408 or status >= 500:
        return unknown(f"{subject}: {words}")
    if status:
        return Invalid(f"{subject}: {words}")
    unsent = (
        requests.exceptions.ConnectTimeout,
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.ConnectTimeoutError,
    )
    if isinstance(error, unsent) or "NewConnectionError" in repr(error):
        return Unavailable(f"{subject}: {error}")
    if isinstance(error, requests.exceptions.RequestException | urllib3.exceptions.HTTPError | OSError):
        return unknown(f"{subject}: {error}")
    return Internal(f"{subject}: the SDK failed with {error!r}")


def _no_token(error: Exception, subject: str) -> YunheError:
    # google-auth hands on the token endpoint's `error: error_description`.
    words = str(error.args[0]) if error.args else str(error)
    if getattr(error, "retryable", False) or any(reason in words for reason in _RATE_REASONS):
        return Unavailable(f"{subject}: no access token: {words}")
    if "iat" in words or "exp " in words or "short-lived" in words or "timeframe" in words:
        return Invalid(f"{subject}: the token's times were refused: {words}", hint=HINT_CLOCK)
    return Invalid(f"{subject}: the credentials were refused: {words}", hint=f"{HINT_KEY}; or {HINT_CLOCK}")


def _forbidden(reasons: frozenset[str], subject: str, words: str) -> YunheError:
    message = f"{subject}: {words}"
    if reasons & _RATE_REASONS:
        return Unavailable(message, hint="fewer requests a second, or a higher quota")
    if reasons & _QUOTA_REASONS:
        return Full(message, hint="raise the quota named here, on the console's page IAM & Admin > Quotas")
    if reasons & _DISABLED_REASONS:
        return Invalid(message, hint="enable the API in this project: `gcloud services enable NAME`")
    if reasons & _BILLING_REASONS:
        return Invalid(message, hint="the project's billing account is closed or missing: link one")
    if reasons & _PAYER_REASONS:
        return Invalid(message, hint="the bucket bills the requester: name a project that the account may bill")
    return Invalid(message, hint="grant the account of these credentials the permission that is named here")
