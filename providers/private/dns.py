"""A name server of one's own, by dynamic update (RFC 2136) signed with TSIG (RFC 8945): `Dns`. Any server that takes
both will do: BIND, Knot, PowerDNS, Windows.

The comparison before a replacement is a prerequisite of the update itself ("this set exists with these values", "this
set does not exist"), which the server checks and acts on as one step; a set and its replacement are in one update, so
the name has records throughout. A prerequisite does not look at TTLs: those are compared just before.

The key needs the right to update the zone's names and types of `providers.base.dns.TYPES`, and to transfer the zone
(AXFR, for `list`); in BIND `update-policy { grant KEY zonesub A AAAA CNAME TXT SRV; }` and `allow-transfer`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from providers.base.blocking import SdkCalls, StoreSettings, read_credentials
from providers.base.clock import Clock, Rng
from providers.base.dns import TYPES, Dns, RecordSet
from providers.base.errors import Conflict, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.record_sets import check_name, check_record, check_zone, normal, quote_txt, unquote_txt
from providers.base.registry import AccountAddress

if TYPE_CHECKING:
    import dns.message
    import dns.rrset

PORT = 53
RECORDS_MAX = 100_000
"""Records that `list` reads; a larger zone is `Invalid`."""
ALGORITHM = "hmac-sha256"
"""Of the key, where the credentials file names none."""

_ENDPOINT = re.compile(r"dns://(\[[0-9a-fA-F:.]+\]|[^:/\[\]]+)(?::(\d{1,5}))?/?")


def open_dns(
    address: AccountAddress, zone: str, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None
) -> Dns:
    """Open the zone at the server `address.endpoint`, `dns://HOST[:PORT]`; nothing is sent yet. The credentials file
    holds the TSIG key: `key_name`, `key` (base64) and, if it is not hmac-sha256, `algorithm`.

    Raises:
        Invalid: no endpoint, a malformed one, a malformed zone or key.
    """
    settings = settings or StoreSettings()
    hint = "give the primary name server's address, dns://HOST or dns://HOST:PORT"
    found = _ENDPOINT.fullmatch(address.endpoint or "")
    if found is None or int(found.group(2) or PORT) >= 1 << 16:
        raise Invalid(f"{address.endpoint!r} is no name server for zone {zone}", hint=hint)
    secrets = read_credentials(address.credentials_file, "key_name", "key")
    calls = SdkCalls(f"dns {zone}", settings, _translate, clock=clock, rng=rng)
    host, port = found.group(1).strip("[]"), int(found.group(2) or PORT)
    return PrivateDns(host, port, check_zone(zone), _keyring(secrets), calls)


def _keyring(secrets: dict[str, Any]) -> Any:
    """None without credentials: then the server decides by address alone."""
    if not secrets:
        return None
    import dns.name
    import dns.tsig

    try:
        name = dns.name.from_text(str(secrets["key_name"]))
        secret = base64.b64decode(str(secrets["key"]), validate=True)
        return {name: dns.tsig.Key(name, secret, str(secrets.get("algorithm", ALGORITHM)))}
    except Exception as error:  # dnspython raises its own kinds, ValueError and binascii's
        raise Invalid(f"the TSIG key {secrets.get('key_name')!r} is malformed", hint="its secret is base64") from error


class PrivateDns:
    """See `providers.base.dns.Dns`."""

    def __init__(self, host: str, port: int, zone: str, keyring: Any, calls: SdkCalls) -> None:
        self._host, self._port, self._zone = host, port, zone
        self._keyring = keyring
        self._calls = calls

    async def get(self, name: str, type: str) -> RecordSet | None:
        check_name(name, type, self._zone)
        return await self._calls.repeated(name, lambda: self._get(name, type))

    async def list(self) -> Sequence[RecordSet]:
        return await self._calls.repeated(self._zone, self._transfer)

    async def replace(self, record: RecordSet, *, expected: RecordSet | None) -> None:
        check_record(record, self._zone)
        if expected is not None and (expected.name, expected.type) != (record.name, record.type):
            raise Invalid(f"{record.type} {record.name} does not replace {expected.type} {expected.name}")
        await self._check(record, expected)
        if expected is None or normal(expected) != normal(record):
            await self._calls.once(
                f"{record.type} {record.name}",
                lambda: self._update(record.name, record.type, expected, record),
                changes=True,
            )

    async def delete(self, expected: RecordSet) -> None:
        check_record(expected, self._zone)
        if await self.get(expected.name, expected.type) is None:
            return
        await self._check(expected, expected)
        try:
            await self._calls.once(
                f"{expected.type} {expected.name}",
                lambda: self._update(expected.name, expected.type, expected, None),
                changes=True,
            )
        except Conflict:
            if await self.get(expected.name, expected.type) is not None:
                raise

    async def close(self) -> None:
        self._calls.close()

    async def _check(self, record: RecordSet, expected: RecordSet | None) -> None:
        """Conflict where the zone holds something else; what changes after this the prerequisites see."""
        now = await self.get(record.name, record.type)
        if now != (None if expected is None else normal(expected)):
            shown = "nothing" if now is None else f"{', '.join(now.values)} (TTL {now.ttl_s} s)"
            raise Conflict(f"{record.type} {record.name} is {shown}, which was not expected")

    # ---- blocking, in a thread

    def _get(self, name: str, type: str) -> RecordSet | None:
        import dns.flags
        import dns.message
        import dns.rcode

        query = dns.message.make_query(name + ".", type, flags=0)
        answer = self._ask(query)
        if answer.rcode() == dns.rcode.NXDOMAIN:
            return None
        self._require_ok(answer, name)
        if not answer.flags & dns.flags.AA:
            raise NotFound(f"{self._host} does not hold zone {self._zone}", hint="name the zone's primary server")
        for found in answer.answer:
            record = _shown(found)
            if (record.name, record.type) == (name, type):
                return record
        return None

    def _transfer(self) -> Sequence[RecordSet]:
        import dns.query
        import dns.xfr
        import dns.zone

        zone = dns.zone.Zone(self._zone + ".", relativize=False)
        query, _ = dns.xfr.make_query(zone, keyring=self._keyring)
        seconds = self._calls.settings.read_timeout_ms / 1000
        dns.query.inbound_xfr(self._host, zone, query, port=self._port, timeout=seconds, lifetime=2 * seconds)
        found = []
        for name, rdataset in zone.iterate_rdatasets():
            if dns.rdatatype.to_text(rdataset.rdtype) in TYPES:
                found.append(_set(name.to_text(), rdataset))
            if len(found) > RECORDS_MAX:
                raise Invalid(f"zone {self._zone} has more than {RECORDS_MAX} record sets")
        return sorted(found, key=lambda record: (record.name, record.type))

    def _update(self, name: str, type: str, expected: RecordSet | None, record: RecordSet | None) -> None:
        import dns.update

        update = dns.update.UpdateMessage(self._zone + ".")
        if expected is not None:
            update.present(name + ".", type, *_texts(expected))
        elif type == "CNAME":
            # A server passes over a CNAME beside other records without a word (RFC 2136, section 3.4.2.2).
            update.absent(name + ".")
        else:
            update.absent(name + ".", type)
            update.absent(name + ".", "CNAME")
        if record is None:
            update.delete(name + ".", type)
        else:
            update.replace(name + ".", record.ttl_s, type, *_texts(record))
        self._require_ok(self._ask(update), name, updated=True)

    def _ask(self, message: dns.message.Message) -> dns.message.Message:
        import dns.query

        if self._keyring is not None:
            message.use_tsig(self._keyring)
        seconds = self._calls.settings.read_timeout_ms / 1000
        return dns.query.tcp(message, self._host, timeout=seconds, port=self._port)

    def _require_ok(self, answer: dns.message.Message, name: str, *, updated: bool = False) -> None:
        """Raises what the answer's code means (RFC 2136, section 2.2)."""
        import dns.rcode

        code = answer.rcode()
        if code == dns.rcode.NOERROR:
            return
        said = f"{name}: {self._host} answers {dns.rcode.to_text(code)}"
        match code:
            case dns.rcode.NXRRSET | dns.rcode.YXRRSET | dns.rcode.NXDOMAIN | dns.rcode.YXDOMAIN:
                raise Conflict(f"{said}: the zone holds something else")
            case dns.rcode.NOTAUTH:
                raise NotFound(said, hint=f"{self._host} is no primary server of zone {self._zone}")
            case dns.rcode.REFUSED:
                if not updated:
                    raise NotFound(said, hint=f"{self._host} holds no zone {self._zone}, or lets this host ask nothing")
                raise Invalid(said, hint=f"the credentials (TSIG key) lack the right to update {name}")
            case dns.rcode.SERVFAIL:
                raise OutcomeUnknown(said)
        raise Invalid(said)


def _texts(record: RecordSet) -> list[str]:
    """Values as a zone file has them."""
    match record.type:
        case "TXT":
            return [quote_txt(value) for value in record.values]
        case "CNAME" | "SRV":
            return [value.rstrip(".") + "." for value in record.values]
    return list(record.values)


def _shown(found: dns.rrset.RRset) -> RecordSet:
    return _set(found.name.to_text(), found)


def _set(name: str, found: Any) -> RecordSet:
    import dns.rdatatype

    kind = dns.rdatatype.to_text(found.rdtype)
    values = [rdata.to_text() for rdata in found]
    if kind == "TXT":
        values = [unquote_txt(value) for value in values]
    record = RecordSet(name.lower().rstrip("."), kind, int(found.ttl), tuple(values))
    return normal(record) if kind in TYPES else record


def _translate(error: Exception, subject: str, changes: bool) -> YunheError:
    import dns.exception
    import dns.rcode
    import dns.tsig
    import dns.xfr

    if isinstance(error, dns.tsig.PeerBadTime | dns.tsig.BadTime):
        return Invalid(
            f"{subject}: the server finds the signature's time wrong",
            hint="this host's clock or the server's is off: set both by NTP",
        )
    if isinstance(error, dns.tsig.PeerError | dns.tsig.BadSignature | dns.tsig.BadKey):
        hint = "the credentials (TSIG key name, secret, algorithm) are not the server's"
        return Invalid(f"{subject}: the server does not accept the key: {error}", hint=hint)
    if isinstance(error, dns.xfr.TransferError):
        if error.rcode == dns.rcode.NOTAUTH:
            return NotFound(f"{subject}: the name server holds no such zone")
        hint = "allow the credentials' key to transfer the zone (allow-transfer)"
        return Invalid(f"{subject}: the zone cannot be transferred: {error}", hint=hint)
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(f"{subject}: the name server refuses the connection")
    if isinstance(error, OSError | EOFError | dns.exception.Timeout):
        return (OutcomeUnknown if changes else Unavailable)(f"{subject}: {error or type(error).__name__}")
    return Invalid(f"{subject}: {error or type(error).__name__}")
