"""What AWS's control APIs (EC2, Route 53) have in common here: a client of botocore with the SDK's own retries off, and
what their error codes mean."""

from __future__ import annotations

from typing import Any

from providers.aws import errors
from providers.aws.errors import code_of
from providers.aws.session import make_client
from providers.base.blocking import SdkCalls, StoreSettings, read_credentials
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.registry import AccountAddress

REFUSED = frozenset(
    [
        "AuthFailure",
        "UnauthorizedOperation",
        "AccessDenied",
        "AccessDeniedException",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "MissingAuthenticationToken",
        "OptInRequired",
        "Blocked",
        "IncompleteSignature",
        "UnrecognizedClientException",
    ]
)
LATER = frozenset(
    [
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "PriorRequestNotComplete",
        "RequestThrottled",
        "EC2ThrottledException",
        "ExpiredToken",
    ]
)
"""Definite answers that nothing was done, and that may be otherwise next time."""
QUOTAS = {
    "VolumeLimitExceeded": "the EBS volumes or their storage in this region",
    "MaxIOPSLimitExceeded": "the provisioned IOPS of EBS in this region",
    "VolumeIOPSLimit": "the IOPS of one volume",
    "InsufficientVolumeCapacity": "what the zone has left of this class",
    "LimitsExceeded": "the records of a Route 53 zone",
}
"""EC2's codes (API reference, errors-overview) and what they count."""
IN_USE = frozenset(["VolumeInUse", "IncorrectState", "InvalidChangeBatch"])
MISSING = frozenset(
    [
        "InvalidVolume.NotFound",
        "InvalidInstanceID.NotFound",
        "InvalidAttachment.NotFound",
        "NoSuchHostedZone",
    ]
)


CONTROL = StoreSettings(threads=4, requests_per_s_max=50, rate_wait_ms_max=10_000)
"""EC2 lets an account make tens of describing calls a second and fewer that change something (EC2 API reference,
request throttling), and the whole account shares that: so few at once, and a longer wait for one's turn."""


def open_client(service: str, address: AccountAddress, settings: StoreSettings) -> Any:
    """A client of `ec2` or `route53`; nothing is sent yet. A given endpoint is reached without the environment's
    proxies.

    Raises:
        Invalid: unreadable credentials, an impossible region or endpoint.
    """
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    secrets = read_credentials(address.credentials_file, "access_key", "secret_key")
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=settings.connect_timeout_ms / 1000,
        read_timeout=settings.read_timeout_ms / 1000,
        max_pool_connections=settings.threads,
        proxies={} if address.endpoint else None,
    )
    try:
        return make_client(
            service,
            region_name=address.region,
            endpoint_url=address.endpoint,
            aws_access_key_id=secrets.get("access_key"),
            aws_secret_access_key=secrets.get("secret_key"),
            aws_session_token=secrets.get("session_token"),
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise Invalid(f"{service} in {address.region} cannot be opened: {error}") from error


def open_calls(service: str, address: AccountAddress, settings: StoreSettings, clock: Clock, rng: Rng) -> SdkCalls:
    """The runner of a client's calls."""
    return SdkCalls(f"{service} {address.region}", settings, translate, clock=clock, rng=rng)


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """By error code. A request that may have been carried out and whose answer is lost is `OutcomeUnknown`."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        return _translate_answer(error, subject, changes)
    return errors.translate(error, subject, changes)


def _translate_answer(error: Any, subject: str, changes: bool) -> YunheError:
    code = code_of(error)
    answer = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{subject}: {code}: {answer.get('Message', '')}"
    if code == "RequestExpired" or "Signature expired" in str(answer.get("Message", "")):
        return Invalid(said, hint="this host's clock is off by more than AWS allows: set it by NTP")
    if code in REFUSED:
        hint = "the credentials are wrong or lack a right: see the actions listed in providers/aws"
        return Invalid(said, hint=hint)
    if code in MISSING:
        return NotFound(said)
    if code in IN_USE:
        return Conflict(said)
    if code in QUOTAS:
        return Full(said, hint=f"the account's quota counts {QUOTAS[code]}: ask for more, or delete some")
    if code in LATER:
        return Unavailable(said)
    if status >= 500 or status == 429:
        return (OutcomeUnknown if changes else Unavailable)(said)
    return Invalid(said)
