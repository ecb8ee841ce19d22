"""How long a request waits: distributions, and profiles of what the real services publish.

A distribution maps a draw in [0, 1) and the time since it began to milliseconds, so that whoever holds the draws
repeats the waits. Providers publish words ("tens of ms"), hardly ever numbers; what a profile makes of the words is an
assumption, and says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from providers.base.errors import Invalid

LATENCY_MS_MAX = 3_600_000.0
"""Longer than any client waits."""
RAMP_FACTOR_MAX = 10_000.0
_Z99 = 2.3263478740408408
"""The standard normal distribution's 99th percentile."""
_SHAPE_HINT = "write 50ms, 20ms..80ms or p50=20ms,p99=150ms; a ramp follows as ,ramp=50x/10m"


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of waits. `low_ms` and `high_ms`: equal for a fixed wait; the bounds of a uniform one; median and
    99th percentile of a lognormal one. A ramp multiplies by 1 at the beginning, by `ramp_factor` after `ramp_ms` and
    from then on."""

    low_ms: float
    high_ms: float
    lognormal: bool = False
    ramp_factor: float = 1.0
    ramp_ms: float = 0.0

    def __post_init__(self) -> None:
        """Raises:
        Invalid: not a distribution.
        """
        if not 0 <= self.low_ms <= self.high_ms <= LATENCY_MS_MAX:
            raise Invalid(f"a latency from {self.low_ms} to {self.high_ms} ms is not possible", hint=_SHAPE_HINT)
        if self.lognormal and self.low_ms <= 0:
            raise Invalid("a lognormal latency has a median above 0", hint=_SHAPE_HINT)
        if not 0 < self.ramp_factor <= RAMP_FACTOR_MAX or self.ramp_ms < 0:
            raise Invalid(f"a ramp to {self.ramp_factor} times is not possible", hint=_SHAPE_HINT)

    def at(self, draw: float, elapsed_ms: float) -> float:
        """Milliseconds for one request. `draw` in [0, 1), uniform."""
        if self.lognormal:
            sigma = math.log(self.high_ms / self.low_ms) / _Z99
            waited = self.low_ms * math.exp(sigma * _normal_quantile(draw))
        else:
            waited = self.low_ms + (self.high_ms - self.low_ms) * draw
        if self.ramp_factor != 1.0:
            done = min(1.0, max(0.0, elapsed_ms) / self.ramp_ms) if self.ramp_ms else 1.0
            waited *= 1.0 + (self.ramp_factor - 1.0) * done
        return min(waited, LATENCY_MS_MAX)

    def text(self) -> str:
        """As `parse` reads it."""
        if self.lognormal:
            shape = f"p50={self.low_ms:g}ms,p99={self.high_ms:g}ms"
        elif self.low_ms == self.high_ms:
            shape = f"{self.low_ms:g}ms"
        else:
            shape = f"{self.low_ms:g}ms..{self.high_ms:g}ms"
        return f"{shape},ramp={self.ramp_factor:g}x/{self.ramp_ms:g}ms" if self.ramp_factor != 1.0 else shape

    @staticmethod
    def parse(text: str) -> Latency:
        """Raises:
        Invalid: not in one of the forms that the hint names.
        """
        shape, _, ramp = text.replace(" ", "").partition(",ramp=")
        factor, over_ms = 1.0, 0.0
        if ramp:
            found = re.fullmatch(r"([0-9.]+)x/(.+)", ramp)
            if found is None:
                raise Invalid(f"{text!r} is not a latency", hint=_SHAPE_HINT)
            factor, over_ms = _number(found[1]), duration_ms(found[2])
        if (found := re.fullmatch(r"p50=([^,]+),p99=([^,]+)", shape)) is not None:
            return Latency(duration_ms(found[1]), duration_ms(found[2]), True, factor, over_ms)
        low, _, high = shape.partition("..")
        low_ms = duration_ms(low)
        return Latency(low_ms, duration_ms(high) if high else low_ms, False, factor, over_ms)

    @staticmethod
    def of(plain: Any) -> Latency | None:
        """From the text that travels; "" is none.

        Raises:
            Invalid: no text, or not a latency.
        """
        if not isinstance(plain, str):
            raise Invalid(f"{plain!r} is not a latency", hint=_SHAPE_HINT)
        return Latency.parse(plain) if plain else None


def duration_ms(text: str) -> float:
    """`500ms`, `101s`, `10m`, `2h`, `1d`.

    Raises:
        Invalid: not a duration.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", text.strip())
    if found is None:
        raise Invalid(f"{text!r} is not a duration", hint="a number and its unit: 500ms, 101s, 10m, 2h")
    return float(found[1]) * {"ms": 1, "s": 1e3, "m": 6e4, "h": 3.6e6, "d": 8.64e7}[found[2]]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is not a number", hint=_SHAPE_HINT) from error


def _normal_quantile(draw: float) -> float:
    from statistics import NormalDist  # slow to import, and most processes never need it

    return NormalDist().inv_cdf(min(max(draw, 1e-9), 1 - 1e-9))


@dataclass(frozen=True, slots=True)
class Expectation:
    """What one service is expected to take. `words` are the provider's own, `source` says where they stand."""

    provider: str
    service: str
    verbs: frozenset[str]
    """Empty: all."""
    latency: Latency
    words: str
    source: str
    confidence: str = "low: a distribution assumed from the words"


_READS = frozenset({"get", "head", "list"})
_WRITES = frozenset({"put", "append", "copy", "delete", "upload", "part"})


def _tens_of_ms(provider: str, source: str) -> list[Expectation]:
    """Object stores that say "tens of ms": first bytes a little sooner than durable writes."""
    words = "tens of ms"
    return [
        Expectation(provider, "objects", _READS, Latency(20, 120, True), words, source),
        Expectation(provider, "objects", _WRITES, Latency(35, 200, True), words, source),
    ]


EXPECTED: tuple[Expectation, ...] = (
    *_tens_of_ms("aws", "S3 user guide, performance guidelines; catalogue s3-standard"),
    *_tens_of_ms("azure", "catalogue blob-hot-zrs"),
    *_tens_of_ms("gcp", "catalogue gcs-standard"),
    *_tens_of_ms("aliyun", "catalogue oss-standard-zrs"),
    Expectation(
        "private", "objects", frozenset(), Latency(8, 60, True), "ms to tens of ms on LAN", "catalogue s3-compatible"
    ),
    Expectation(
        "aws",
        "express",
        frozenset(),
        Latency(4, 9, True),
        "single-digit ms first byte, read and write",
        "S3 user guide, s3-express-performance; catalogue s3-express-one-zone",
    ),
    Expectation(
        "aws",
        "volumes",
        frozenset(),
        Latency(1, 6, True),
        "single-digit ms",
        "catalogue gp3",
    ),
    Expectation(
        "azure",
        "volumes",
        frozenset(),
        Latency(2, 9, True),
        "single-digit ms class, writes slower than LRS",
        "azure-compute-docs disks-redundancy; catalogue premium-ssd-zrs",
    ),
    Expectation(
        "gcp",
        "volumes",
        frozenset(),
        Latency(1.5, 8, True),
        "not published for Hyperdisk Balanced HA; regional PD: ms class, writes slower than zonal",
        "repd-failover page; catalogue hyperdisk-balanced-ha, regional-pd-balanced",
    ),
    Expectation(
        "aliyun",
        "volumes",
        frozenset(),
        Latency(0.6, 3, True),
        "higher than a zonal ESSD's 0.2 ms average write; number not verified",
        "catalogue essd-pl1, regional-essd",
    ),
)
"""The profile `real`. Control APIs are missing: nobody publishes how long theirs take."""

PROFILES: Mapping[str, tuple[Expectation, ...]] = {"off": (), "real": EXPECTED}


def profile(name: str, provider: str) -> tuple[Expectation, ...]:
    """What that profile expects of a provider's services.

    Raises:
        Invalid: no such profile.
    """
    if name not in PROFILES:
        raise Invalid(f"no latency profile is named {name!r}", hint=f"one of: {', '.join(PROFILES)}")
    return tuple(row for row in PROFILES[name] if row.provider == provider)


def described(rows: Iterable[Expectation]) -> list[dict[str, str]]:
    """A profile as data, with its sources."""
    return [
        {
            "service": row.service,
            "verbs": ", ".join(sorted(row.verbs)) or "all",
            "latency": row.latency.text(),
            "words": row.words,
            "source": row.source,
            "confidence": row.confidence,
        }
        for row in rows
    ]
