"""What every process of an emulated cloud has in front of it: its faults, its meter, and the admin calls that set and
show them. Kept in one folder, so that a restarted process goes on as before.

    GET  /-/faults            faults in force, and the latency profile
    POST /-/faults            {"add": [{...}]} or {"clear": ["id"] | "all"} or {"rules": [...], "seed": n}
    POST /-/latency           {"profile": "real" | "off"}
    GET  /-/meter[?since=reset]
    POST /-/meter             {"reset": true}; answers what was counted since the reset before

All need the admin token of the cloud's credentials file. What is wrong is refused whole, and changes nothing.
"""

from __future__ import annotations

import hmac
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from providers.base.clock import Clock
from providers.base.errors import Invalid, NotFound, YunheError
from providers.base.files import replace_file
from providers.lab import latency, refusals
from providers.lab.calls import GROUPS, Call, data_call, express_zone
from providers.lab.fault import FOR_MS_MAX, Fault, Kind
from providers.lab.faults import CALM, Faults, Verdict
from providers.lab.meter import Meter

if TYPE_CHECKING:
    from providers.lab.wire import Exchange, Reply

GATE_PATHS = ("/-/faults", "/-/latency", "/-/meter")
"""Admin calls that are answered here."""
REQUESTS_KEPT_MAX = 1000
"""The newest requests are kept for whoever wants to count them."""
HOLD_LOOK_MS = 50.0
"""How often a held request looks whether its sender is still there."""
KEEP_MS = 10_000.0
"""How often what stands is looked at and the meter written down. A kill loses this much of the count at most."""


class Gate:
    """See the module. `folder`: where faults and meter are kept; None keeps nothing. `standing`: bytes that stand
    now, by what they are."""

    def __init__(
        self,
        provider: str,
        *,
        clock: Clock,
        dialect: str = "",
        admin_token: str | None,
        folder: Path | None = None,
        standing: Callable[[], Mapping[str, int]] | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self.provider = provider
        self._dialect = dialect
        self.faults = Faults()
        self._clock = clock
        self._admin_token = admin_token
        self._folder = folder
        self._standing = standing
        self._changed = changed
        self._profile = "off"
        self._requests: deque[tuple[str, str, int]] = deque(maxlen=REQUESTS_KEPT_MAX)
        self.meter = Meter(clock.wall_ms())
        self._load()

    # ---- requests

    def judge(self, exchange: Exchange, call: Call | None = None) -> Verdict:
        """What happens to this request, whose body has arrived and which nothing has been done about yet. What this
        cloud would answer is in `error` already."""
        if self.faults.quiet:
            return CALM  # a benchmark runs over this
        asked = call or data_call(exchange, self._dialect)
        verdict = self.faults.judge(asked, self._clock.wall_ms(), method=exchange.method, target=exchange.target)
        return verdict if verdict is CALM else self.words(verdict, control=asked.service in GROUPS["control"])

    def words(self, verdict: Verdict, *, control: bool) -> Verdict:
        """The verdict with what this cloud would answer."""
        if verdict.throttled:
            return replace(verdict, error=refusals.throttled(self.provider, control=control))
        if verdict.full:
            return replace(verdict, error=refusals.full(self.provider))
        if verdict.error is not None and not verdict.error[1]:
            status = verdict.error[0]
            return replace(verdict, error=(status, refusals.code_of(self.provider, status, control=control)))
        return verdict

    async def hold(self, verdict: Verdict, gone: Callable[[], bool]) -> None:
        """Keep a request unanswered until its sender has gone, or for as long as the fault says."""
        end_ms = self._clock.monotonic_ms() + verdict.silent_ms
        while (left_ms := end_ms - self._clock.monotonic_ms()) > 0:
            if gone():
                return
            await self._clock.sleep_ms(min(HOLD_LOOK_MS, left_ms))

    def note(self, exchange: Exchange, call: Call | None = None, *, refused: bool = False) -> None:
        """Count and remember a request that is over; status 0: no answer was sent. `refused`: a fault kept it from
        being done, and so it is not billed."""
        self._requests.append((exchange.method, exchange.target, exchange.status))
        self.meter.count(
            call or data_call(exchange, self._dialect),
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            failed=refused or exchange.status >= 500,
        )

    async def keeping(self) -> None:
        """`keep`, for ever."""
        while True:
            await self._clock.sleep_ms(KEEP_MS)
            self.keep()

    def keep(self) -> None:
        """Look at what stands, and write down the meter and how many requests each fault has matched."""
        self.observe()
        self._write("meter.json", self.meter.plain())
        if self.faults.any():
            self._write_faults()

    def observe(self) -> None:
        """Look at what stands now."""
        if self._standing is not None:
            self.meter.observe(self._standing(), self._clock.wall_ms())

    # ---- admin

    def admin_reply(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The answer to an admin call over HTTP; header names in lower case."""
        from providers.lab.wire import Reply

        if not self.allowed(headers.get("authorization", "").removeprefix("Bearer ")):
            return Reply(403, body=b"the admin token of the credentials file is needed\n")
        status, plain = self.admin(method, target, body)
        return Reply(status, {"Content-Type": "application/json"}, json.dumps(plain).encode())

    def allowed(self, token: str) -> bool:
        """Whether that is the admin token. Without one in the credentials, nobody is let in."""
        return self._admin_token is not None and hmac.compare_digest(token.encode(), self._admin_token.encode())

    def admin(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """(HTTP status, answer) of an admin call that was let in."""
        path, _, query = target.partition("?")
        try:
            plain = json.loads(body) if method == "POST" else {}
            if not isinstance(plain, dict):
                raise Invalid("an admin call's body is a JSON object")
            match method, path:
                case "GET", "/-/faults":
                    return 200, self.shown()
                case "POST", "/-/faults":
                    self._set_faults(plain)
                    return 200, self.shown()
                case "POST", "/-/latency":
                    self.set_profile(str(plain.get("profile")))
                    return 200, self.shown()
                case "GET", "/-/meter":
                    return 200, self.metered(since_reset="since=reset" in query)
                case "POST", "/-/meter":
                    if plain != {"reset": True}:
                        raise Invalid('a meter takes {"reset": true}')
                    return 200, self.reset_meter()
        except NotFound as error:
            return 404, {"error": error.message, "hint": error.hint}
        except YunheError as error:
            return 400, {"error": error.message, "hint": error.hint}
        except (ValueError, TypeError, AttributeError) as error:
            return 400, {"error": f"the admin call cannot be read: {error}", "hint": None}
        return 404, {"error": f"there is no {method} {path}", "hint": None}

    def shown(self) -> dict[str, Any]:
        """Faults in force with the time they have left, the latency profile, the newest requests."""
        now_ms = self._clock.wall_ms()
        live = self.faults.live(now_ms)
        return {
            "faults": [
                {
                    **fault.plain(),
                    "matched": matched,
                    "left_s": round((fault.until_ms - now_ms) / 1000, 1),
                    "begins_in_s": round(max(0.0, fault.from_ms - now_ms) / 1000, 1),
                }
                for fault, matched in live
            ],
            "latency": self._profile,
            "requests": [list(row) for row in self._requests],
        }

    def metered(self, *, since_reset: bool) -> dict[str, Any]:
        """The meter's counters."""
        self.observe()
        return self.meter.snapshot(self._clock.wall_ms(), since_reset=since_reset)

    def reset_meter(self) -> dict[str, Any]:
        """Begin a new run; what the last one counted."""
        counted = self.metered(since_reset=True)
        self.meter.reset(self._clock.wall_ms())
        self.keep()
        return counted

    def set_profile(self, name: str) -> None:
        """Raises:
        Invalid: no such latency profile.
        """
        self.faults.expect(latency.profile(name, self.provider))
        self._profile = name
        self._write_faults()
        self._tell()

    def _set_faults(self, plain: Mapping[str, Any]) -> None:
        now_ms = self._clock.wall_ms()
        if len([name for name in ("add", "clear", "rules") if name in plain]) != 1:
            raise Invalid("a call sets faults by one of add, clear, rules")
        if "add" in plain:
            if set(plain) != {"add"} or not isinstance(plain["add"], list):
                raise Invalid("add is a list of faults")
            self.faults.add([Fault.of(one, now_ms) for one in plain["add"]], now_ms)
        elif "clear" in plain:
            ids = plain["clear"]
            if ids != "all" and not (isinstance(ids, list) and all(isinstance(one, str) for one in ids)):
                raise Invalid('clear is a list of ids, or "all"')
            self.faults.clear(None if ids == "all" else ids)
        else:
            fresh = rules(plain, now_ms)
            self.faults.clear(transient=True)
            self.faults.add(fresh, now_ms)
        self._write_faults()
        self._tell()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed()

    # ---- over a restart

    def _load(self) -> None:
        now_ms = self._clock.wall_ms()
        try:
            if (plain := self._read("faults.json")) is not None:
                kept = [(Fault.of(one["fault"], now_ms), int(one["matched"])) for one in plain["faults"]]
                live = [fault for fault, _ in kept if fault.until_ms > now_ms]
                self.faults.add(live, now_ms, matched={fault.id: matched for fault, matched in kept})
                self._profile = str(plain["latency"])
                self.faults.expect(latency.profile(self._profile, self.provider))
            if (plain := self._read("meter.json")) is not None:
                self.meter.restore(plain)
        except (YunheError, KeyError, TypeError, ValueError) as error:
            # A rehearsal's settings are not worth a cloud that does not start.
            print(f"the faults and the meter in {self._folder} are dropped: {error}", file=sys.stderr)

    def _read(self, name: str) -> dict[str, Any] | None:
        if self._folder is None:
            return None
        try:
            return dict(json.loads((self._folder / name).read_bytes()))
        except FileNotFoundError:
            return None

    def _write_faults(self) -> None:
        live = self.faults.live(self._clock.wall_ms())
        kept = [{"fault": fault.plain(), "matched": matched} for fault, matched in live if not fault.transient]
        self._write("faults.json", {"faults": kept, "latency": self._profile})

    def _write(self, name: str, plain: Mapping[str, Any]) -> None:
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._folder / name, json.dumps(plain).encode())
        except OSError as error:
            # A full disk takes the count of this run, not the cloud.
            print(f"{self._folder / name} cannot be written: {error.strerror}", file=sys.stderr)


class SkewedClock:
    """A cloud's clock, off by what its faults say. What waits and what ends is not."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.faults: Faults | None = None

    def monotonic_ms(self) -> float:
        return self._clock.monotonic_ms()

    def wall_ms(self) -> int:
        now_ms = self._clock.wall_ms()
        return now_ms + int(self.faults.skew_ms(now_ms)) if self.faults is not None else now_ms

    async def sleep_ms(self, duration_ms: float) -> None:
        await self._clock.sleep_ms(duration_ms)


def standing(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by what they are, of buckets by name."""
    made = {"objects": 0, "express": 0}
    for bucket, size in sizes.items():
        made["express" if express_zone(bucket) else "objects"] += size
    return made


_RULE: Mapping[str, tuple[type | tuple[type, ...], Any]] = {
    "method": (str, ""),
    "contains": (str, ""),
    "times": (int, -1),
    "latency_ms": ((int, float), 0),
    "rate": ((int, float), 1.0),
    "error_status": (int, 0),
    "error_code": (str, ""),
    "drop_answer": (bool, False),
    "unavailable": (bool, False),
}


def rules(plain: Mapping[str, Any], now_ms: float) -> Sequence[Fault]:
    """Faults in the short form of tests, which replace each other and are forgotten with the process:
    `{"seed": 1, "rules": [{"method": "PUT", "contains": "key", "times": 1, "unavailable": true}]}`.

    Raises:
        Invalid: an unknown field or a value of the wrong type.
    """
    given = plain["rules"]
    if not isinstance(given, list):
        raise Invalid("rules is a list")
    made = []
    for number, rule in enumerate(given, start=1):
        for name, value in rule.items():
            if name not in _RULE:
                raise Invalid(f"unknown field {name!r} in a fault rule", hint=f"one of: {', '.join(_RULE)}")
            if not isinstance(value, _RULE[name][0]):
                raise Invalid(f"field {name!r} of a fault rule has the wrong type")
        said = {name: rule.get(name, default) for name, (_, default) in _RULE.items()}
        kind = Kind.LATENCY
        if said["unavailable"]:
            kind = Kind.RESET
        elif said["error_status"]:
            kind = Kind.ERROR
        elif said["drop_answer"]:
            kind = Kind.LOST
        made.append(
            Fault(
                id=f"rule-{number}",
                kind=kind,
                from_ms=now_ms,
                until_ms=now_ms + FOR_MS_MAX,
                rate=float(said["rate"]),
                seed=int(plain.get("seed", 0)) + number,
                latency=f"{said['latency_ms']}ms" if said["latency_ms"] or kind is Kind.LATENCY else "",
                status=said["error_status"],
                code=said["error_code"],
                times=said["times"],
                method=said["method"],
                contains=said["contains"],
                transient=True,
            )
        )
    return made
