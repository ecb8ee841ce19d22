"""The text: read by a reader that shares nothing with its writer."""

from __future__ import annotations

import math
import random

import pytest

from dataplane.metrics.histogram import BOUNDS_MS, Histogram
from dataplane.metrics.page import Page
from tests.prometheus_text import read


def test_what_a_page_tells_is_what_a_reader_understands() -> None:
    page = Page()
    page.counter("a_total", 'With a \\ and a "quote" and\nanother line.', 7)
    page.gauge("b", "Labels.", [({"x": 'a"b\\c\nd,}{="', "y": ""}, -0.5), ({"x": "größe", "y": "1"}, 1e300)])
    page.gauge("c", "Nothing now.", [])
    page.gauge("d", "Odd numbers.", [({"of": "large"}, 2**53), ({"of": "inf"}, math.inf), ({"of": "nan"}, math.nan)])
    page.gauge("e", "Whether.", True)
    told = read(page.text().decode())
    assert [(name, family.kind) for name, family in told.families.items()] == [
        ("a_total", "counter"), ("b", "gauge"), ("c", "gauge"), ("d", "gauge"), ("e", "gauge"),
    ]  # fmt: skip
    assert told.value("a_total") == 7 and told.value("e") == 1
    assert told.value("b", x='a"b\\c\nd,}{="', y="") == -0.5
    assert told.value("b", x="größe", y="1") == 1e300
    assert told.value("d", of="large") == 2**53 and told.value("d", of="inf") == math.inf
    assert math.isnan(told.value("d", of="nan"))


@pytest.mark.parametrize("seed", range(5))
def test_a_histogram_counts_each_duration_once_in_every_bucket_that_holds_it(seed: int) -> None:
    rng = random.Random(seed)
    durations = [*BOUNDS_MS, 0.0, *(rng.expovariate(1 / 50) * rng.choice((1, 1, 500)) for _ in range(500))]
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    page = Page()
    page.histogram("h_seconds", "Durations.", [({"of": "x"}, histogram), ({"of": "nothing"}, Histogram())])
    told = read(page.text().decode())
    for bound in BOUNDS_MS:
        expected = sum(duration <= bound for duration in durations)
        assert told.value("h_seconds_bucket", of="x", le=f"{bound / 1000:g}") == expected
    assert told.value("h_seconds_count", of="x") == len(durations)
    assert told.value("h_seconds_sum", of="x") == pytest.approx(sum(durations) / 1000)
    assert told.value("h_seconds_count", of="nothing") == 0
