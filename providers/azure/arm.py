"""Azure Resource Manager: how the adapters of disks, machines and DNS sign in, send, wait and name errors.

The SDK's own pipeline is replaced by a short one without its retries, redirects and provider registration (an endless
loop of ten-second sleeps): `SdkCalls` repeats what may be repeated. A long-running operation is stepped from here, one
status request at a time, so that its wait is the handed-in clock's and holds no thread.

Signing in: a credentials file with `tenant`, `client_id`, `client_secret`, else azure-identity's default chain. A plain
http endpoint is taken only on loopback (the lab): there the token comes from that endpoint too.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from providers.azure.arm_errors import translate
from providers.azure.clouds import cloud_of
from providers.base.blocking import SdkCalls, StoreSettings, read_credentials
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid
from providers.base.registry import AccountAddress
from providers.base.waiting import WaitSettings, wait_for

SETTINGS = StoreSettings(threads=4, read_timeout_ms=30_000, call_timeout_ms=60_000)
"""Of each request: Resource Manager answers slower than storage."""

NETWORK_VERSION = "2024-05-01"
"""API version of the network interfaces, which no SDK here is for."""


class Account:
    """A subscription and resource group, signed in. Shared by nobody: each adapter opens its own."""

    def __init__(
        self,
        address: AccountAddress,
        settings: StoreSettings | None,
        wait: WaitSettings | None,
        *,
        clock: Clock,
        rng: Rng,
    ) -> None:
        """Nothing is sent yet.

        Raises:
            Invalid: no subscription or group in the address, unreadable credentials, a plain http endpoint that is not
                loopback.
        """
        if not address.account or not address.group:
            raise Invalid(
                "an Azure account needs a subscription id and a resource group",
                hint="set both in the cloud's section of the spec",
            )
        self.subscription = address.account
        self.group = address.group
        self.region = address.region
        self._settings = settings or SETTINGS
        self.wait = wait or WaitSettings()
        self.clock = clock
        self.lab = address.endpoint is not None and is_loopback_http(address.endpoint)
        if address.endpoint is not None and not self.lab and not address.endpoint.startswith("https://"):
            raise Invalid(
                f"{address.endpoint}: bearer tokens are sent over https only",
                hint="plain http is for the lab, on a loopback address",
            )
        self.calls = SdkCalls(
            f"azure {address.region}",
            self._settings,
            translate,
            clock=clock,
            rng=rng,
            account=f"azure {address.account}",
        )
        cloud = cloud_of(address.region)
        self._endpoint = address.endpoint or cloud.resources
        self._scopes = [cloud.scope]
        self._authority = cloud.authority
        self._secrets = (
            read_credentials(address.credentials_file, "tenant", "client_id", "client_secret")
            if address.credentials_file
            else {}
        )
        self._session = _session(self._settings.threads, trust_env=not self.lab)
        self._lock = threading.Lock()
        self._client: Any = None
        self._plain: Any = None
        self._signed_in: Any = None

    def client(self, kind: Callable[..., Any]) -> Any:
        """The SDK's client, made at its first use: imports and sign-in belong into a thread of the pool."""
        with self._lock:
            if self._client is None:
                self._client = kind(
                    self._credential(),
                    self.subscription,
                    base_url=self._endpoint,
                    credential_scopes=self._scopes,
                    policies=self._policies(),
                    transport=self._transport(),
                )
            return self._client

    def read(self, path_or_url: str, version: str) -> dict[str, Any]:
        """GET of a resource, or of a page of them, that no client here is for. Blocks.

        Raises:
            azure.core.exceptions.HttpResponseError: any other answer than 200.
        """
        from azure.core.exceptions import HttpResponseError
        from azure.core.rest import HttpRequest
        from azure.mgmt.core import ARMPipelineClient

        with self._lock:
            if self._plain is None:
                self._plain = ARMPipelineClient(self._endpoint, policies=self._policies(), transport=self._transport())
        params = {} if path_or_url.startswith("http") else {"api-version": version}
        url = path_or_url if path_or_url.startswith("http") else self._endpoint.rstrip("/") + path_or_url
        answer = self._plain.send_request(HttpRequest("GET", url, params=params))
        if answer.status_code != 200:
            raise HttpResponseError(response=answer)
        return dict(answer.json())

    def _transport(self) -> Any:
        from azure.core.pipeline.transport import RequestsTransport

        return RequestsTransport(
            session=self._session,
            session_owner=False,
            use_env_settings=not self.lab,
            connection_timeout=self._settings.connect_timeout_ms / 1000,
            read_timeout=self._settings.read_timeout_ms / 1000,
        )

    def _policies(self) -> list[Any]:
        from azure.core.pipeline import policies
        from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy, ARMHttpLoggingPolicy

        return [
            policies.RequestIdPolicy(),
            policies.UserAgentPolicy("yunhe"),
            policies.ContentDecodePolicy(),
            *([loopback_policy()] if self.lab else []),
            ARMChallengeAuthenticationPolicy(self._credential(), *self._scopes),
            ARMHttpLoggingPolicy(),
        ]

    def _credential(self) -> Any:
        if self._signed_in is None:
            self._signed_in = self._sign_in()
        return self._signed_in

    def _sign_in(self) -> Any:
        if self.lab:
            timeout_s = self._settings.read_timeout_ms / 1000
            return LabCredential(self._endpoint, self._secrets, self._session, timeout_s)
        from azure.identity import ClientSecretCredential, DefaultAzureCredential

        if self._secrets:
            secrets = {name: str(self._secrets[name]) for name in ("tenant", "client_id", "client_secret")}
            return ClientSecretCredential(
                secrets["tenant"], secrets["client_id"], secrets["client_secret"], authority=self._authority
            )
        return DefaultAzureCredential(authority=self._authority)

    def resource_id(self, type_: str, name: str) -> str:
        """Of a resource of Microsoft.Compute in this group; a full id is passed through."""
        if name.startswith("/"):
            return name
        group = f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"
        return f"{group}/providers/Microsoft.Compute/{type_}/{name}"

    def short_name(self, resource_id: str) -> str:
        """The name of a resource in this group, the whole id of any other. Resource Manager returns ids in any case."""
        group = f"/subscriptions/{self.subscription}/resourceGroups/{self.group}/".casefold()
        return resource_id.rpartition("/")[2] if resource_id.casefold().startswith(group) else resource_id

    async def operate(self, subject: str, begin: Callable[[Any], Any], *, repeatable: bool, hint: str = "") -> None:
        """Run a long-running operation to its end. `begin` gets the polling method to hand to the SDK. It is sent
        again after a failure only if `repeatable`. `hint`: what to do when it takes too long.

        Raises:
            Unavailable: not done in time; it may still happen.
            YunheError: what the service says of it.
        """
        steps = stepped_polling()
        send = self.calls.repeated if repeatable else self.calls.once
        await send(subject, partial(begin, steps), changes=True)

        async def look() -> bool | None:
            if not steps.finished():
                await self.calls.repeated(subject, steps.update_status)
            return True if steps.finished() else None

        if not steps.finished():
            await wait_for(subject, look, self.wait, self.clock, hint=hint or "repeat the call to learn how it went")
        steps.raise_if_failed(subject)

    def close(self) -> None:
        """Release connections and threads."""
        self.calls.close()
        with self._lock:
            for client in (self._client, self._plain):
                if client is not None:
                    client.close()
        self._session.close()


def is_loopback_http(endpoint: str) -> bool:
    """Whether `endpoint` is plain http on this very machine, by its address: a name could point anywhere."""
    parts = urlsplit(endpoint)
    try:
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def loopback_policy() -> Any:
    """Lets the SDK's token policy send its token over http, request by request, where the request goes to loopback.
    Anywhere else it refuses as ever. `enforce_https` is azure-core's documented per-request option."""
    from azure.core.pipeline.policies import SansIOHTTPPolicy

    class LoopbackPolicy(SansIOHTTPPolicy[Any, Any]):
        def on_request(self, request: Any) -> None:
            if is_loopback_http(request.http_request.url):
                request.context.options["enforce_https"] = False

    return LoopbackPolicy()


class LabCredential:
    """Tokens from the lab's own sign-in endpoint, by the client-credentials grant: azure-identity talks https only.
    Fits azure-core's `TokenCredential`."""

    def __init__(self, endpoint: str, secrets: dict[str, Any], session: Any, timeout_s: float) -> None:
        if not secrets:
            raise Invalid(
                "the lab needs a credentials file", hint='a JSON file: "tenant", "client_id", "client_secret"'
            )
        self._url = f"{endpoint}/{secrets['tenant']}/oauth2/v2.0/token"
        self._form = {
            "grant_type": "client_credentials",
            "client_id": str(secrets["client_id"]),
            "client_secret": str(secrets["client_secret"]),
        }
        self._session = session
        self._timeout_s = timeout_s

    def get_token(self, *scopes: str, **_: Any) -> Any:
        """A fresh token; azure-core keeps it until it nears its end.

        Raises:
            azure.core.exceptions.ClientAuthenticationError, ServiceRequestError: as azure-identity's.
        """
        import requests
        from azure.core.credentials import AccessToken
        from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

        try:
            form = {**self._form, "scope": " ".join(scopes)}
            answer = self._session.post(self._url, data=form, timeout=self._timeout_s, allow_redirects=False)
            plain = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ServiceRequestError(f"no token: {error}", error=error) from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise ServiceRequestError(f"no token: status {answer.status_code}")
        if answer.status_code != 200:
            raise ClientAuthenticationError(str(plain.get("error_description") or plain.get("error")))
        # `expires_on`: seconds since 1970, which the answer gives beside the relative `expires_in`.
        return AccessToken(str(plain["access_token"]), int(plain["expires_on"]))


def stepped_polling() -> Any:
    """The SDK's polling of Resource Manager operations, with the waiting taken out: `update_status` asks once."""
    from azure.core.exceptions import HttpResponseError
    from azure.mgmt.core.polling.arm_polling import ARMPolling

    class SteppedPolling(ARMPolling):
        _begun = False

        def initialize(self, client: Any, initial_response: Any, deserialization_callback: Any) -> None:
            super().initialize(client, initial_response, deserialization_callback)
            self._begun = True

        def run(self) -> None:
            """The SDK's thread has nothing to do: `Account.operate` asks."""

        def resource(self) -> None:
            """Nobody reads it: the adapters describe what there is."""

        def finished(self) -> bool:
            return self._begun and bool(super().finished())

        def raise_if_failed(self, subject: str) -> None:
            """
            Raises:
                YunheError: the operation failed or was cancelled.
            """
            if str(self.status()).lower() not in ("failed", "canceled"):
                return
            response = self._pipeline_response.http_response
            raise translate(HttpResponseError(response=response), subject, True)

    return SteppedPolling()


def _session(threads: int, *, trust_env: bool) -> Any:
    import requests

    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=threads, pool_maxsize=threads)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.trust_env = trust_env
    return session
