"""What a request asks for, in words that are the same on every cloud: service, verb, zone. Faults match them, and the
meter counts by them.

*Services*: `objects` (regional buckets), `express` (S3 Express directory buckets), `sessions` (CreateSession, which an
Express bucket needs every five minutes), `volumes` (the devices), `compute`, `dns`, `identity` (token endpoints).
*Groups*: `control` = compute, dns, identity; `data` = objects, express, sessions, volumes. CreateSession is a call of
the zonal endpoint (S3 user guide, endpoint-directory-buckets-AZ), so it goes with the data.

*The zone of a request* is where the thing it asks for is held: the zone in an S3 Express bucket's name, the zone of a
volume's attachment, the zone that a control call names. A regional bucket is in no zone. Where the *caller* stands is
known only if it says so in the header `x-yunhe-zone`; no SDK sends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    # The volume daemon starts without the object stores' checksums.
    from providers.lab.wire import Exchange

SERVICES = ("objects", "express", "sessions", "volumes", "compute", "dns", "identity")
GROUPS: Mapping[str, frozenset[str]] = {
    "control": frozenset({"compute", "dns", "identity"}),
    "data": frozenset({"objects", "express", "sessions", "volumes"}),
}
VERBS = (
    *("put", "append", "copy", "get", "head", "list", "delete", "upload", "part", "bucket", "session", "other"),
    *("read", "write", "reserve", "open"),
    *("create", "attach", "detach", "describe", "start", "stop", "change", "token"),
)
"""An object store's; a volume's; a control API's."""
VERB_GROUPS: Mapping[str, frozenset[str]] = {
    "reads": frozenset({"get", "head", "list", "read", "describe"}),
    "writes": frozenset({"put", "append", "copy", "delete", "upload", "part", "create", "write"}),
}


class Call(NamedTuple):
    """One request. `zone`: "" where it is in none. `size`: bytes of its body, or of what it reads where that is known
    beforehand. `billed`: whether the cloud counts it as a request of its own."""

    service: str
    verb: str
    zone: str = ""
    size: int = 0
    caller_zone: str = ""
    billed: bool = True


def data_call(exchange: Exchange, dialect: str) -> Call:
    """A request of an object store."""
    zone = express_zone(exchange.bucket)
    if exchange.verb == "session":
        return Call("sessions", "session", zone, exchange.bytes_in, exchange.caller_zone)
    # The chunks of a resumable upload are part of the request that began it (Cloud Storage pricing, operations).
    billed = not (dialect == "gcp" and "upload_id=" in exchange.target)
    return Call("express" if zone else "objects", exchange.verb, zone, exchange.bytes_in, exchange.caller_zone, billed)


def express_zone(bucket: str) -> str:
    """The zone in a directory bucket's name; "" of any other bucket."""
    return bucket[: -len("--x-s3")].rpartition("--")[2] if bucket.endswith("--x-s3") else ""


_CONTROL_VERBS = (
    ("detach", "detach"),
    ("attach", "attach"),
    *((word, "describe") for word in ("describe", "list", "get", "wait", "read")),
    *((word, "create") for word in ("create", "insert", "run", "add", "put", "write")),
    *((word, "delete") for word in ("delete", "terminate", "remove")),
    ("start", "start"),
    *((word, "stop") for word in ("stop", "poweroff", "deallocate")),
    *((word, "change") for word in ("modify", "update", "change", "patch", "set", "resize")),
    ("token", "token"),
)
"""Words of the APIs' own names, in the order in which they decide: `AttachVolume`, `instances.attachDisk`."""
_BY_METHOD = {"GET": "describe", "PUT": "create", "POST": "create", "PATCH": "change", "DELETE": "delete"}
_DNS = ("/dns/", "/dnszones", "/hostedzone", "domain", "rrset", "managedzones")
_IDENTITY = ("/token", "/oauth2", "assumerole", "getcalleridentity")
_DETACHES = re.compile(rb'"dataDisksToDetach"\s*:\s*\[\s*\{')
_ZONE = re.compile(r"(?:AvailabilityZone(?:Id)?|ZoneId)=([A-Za-z0-9-]+)|/zones/([a-z0-9-]+)")


def control_call(exchange: Exchange, body: bytes) -> Call:
    """A request of a control API. The exchange's verb is the API's own name of what is asked for, or empty; `body`
    is small, and looked at for a zone only."""
    asked, low = exchange.verb.lower(), f"{exchange.target} {exchange.verb}".lower()
    found = _ZONE.search(f"{exchange.target}&{body[:4096].decode('latin-1')}")
    zone = (found[1] or found[2]) if found else ""
    if "attachdetach" in asked:  # Azure's one call for both
        asked = "detach" if _DETACHES.search(body) else "attach"
    verb = next((verb for word, verb in _CONTROL_VERBS if word in asked), "") or _BY_METHOD.get(
        exchange.method, "other"
    )
    if any(word in low for word in _IDENTITY):
        return Call("identity", "token")
    service = "dns" if any(word in low for word in _DNS) else "compute"
    return Call(service, verb, zone, exchange.bytes_in, exchange.caller_zone)
