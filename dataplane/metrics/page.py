"""A page of metrics in Prometheus' text format, version 0.0.4, which every scraper takes.

Source: "Exposition formats", prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from dataplane.metrics.histogram import BOUNDS_MS, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]
"""Labels and the value."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_BOUNDS = tuple(f"{bound / 1000:g}" for bound in BOUNDS_MS)


class Page:
    """Families, each with what it means, in the order in which they are written. One that has no sample now is written
    all the same, so that what there can be is known."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def counter(self, name: str, about: str, samples: float | Iterable[Sample]) -> None:
        """What only grows, until its process ends: a number, or one for each of several labels."""
        self._family(name, "counter", about)
        self._samples(name, samples)

    def gauge(self, name: str, about: str, samples: float | Iterable[Sample]) -> None:
        """What is so now."""
        self._family(name, "gauge", about)
        self._samples(name, samples)

    def histogram(self, name: str, about: str, histograms: Iterable[tuple[Mapping[str, str], Histogram]]) -> None:
        """Durations, told in seconds."""
        self._family(name, "histogram", about)
        for labels, histogram in histograms:
            below = 0
            for bound, count in zip((*_BOUNDS, "+Inf"), histogram.counts, strict=True):
                below += count
                self._sample(f"{name}_bucket", {**labels, "le": bound}, below)
            self._sample(f"{name}_sum", labels, histogram.sum_ms / 1000)
            self._sample(f"{name}_count", labels, below)

    def text(self) -> bytes:
        """The page."""
        return ("\n".join(self._lines) + "\n").encode()

    def _family(self, name: str, kind: str, about: str) -> None:
        told = about.replace("\\", "\\\\").replace("\n", "\\n")
        self._lines += (f"# HELP {name} {told}", f"# TYPE {name} {kind}")

    def _samples(self, name: str, samples: float | Iterable[Sample]) -> None:
        if isinstance(samples, (int, float)):
            samples = [({}, samples)]
        for labels, value in samples:
            self._sample(name, labels, value)

    def _sample(self, name: str, labels: Mapping[str, str], value: float) -> None:
        told = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
        self._lines.append(f"{name}{{{told}}} {_number(value)}" if told else f"{name} {_number(value)}")


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
