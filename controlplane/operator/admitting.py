"""The webhook in a cluster: objects from the API server, the certificate from the Secret, renewed in time.

The operator starts one `Admitting` on every replica, leader or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from kubernetes import client

from controlplane.operator.certificates import shared_certificate, trust
from controlplane.operator.manifests import NAME, WEBHOOK_PORT
from controlplane.operator.present import Present
from controlplane.operator.webhook import Webhook
from controlplane.store.kube_api import Kube
from providers.base.clock import Clock
from providers.base.errors import Unavailable, YunheError

SECRET = "yunhe-webhook"
RENEW_EVERY_MS = 12 * 3_600_000.0
"""Another replica may have made the certificate anew, too."""
RENEW_AGAIN_MS = 60_000.0
"""After a look that failed."""


class Admitting:
    """The webhook with everything it needs. `kube`: an account with the rights of `manifests.py`."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        clock: Clock,
        *,
        configuration: str = NAME,
        names: tuple[str, ...] | None = None,
    ) -> None:
        """`names`: what the API server calls it; left out, the Service's names."""
        self._api, self._namespace, self._clock, self._configuration = kube.client, namespace, clock, configuration
        self._names = names or (f"{NAME}.{namespace}.svc", f"{NAME}.{namespace}.svc.cluster.local")
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._webhook = Webhook(Present(kube))
        self._renewing: asyncio.Task[None] | None = None

    async def start(self, host: str = "0.0.0.0", port: int = WEBHOOK_PORT) -> int:
        """Make or take the certificate, listen, tell the API server whom to trust; returns the port.

        Raises:
            Unavailable: the API server did not do it.
            OSError: the address cannot be bound.
        """
        await self._renew()
        bound = await self._webhook.start(host, port, self._tls)
        self._renewing = asyncio.create_task(self._keep_fresh(), name="webhook-certificate")
        return bound

    async def stop(self) -> None:
        """Close, and let the certificate be."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        await self._webhook.stop()

    async def _keep_fresh(self) -> None:
        wait_ms = RENEW_EVERY_MS
        while True:
            await self._clock.sleep_ms(wait_ms)
            try:
                await self._renew()
                wait_ms = RENEW_EVERY_MS
            except YunheError:
                wait_ms = RENEW_AGAIN_MS  # what is served is valid for weeks yet

    async def _renew(self) -> None:
        core = client.CoreV1Api(self._api)
        try:
            pair = await asyncio.to_thread(shared_certificate, core, self._namespace, SECRET, self._names, self._clock)
            pair.load_into(self._tls)
            await asyncio.to_thread(trust, self._api, self._configuration, pair)
        except (client.ApiException, OSError) as error:
            raise Unavailable(
                f"the webhook's certificate cannot be set up: {_reason(error)}", hint="it is tried again"
            ) from error


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, client.ApiException) else error)
