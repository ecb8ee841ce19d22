"""AWS's control APIs over the lab's cores: EC2 (Query protocol) and Route 53 (REST and XML) on one endpoint, told apart
by the service that a request is signed for.

Sources: botocore's service models of ec2 2016-11-15 and route53 2013-04-01; EC2's list of error codes (API reference,
errors-overview); Route 53's API reference.
"""

from __future__ import annotations

import hashlib

from providers.lab import control_aws_ec2 as ec2
from providers.lab import control_aws_route53 as route53
from providers.lab.control import ControlPlane
from providers.lab.sigv4 import SKEW_MS_MAX, matches, parse
from providers.lab.wire import Reply, Request


class AwsControl:
    """`credentials`: `access_key`, `secret_key`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._access_key = str(plane.credentials["access_key"])
        self._secret_key = str(plane.credentials["secret_key"])
        self._clock = plane.clock
        self._ec2 = ec2.Ec2(plane)
        self._route53 = route53.Route53(plane)

    def answer(self, request: Request) -> Reply:
        dns = _is_dns(request)
        refusal = self._refusal(request, dns)
        if refusal is not None:
            return route53.error(*refusal) if dns else ec2.error(*refusal)
        return self._route53.answer(request) if dns else self._ec2.answer(request)

    def error(self, status: int, code: str, message: str) -> Reply:
        # EC2's and Route 53's errors differ in shape, and botocore reads both from a document that has both.
        return ec2.error(status, code, message)

    def verb(self, request: Request) -> str:
        return route53.verb(request) if _is_dns(request) else ec2.verb(request)

    def _refusal(self, request: Request, dns: bool) -> tuple[int, str, str] | None:
        """Each service words what it thinks of a signature in its own way."""
        try:
            signed = parse(request.headers)
        except ValueError:
            signed = None
        if signed is None:
            return (403, "MissingAuthenticationToken", "the request is not signed (SigV4)")
        if signed.access_key != self._access_key:
            return (403, "InvalidClientTokenId", "the access key is not known") if dns else _NOT_VALID
        if abs(signed.sent_ms - self._clock.wall_ms()) > SKEW_MS_MAX:
            late = "Signature expired: the request's time is too far from the server's"
            return (403, "SignatureDoesNotMatch", late) if dns else (400, "RequestExpired", late)
        payload_hash = hashlib.sha256(request.body).hexdigest()
        if not matches(request, signed, self._secret_key, payload_hash, quote_path=True):
            wrong = "The request signature we calculated does not match the signature you provided."
            return (403, "SignatureDoesNotMatch", wrong) if dns else _NOT_VALID
        return None


_NOT_VALID = (401, "AuthFailure", "AWS was not able to validate the provided access credentials")


def _is_dns(request: Request) -> bool:
    return request.raw_path.startswith("/2013-04-01/")
