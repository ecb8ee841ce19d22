"""A reader of Prometheus' text format, strict, after its description alone: it shares nothing with what writes it.

Source: "Exposition formats" and "Metric and label naming", prometheus.io/docs.
"""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass, field

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|\Z)')
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)\Z")
NUMBER = re.compile(r"(?:[+-]?Inf|NaN|[+-]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\Z")
UNESCAPED = {r"\n": "\n", r"\"": '"', r"\\": "\\"}
Labels = frozenset[tuple[str, str]]


@dataclass
class Read:
    """A family as a page tells it."""

    kind: str
    about: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)
    """By the sample's name and labels."""


@dataclass
class Pages:
    """A page."""

    families: dict[str, Read]

    def value(self, name: str, **labels: str) -> float:
        """Of one series; 0 where a family has no such series."""
        family = self.families.get(name) or self.families[name.rsplit("_", 1)[0]]
        return family.samples.get((name, frozenset(labels.items())), 0.0)

    @property
    def series(self) -> int:
        """How many there are."""
        return sum(len(family.samples) for family in self.families.values())


def read(text: str) -> Pages:
    """Raises AssertionError where the text is not of the format."""
    assert text.endswith("\n"), "the last line ends, too"
    families: dict[str, Read] = {}
    name = ""
    helped: dict[str, str] = {}
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, name, about = line.split(" ", 3)
            assert NAME.match(name) and name not in helped, line
            helped[name] = about
        elif line.startswith("# TYPE "):
            _, _, typed, kind = line.split(" ", 3)
            assert typed == name and kind in ("counter", "gauge", "histogram", "summary", "untyped"), line
            assert name not in families, f"{name} is there twice"
            families[name] = Read(kind, helped[name])
        else:
            found = SAMPLE.match(line)
            assert found, line
            sample, labels, value = found.group(1), _labels(found.group(2) or ""), found.group(3)
            family = families[name]
            ends = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
            assert sample in [name + end for end in ends], f"{sample} stands among the samples of {name}"
            assert NUMBER.match(value), line
            assert (sample, labels) not in family.samples, f"{line} is there twice"
            family.samples[sample, labels] = float(value)
    for name, family in families.items():
        if family.kind == "histogram":
            _check_histogram(name, family)
        if family.kind == "counter":
            assert all(value >= 0 for value in family.samples.values()), name
    return Pages(families)


def _labels(text: str) -> Labels:
    labels: dict[str, str] = {}
    at = 0
    while at < len(text):
        found = LABEL.match(text, at)
        assert found and found.group(1) not in labels, text
        labels[found.group(1)] = re.sub(r"\\.", lambda m: UNESCAPED[m.group()], found.group(2))
        at = found.end()
    return frozenset(labels.items())


def _check_histogram(name: str, family: Read) -> None:
    buckets: dict[Labels, list[tuple[float, float]]] = {}
    for (sample, labels), value in family.samples.items():
        if sample == f"{name}_bucket":
            bound = dict(labels)["le"]
            rest = frozenset(pair for pair in labels if pair[0] != "le")
            buckets.setdefault(rest, []).append((float(bound.replace("Inf", "inf")), value))
    for labels, counts in buckets.items():
        assert counts == sorted(counts), f"{name}: bounds and counts rise"
        assert counts[-1] == (float("inf"), family.samples[f"{name}_count", labels]), name
        assert [c for _, c in counts] == sorted(c for _, c in counts), name
        assert (f"{name}_sum", labels) in family.samples, name


def scrape(address: str, timeout_s: float = 10) -> Pages:
    """What is served at a URL."""
    with urllib.request.urlopen(address, timeout=timeout_s) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return read(answer.read().decode())
