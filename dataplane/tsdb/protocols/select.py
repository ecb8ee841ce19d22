"""SELECT as GreptimeDB's and MySQL's users write it becomes DuckDB's.

A statement that needs nothing is passed on as it was written, but for its quotes. The rest is parsed by sqlglot in a
dialect that is DuckDB's and a few words more, and changed here, all of it:

- `now()`, CURRENT_TIMESTAMP, UTC_TIMESTAMP(), CURDATE() …: the time at which the statement began, in UTC, as a literal
- UNIX_TIMESTAMP(t), FROM_UNIXTIME(s), to_unixtime(t), `a DIV b`, CAST(… AS SIGNED): what Grafana's macros expand to
- date_bin(step, t [, origin]): buckets counted from the epoch, as in GreptimeDB (DuckDB's own time_bucket is not)
- LIMIT offset, count
- database.table, version(), database(), user(), connection_id(), @@variable
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import SqlglotError
from sqlglot.parsers.duckdb import DuckDBParser
from sqlglot.tokenizer_core import TokenType

from dataplane.tsdb.protocols.cursor import Unsupported
from dataplane.tsdb.protocols.lexer import Kind, Token, place, quoted_string, text
from dataplane.tsdb.protocols.session import VERSION, Session
from providers.base.errors import Invalid

QUERY_TOKENS_MAX = 20_000
"""Of one SELECT. Parsing takes about 20 µs each."""
CATALOG = "information_schema"
CATALOG_PREFIX = "__information_schema_"
"""Of the names under which `information_schema.py` holds its tables."""
_SAID = "__said"

_NOW = frozenset({"NOW", "CURRENT_TIMESTAMP", "LOCALTIMESTAMP", "LOCALTIME", "UTC_TIMESTAMP", "SYSDATE"})
_TODAY = frozenset({"CURDATE", "CURRENT_DATE", "UTC_DATE"})
_WITHOUT_PARENTHESES = frozenset({"CURRENT_TIMESTAMP", "LOCALTIMESTAMP", "CURRENT_DATE", "CURRENT_USER"})
_RESERVED = frozenset({"CURRENT_SCHEMA", "CURRENT_CATALOG", "CURRENT_USER", "CURRENT_ROLE", "SESSION_USER", "USER"})
_OF_SESSION = frozenset(
    {"VERSION", "DATABASE", "SCHEMA", "USER", "CURRENT_USER", "SESSION_USER", "SYSTEM_USER", "CONNECTION_ID"}
)
_FUNCTIONS = frozenset({"UNIX_TIMESTAMP", "FROM_UNIXTIME", "TO_UNIXTIME", "DATE_BIN"})
_WORDS = _NOW | _TODAY | _OF_SESSION | _FUNCTIONS | {"DIV", "SIGNED", "UNSIGNED", CATALOG.upper()}


class GreptimeSql(DuckDB):
    """DuckDB's grammar, and MySQL's DIV and SIGNED."""

    class Tokenizer(DuckDB.Tokenizer):
        KEYWORDS = {  # noqa: RUF012
            **DuckDB.Tokenizer.KEYWORDS,
            "DIV": TokenType.DIV,
            "SIGNED": TokenType.BIGINT,
            "UNSIGNED": TokenType.UBIGINT,
        }

    class Parser(DuckDBParser):
        # So that it is told from DuckDB's time_bucket, whose buckets begin elsewhere.
        FUNCTIONS = {name: built for name, built in DuckDBParser.FUNCTIONS.items() if name != "DATE_BIN"}  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Select:
    """A SELECT in DuckDB's SQL. `of_catalog`: over `information_schema`, and nothing else."""

    sql: str
    of_catalog: bool = False


def rewritten(
    statement: Sequence[Token], sql: str, *, databases: Collection[str], session: Session, now_ms: int
) -> Select:
    """`databases`: the names that this database answers to; `now_ms`: what now() is.

    Raises:
        Invalid: it cannot be parsed, is too long, or mixes the catalog's tables with others.
    """
    if len(statement) > QUERY_TOKENS_MAX:
        raise Invalid(f"a SELECT of {len(statement)} words is longer than {QUERY_TOKENS_MAX}")
    _refuse_range_query(statement, sql)
    if not _needs(statement, databases, session):
        return Select(text(statement))
    written = _with_values(statement, session, now_ms)
    divides = any(token.kind is Kind.WORD and token.text.upper() == "DIV" for token in statement)
    root = _parsed(written)
    of_catalog = _of_catalog(root, databases)
    labels = {
        id(projection): projection.sql(dialect=GreptimeSql)
        for select in root.find_all(exp.Select)
        for projection in select.expressions
        if not isinstance(projection, (exp.Alias, exp.Column, exp.Star))
    }
    for select in root.find_all(exp.Select):
        projections = [_labelled(projection, labels.get(id(projection)), divides) for projection in select.expressions]
        select.set("expressions", projections)
    return Select(_all_changed(root, databases, divides).sql(dialect="duckdb"), of_catalog)


def condition(
    statement: Sequence[Token], sql: str, *, databases: Collection[str], session: Session, now_ms: int
) -> str:
    """The condition of a DELETE, in DuckDB's SQL.

    Raises:
        Invalid: it is not one expression.
    """
    if len(statement) > QUERY_TOKENS_MAX:
        raise Invalid(f"a condition of {len(statement)} words is longer than {QUERY_TOKENS_MAX}")
    root = _parsed(_with_values(statement, session, now_ms), into=exp.Condition)
    if root.find(exp.Query) is not None:
        raise Unsupported("a subquery in the condition of a DELETE is not there: name tags and times")
    divides = any(token.kind is Kind.WORD and token.text.upper() == "DIV" for token in statement)
    return _all_changed(root, databases, divides).sql(dialect="duckdb")


# ── before parsing ──────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_range_query(statement: Sequence[Token], sql: str) -> None:
    for token, after in pairwise(statement):
        if token.kind is Kind.WORD and token.text.upper() == "ALIGN" and after.kind is Kind.STRING:
            raise Unsupported(
                f"a range query (ALIGN, {place(sql, token.start)}) is not there",
                hint="GROUP BY date_bin(INTERVAL '1 minute', ts)",
            )


def _needs(statement: Sequence[Token], databases: Collection[str], session: Session) -> bool:
    for at, token in enumerate(statement):
        if token.kind is Kind.VARIABLE:
            return True
        if token.kind not in (Kind.WORD, Kind.NAME):
            continue
        if token.kind is Kind.WORD and (token.text.upper() in _WORDS or token.text.upper() in session.functions):
            return True
        after = statement[at + 1] if at + 1 < len(statement) else None
        if after is not None and after.text == "." and token.text in (*databases, "def", "greptime"):
            return True
        if after is not None and token.text.upper() in (CATALOG.upper(),):
            return True
        if token.text.upper() == "LIMIT" and at + 2 < len(statement) and statement[at + 2].text == ",":
            return True
    return False


def _with_values(statement: Sequence[Token], session: Session, now_ms: int) -> str:
    """The text, with what this moment and this connection decide put in. A value says what stood there, so that a
    column of the answer can be named by it."""
    parts: list[str] = []
    run: list[Token] = []
    at = 0
    while at < len(statement):
        token = statement[at]
        value, length = _value_at(statement, at, session, now_ms)
        if value is None:
            run.append(token)
            at += 1
            continue
        label = "".join(t.text if t.kind is not Kind.VARIABLE else f"@@{t.text}" for t in statement[at : at + length])
        if session.postgres:
            label = token.text.lower()
        parts += [text(run), f"{_SAID}({quoted_string(label)}, {value})"]
        run = []
        at += length
    parts.append(text(run))
    return " ".join(part for part in parts if part)


def _value_at(statement: Sequence[Token], at: int, session: Session, now_ms: int) -> tuple[str | None, int]:
    """What stands at this place, as a literal, and how many tokens it takes."""
    token = statement[at]
    if token.kind is Kind.VARIABLE:
        return _literal(session.value(token.text)), 1
    if token.kind is not Kind.WORD or (at and statement[at - 1].text == "."):
        return None, 0
    word = token.text.upper()
    if word in session.functions:
        length = _call(statement, at)
        return (_literal(session.functions[word]), length) if length > 1 or word in _RESERVED else (None, 0)
    if word not in _NOW | _TODAY | _OF_SESSION | {"UNIX_TIMESTAMP"}:
        return None, 0
    length = _call(statement, at)
    if length == 1 and word not in _WITHOUT_PARENTHESES:
        return None, 0
    if word in _NOW:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)
        return f"CAST('{moment:%Y-%m-%d %H:%M:%S}.{now_ms % 1_000:03}' AS TIMESTAMP)", length
    if word in _TODAY:
        return f"CAST('{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms):%Y-%m-%d}' AS DATE)", length
    if word == "UNIX_TIMESTAMP":
        return str(now_ms // 1_000), length
    if word == "VERSION":
        return quoted_string(VERSION), length
    if word in ("DATABASE", "SCHEMA"):
        return _literal(session.database), length
    if word == "CONNECTION_ID":
        return str(session.connection_id), length
    return quoted_string(f"{session.user}@%"), length


def _call(statement: Sequence[Token], at: int) -> int:
    """How many tokens `name`, `name()` or `name(3)` has from `at`; 1 if there is no such call."""
    texts = [token.text for token in statement[at + 1 : at + 4]]
    if texts[:2] == ["(", ")"]:
        return 3
    if len(texts) == 3 and texts[0] == "(" and texts[2] == ")" and texts[1] in ("0", "3", "6"):
        return 4
    return 1


def _literal(value: str | int | None) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else quoted_string(value)


# ── parsing and changing ────────────────────────────────────────────────────────────────────────────────────────────


def _parsed(written: str, into: type[exp.Expr] | None = None) -> exp.Expr:
    try:
        dialect = GreptimeSql()
        roots = dialect.parse(written) if into is None else dialect.parse_into(into, written)
    except SqlglotError as error:
        first: dict[str, str] = (getattr(error, "errors", None) or [{}])[0]
        near = first.get("highlight") or "its end"
        raise Invalid(f"the SELECT cannot be understood near {near[:60]!r}") from None
    except RecursionError:
        raise Invalid("the SELECT is nested too deeply") from None
    if len(roots) != 1 or roots[0] is None:
        raise Invalid("one SELECT at a time")
    if into is None and not isinstance(roots[0], (exp.Query, exp.Subquery)):
        raise Invalid("only a SELECT reads")
    return roots[0]


def _of_catalog(root: exp.Expr, databases: Collection[str]) -> bool:
    """Whether it reads `information_schema`. Its tables are renamed to where they are held."""
    common = {cte.alias for cte in root.find_all(exp.CTE)}
    tables = [table for table in root.find_all(exp.Table) if table.name not in common or table.text("db")]
    catalog = [table for table in tables if table.text("db").lower() == CATALOG]
    if not catalog:
        return False
    if len(catalog) != len(tables) or any(not isinstance(table.this, exp.Identifier) for table in tables):
        raise Unsupported(f"{CATALOG} cannot be read together with other tables: ask twice")
    for table in catalog:
        alias = table.alias or table.name
        held = exp.to_identifier(CATALOG_PREFIX + table.name.lower(), quoted=True)
        for part in ("db", "catalog"):
            table.set(part, None)
        table.set("this", held)
        if not table.args.get("alias"):
            table.set("alias", exp.TableAlias(this=exp.to_identifier(alias)))
    for column in root.find_all(exp.Column):
        if column.text("db").lower() == CATALOG:
            column.set("db", None)
            column.set("catalog", None)
    return True


def _labelled(projection: exp.Expr, label: str | None, divides: bool) -> exp.Expr:
    """A column of the answer under the name that its user wrote, where it is changed below."""
    if label is None:
        return projection
    if isinstance(projection, exp.Anonymous) and projection.name == _SAID:
        return exp.alias_(projection, projection.expressions[0].name, quoted=True)
    changes = any(
        node.name.upper() in _FUNCTIONS or node.name == _SAID for node in projection.find_all(exp.Anonymous)
    ) or (divides and projection.find(exp.IntDiv) is not None)
    if not changes:
        return projection
    plain = projection.copy().transform(_unsaid)
    return exp.alias_(projection, plain.sql(dialect=GreptimeSql), quoted=True)


def _unsaid(node: exp.Expr) -> exp.Expr:
    if isinstance(node, exp.Anonymous) and node.name == _SAID:
        return exp.var(node.expressions[0].name)
    return node


def _all_changed(root: exp.Expr, databases: Collection[str], divides: bool) -> exp.Expr:
    for node in reversed(list(root.walk())):  # what is inside first
        changed = _changed(node, databases, divides)
        if changed is not node:
            if node is root:
                root = changed
            node.replace(changed)
    return root


def _changed(node: exp.Expr, databases: Collection[str], divides: bool) -> exp.Expr:
    if isinstance(node, exp.Anonymous):
        return _function(node)
    if isinstance(node, (exp.Add, exp.Sub)):
        return _shifted(node)
    if divides and isinstance(node, exp.IntDiv):
        # DuckDB's // leaves a fraction of floats; MySQL's DIV cuts it.
        return exp.cast(exp.Anonymous(this="trunc", expressions=[node.copy()]), "BIGINT")
    if isinstance(node, (exp.Table, exp.Column)) and node.text("db") in databases:
        node.set("db", None)
        node.set("catalog", None)
    return node


def _function(node: exp.Anonymous) -> exp.Expr:
    name, arguments = node.name.lower(), node.expressions
    if name == _SAID:
        said: exp.Expr = arguments[1]
        return said
    if name.upper() not in _FUNCTIONS:
        return node
    most = 3 if name == "date_bin" else 1
    if not (2 if name == "date_bin" else 1) <= len(arguments) <= most:
        raise Unsupported(f"{name} with {len(arguments)} arguments is not there")
    if name == "from_unixtime":
        if arguments[0].is_int:
            return _timestamp(int(arguments[0].name) * 1_000_000)
        micros = exp.Mul(this=exp.Paren(this=arguments[0]), expression=exp.Literal.number("1e6"))
        return exp.Anonymous(
            this="make_timestamp", expressions=[exp.cast(exp.Anonymous(this="round", expressions=[micros]), "BIGINT")]
        )
    if name == "date_bin":
        step = exp.cast(arguments[0], "INTERVAL") if arguments[0].is_string else arguments[0]
        origin = _moment(arguments[2]) if len(arguments) == 3 else _moment(exp.Literal.string("1970-01-01"))
        return exp.Anonymous(this="time_bucket", expressions=[step, _moment(arguments[1]), origin])
    epoch = exp.Anonymous(this="epoch", expressions=[_moment(arguments[0])])
    if name == "unix_timestamp":
        return epoch
    return exp.cast(exp.Anonymous(this="floor", expressions=[epoch]), "BIGINT")


def _moment(node: exp.Expr) -> exp.Expr:
    return exp.cast(node, "TIMESTAMP") if node.is_string else node


# ── moments ─────────────────────────────────────────────────────────────────────────────────────────────────────────
# Made literals here, so that whoever plans the query sees which files it needs.

_EPOCH = datetime(1970, 1, 1)
_UNITS = {"MICROSECOND", "MILLISECOND", "SECOND", "MINUTE", "HOUR", "DAY", "WEEK"}


def _timestamp(micros: int) -> exp.Expr:
    try:
        moment = _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        raise Invalid("a time outside the years 1 to 9999") from None
    return exp.cast(exp.Literal.string(moment.isoformat(" ", "microseconds")), "TIMESTAMP")


def _shifted(node: exp.Add | exp.Sub) -> exp.Expr:
    """A literal time plus or minus a literal interval."""
    moment, interval = node.this, node.expression
    if not (isinstance(moment, exp.Cast) and moment.is_type("timestamp", "timestampntz") and moment.this.is_string):
        return node
    if not (isinstance(interval, exp.Interval) and interval.this is not None and interval.text("unit")):
        return node
    unit, count = interval.text("unit").upper().removesuffix("S"), interval.this.name
    if unit not in _UNITS or not re.fullmatch(r"-?\d{1,9}", count):
        return node
    try:
        step = timedelta(**{f"{unit.lower()}s": int(count)})
        at = datetime.fromisoformat(moment.this.name) + (step if isinstance(node, exp.Add) else -step)
        return _timestamp((at - _EPOCH) // timedelta(microseconds=1))
    except (ValueError, OverflowError, TypeError):
        return node  # whatever it is, DuckDB says so
