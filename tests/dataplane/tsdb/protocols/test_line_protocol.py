"""Promises of the line protocol's reader: InfluxDB's grammar, line and column of what is wrong, and the fast way in is
the slow one."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from influxdb.line_protocol import make_lines
from influxdb_client import Point as ClientPoint

from dataplane.tsdb.protocols.line_batches import ERRORS_MAX, LineReader, Lines
from dataplane.tsdb.protocols.line_protocol import Bad, Point, read_point, unit_ns
from providers.base.errors import Invalid

NOW = 1_700_000_000_000_000_000


def one(text: str, unit: int = 1) -> Point:
    point = read_point(text, 0, unit)
    assert isinstance(point, Point)
    return point


def plain(point: Point) -> tuple[str, dict[str, str], dict[str, Any], int | None]:
    return point.measurement, dict(point.tags), {f.key: f.value for f in point.fields}, point.time


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cpu f=1", ("cpu", {}, {"f": 1.0}, None)),
        ("cpu,a=b f=1 5", ("cpu", {"a": "b"}, {"f": 1.0}, 5)),
        (r"my\ cpu\,x,ta\ g=va\,l\=ue fi\=eld=-1.5e3 -7", ("my cpu,x", {"ta g": "va,l=ue"}, {"fi=eld": -1500.0}, -7)),
        (r"c:\new,path=C:\dir f=1", (r"c:\new", {"path": r"C:\dir"}, {"f": 1.0}, None)),
        (
            'm s="a \\"quoted\\" \\\\ word, and = 1",t=t,u=18446744073709551615u,i=-9223372036854775808i',
            (
                "m",
                {},
                {"s": 'a "quoted" \\ word, and = 1', "t": True, "u": 2**64 - 1, "i": -(2**63)},
                None,
            ),
        ),
        ('m s="two\nlines",x=F 3\n', ("m", {}, {"s": "two\nlines", "x": False}, 3)),
        ("  m  f=.5,g=5.,h=+1   12  \r\n", ("m", {}, {"f": 0.5, "g": 5.0, "h": 1.0}, 12)),
        ("m f=1,f=2", ("m", {}, {"f": 2.0}, None)),
        ("温度,车=一 值=1i 9", ("温度", {"车": "一"}, {"值": 1}, 9)),
    ],
)
def test_the_grammar_is_influxdbs(line: str, expected: tuple[Any, ...]) -> None:
    assert plain(one(line)) == expected


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        ("cpu", 4, "fields are missing"),
        ("cpu ", 5, "fields are missing"),
        ("cpu,a f=1", 6, "equals sign should follow tag 'a'"),
        ("cpu,a= f=1", 7, "tag 'a' has no value"),
        ("cpu,a=1,a=2 f=1", 11, "given twice"),
        ("cpu,a=1=2 f=1", 8, "a comma or a space"),
        (",a=b f=1", 1, "measurement is missing"),
        ("cpu =1", 5, "name of a field is missing"),
        ("cpu f", 6, "equals sign should follow field 'f'"),
        ("cpu f=", 7, "has no value"),
        ("cpu f=abc", 7, "'abc': no number"),
        ("cpu f=NaN", 7, "no number"),
        ("cpu f=1e999", 7, "out of a float's range"),
        ("cpu f=9223372036854775808i", 7, "out of an integer's range"),
        ("cpu f=-1u", 7, "no number"),
        ("cpu f=18446744073709551616u", 7, "out of an unsigned"),
        ("cpu f=1, 5", 9, "name of a field is missing"),
        ('cpu f="a', 7, "has no end"),
        ('cpu f="a"b', 10, "a comma, a space or the line's end"),
        ("cpu f=1 x", 9, "no whole number"),
        ("cpu f=1 1.5", 9, "no whole number"),
        ("cpu f=1 5 5", 9, "no whole number"),
        ("cpu f=1 9223372036854775808", 9, "out of range"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(line: str, column: int, says: str) -> None:
    lines = read(f"good f=1 1\n{line}\n# comment\n\ngood f=2 2\n" if '"' not in line else f"good f=1 1\n{line}")
    [error] = lines.refusals.described(lines.text)
    assert (error.line, error.column) == (2, column), error
    assert says in error.reason
    assert error.text == line
    assert len(points(lines)) == (2 if '"' not in line else 1)


def test_lines_of_bytes_that_are_no_text_are_refused_alone() -> None:
    lines = LineReader().read(b"a f=1 1\nb f=\xff 2\nc f=3 3\n", unit=1, now_ns=NOW)
    assert [p[0] for p in points(lines)] == ["a", "c"]
    [error] = lines.refusals.described(lines.text)
    assert (error.line, error.column) == (2, 5)


def test_only_so_many_errors_are_described() -> None:
    lines = read("bad\n" * 1_000)
    assert lines.refusals.count == 1_000
    assert [e.line for e in lines.refusals.described(lines.text)] == list(range(1, ERRORS_MAX + 1))
    # Nor is all of a body read that is something else.
    lines = read("bad\n" * 20_000 + "good f=1 1\n")
    assert lines.refusals.count == 20_001
    assert not lines.groups


def test_precisions() -> None:
    assert one("m f=1 2", unit_ns("ms")).time == 2_000_000
    assert one("m f=1 2", unit_ns("h")).time == 7_200_000_000_000
    assert unit_ns(None) == unit_ns("") == unit_ns("n") == 1
    with pytest.raises(Bad, match="out of range"):
        one("m f=1 9223372036854775", unit_ns("s"))
    with pytest.raises(Invalid, match="precision 'days'"):
        unit_ns("days")


# ── the fast way is the slow one ────────────────────────────────────────────────────────────────────────────────────


def read(text: str, unit: int = 1) -> Lines:
    return LineReader().read(text.encode(), unit=unit, now_ns=NOW)


def points(lines: Lines) -> list[tuple[str, dict[str, str], dict[str, tuple[str, Any]], int]]:
    """All points, in the order of their lines."""
    found = []
    for group in lines.groups:
        for row, at in enumerate(group.at.tolist()):
            tags = {name: values[row].as_py() for name, values in group.tags.items()}
            fields = {name: (str(values.type), values[row].as_py()) for name, values in group.fields.items()}
            found.append((at, (group.measurement, tags, fields, group.times[row].as_py())))
    return [point for _, point in sorted(found, key=lambda one: one[0])]


ARROW = {float: "double", bool: "bool", str: "string"}


def slowly(text: str, unit: int) -> tuple[list[Any], list[int]]:
    """By the grammar alone: the points, and where refused lines offend."""
    found, bad, at = [], [], 0
    while at < len(text):
        try:
            point = read_point(text, at, unit)
        except Bad as error:
            bad.append(error.at)
            at = error.end
            continue
        if isinstance(point, int):
            at = point
            continue
        kinds = {"float64": "double"}
        fields = {f.key: (kinds.get(f.type.value, f.type.value), f.value) for f in point.fields}
        found.append((point.measurement, dict(point.tags), fields, NOW if point.time is None else point.time))
        at = point.end
    return found, bad


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # which tells -0.0 from 0.0


floats = st.floats(allow_nan=False, allow_infinity=False).map(repr)
odd = st.sampled_from(["1e999", "1e-999", "5.", ".5", "-0", "+1", "1" * 30, "1E+2", "nan", "0x10", "１", "1_0", "007"])
integers = st.integers(-(2**64), 2**64).map(lambda n: f"{n}i")
unsigned = st.integers(-2, 2**65).map(lambda n: f"{n}u")
booleans = st.sampled_from(["t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE", "tRUE", "tru"])
strings = st.text(st.sampled_from('ab, =\\"\n\r#é温'), max_size=6).map(lambda s: f'"{s}"')
values = st.one_of(floats, floats, odd, integers, unsigned, booleans, strings)
names = st.sampled_from(["a", "b", "c", r"d\ d", "温", "", "t.x", "(+"])
heads = st.sampled_from(
    ["m", "m,x=1", "m,x=2", r"m,x=\ 2", "n,x=1,y=2", "n,y=2,x=1", "n,x=,y=1", "", " m", "#m", "m,x"]
)
times = st.one_of(
    st.just(""), st.integers(-(2**64), 2**64).map(lambda n: f" {n}"), st.sampled_from(["  5 ", " x", " 5"])
)


@st.composite
def line(draw: st.DrawFn) -> str:
    fields = draw(st.lists(st.tuples(names, values), min_size=0, max_size=3))
    text = draw(heads) + " " + ",".join(f"{name}={value}" for name, value in fields) + draw(times)
    return text + draw(st.sampled_from(["\n", "\n", "\r\n"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(line(), max_size=8), st.integers(1, 5), st.sampled_from([1, 1_000_000, 10**9]))
def test_the_fast_way_finds_what_the_grammar_finds(lines: list[str], repeats: int, unit: int) -> None:
    text = "".join(lines) * repeats
    reader = LineReader()
    for _ in range(3):  # the first learns
        read = reader.read(text.encode(), unit=unit, now_ns=NOW)
        found, bad = slowly(text, unit)
        assert same(points(read), found)
        assert sorted(at for _, at, _ in read.refusals.kept) == bad
        assert read.refusals.count == len(bad)


@pytest.mark.parametrize(
    "odd",
    [
        "m f=1e999,i=1i,u=1u 1",
        "m f=-1e999,i=1i,u=1u 1",
        "m f=1e-999,i=1i,u=1u 1",
        "m f=1,i=9223372036854775808i,u=1u 1",
        "m f=1,i=-9223372036854775809i,u=1u 1",
        "m f=1,i=1i,u=18446744073709551616u 1",
        "m f=1,i=1i,u=1u 9223372036854776",
        "m f=1,i=1i,u=1u -9223372036854776",
        "m f=1,i=1i,u=1u 99999999999999999999",
        "m f=1,i=00000000000000000000001i,u=1u 1",
        *(
            f"m f={value},i=1i,u=1u 1"
            for value in ("nan", "inf", "0x10", "1_0", "１", "--1", "1e", ".", "5.", "", "1i")
        ),
        *(f"m f=1,i={value},u=1u 1" for value in ("1", "1ii", "1u", "0x1i", "+1i", "1-1i", "i", "t", "1.5i", '"1i"')),
        *(f"m f=1,i=1i,u={value} 1" for value in ("-1u", "1i", "1uu", "u1u", "")),
        *(f"m f=1,i=1i,u=1u {time}" for time in ("1x", "", "1 1", "+1", "-", "1,1")),
        "m f=1,i=1i,u=1u 1\r",
        "m f=1,j=1i,u=1u 1",
        "m f,1=i=1i=u=1u 1",
        r"m f=1\,i=1i,u=1u 1",
    ],
)
def test_what_is_no_value_of_its_shape_among_good_ones_is_refused_or_read_by_itself(odd: str) -> None:
    good = "m f=1.5,i=-2i,u=3u 4\n"
    text = good * 3 + odd + "\n" + good + "n f=1 1\n" * 3
    reader = LineReader()
    for _ in range(2):
        reader.read((good + "n f=1 1\n").encode() * 2, unit=1_000, now_ns=NOW)
    lines = reader.read(text.encode(), unit=1_000, now_ns=NOW)
    found, bad = slowly(text, 1_000)
    assert same(points(lines), found)
    assert [at for _, at, _ in lines.refusals.kept] == bad
    assert [e.line for e in lines.refusals.described(text)] == [4] * len(bad)


def test_lines_are_told_by_all_their_names() -> None:
    """Those of one head with the same separators and first name, known and unknown ones."""
    known = ["m a=1,b=2i 1\n", "m a=3,c=4i 2\n", "m,x=1 a=5,b=t\n", "m,x=2 a=6,d=f\n"]
    reader = LineReader()
    for _ in range(2):
        reader.read("".join(known * 2).encode(), unit=1, now_ns=NOW)
    text = "".join([*known * 3, "m a=7,e=8i 3\n", "m,x=1 a=9,e=t\n", "m a=1,b=2i 4\n", "m a=x,c=1i 5\n", *known[::-1]])
    lines = reader.read(text.encode(), unit=1, now_ns=NOW)
    found, bad = slowly(text, 1)
    assert same(points(lines), found)
    assert [at for _, at, _ in lines.refusals.kept] == bad


def test_of_lines_that_only_seem_to_be_of_a_shape_not_all_are_read_either() -> None:
    reader = LineReader()
    for _ in range(2):
        reader.read(b"m f=1 1\n" * 2, unit=1, now_ns=NOW)
    lines = reader.read(b"m f=x 1\n" * 20_000 + b"m f=1 1\n", unit=1, now_ns=NOW)
    assert lines.refusals.count == 20_000
    assert len(points(lines)) == 1
    assert [e.line for e in lines.refusals.described(lines.text)] == list(range(1, ERRORS_MAX + 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), floats, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=30))
def test_lines_of_one_shape_take_the_fast_way(rows: list[tuple[int, str, int]]) -> None:
    # Judged by Python's own numbers; that the fast way is taken, by what the reader has left to the grammar.
    text = "".join(f"m,x={x} f={f},i={i}i,b=t {i}\n" for x, f, i in rows)
    reader = LineReader()
    for _ in range(2):
        reader.read((text * 2).encode(), unit=1, now_ns=NOW)
    lines = reader.read(text.encode(), unit=1, now_ns=NOW)
    assert len(lines.groups) == 1
    expected = [
        ("m", {"x": str(x)}, {"f": ("double", float(f)), "i": ("int64", i), "b": ("bool", True)}, i) for x, f, i in rows
    ]
    assert same(points(lines), expected)


def some(alphabet: str, size: int) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(alphabet), min_size=1, max_size=size)


client_values = st.one_of(
    st.floats(-1e9, 1e9), st.booleans(), st.text(st.sampled_from('s ,="\\\n'), max_size=5), st.integers(-9, 9)
)


@settings(max_examples=100, deadline=None)
@given(
    some("ab ,=温", 5),
    st.dictionaries(some("xy ,=é", 4), some("v ,=w", 5), max_size=3),
    st.dictionaries(some("fg ,=ü", 4), client_values, min_size=1, max_size=3),
    st.integers(0, 2**62),
)
def test_what_influxdbs_own_client_writes_is_read_back(
    measurement: str, tags: dict[str, str], fields: dict[str, Any], time: int
) -> None:
    point = ClientPoint(measurement).time(time)
    for key, value in tags.items():
        point.tag(key, value)
    for key, value in fields.items():
        point.field(key, value)
    if any(value.endswith("\\") for value in fields.values() if isinstance(value, str)):
        return
    assert plain(one(point.to_line_protocol())) == (measurement, tags, fields, time)


def test_what_influxdbs_first_client_writes_is_read_back() -> None:
    written = make_lines(
        {
            "points": [
                {"measurement": "m x", "tags": {"t,a": "v=1 2"}, "fields": {"f": 1, "s": 'a"b', "x": 2.5}, "time": 7}
            ]
        }
    )
    assert plain(one(written)) == ("m x", {"t,a": "v=1 2"}, {"f": 1, "s": 'a"b', "x": 2.5}, 7)


def test_reading_takes_time_by_length_only() -> None:
    """Bodies made to be read slowly: quotes and heads without an end, and digits without number."""
    for text in ('m f="\\' * 50_000, "m\n" * 100_000, "m,a=\n" * 100_000, "m f=" + "1" * 500_000, 'm f="' * 50_000):
        lines = read(text)
        assert lines.refusals.count > 0
    assert len(gzip.compress(b"m\n" * 100_000)) < 1_000
