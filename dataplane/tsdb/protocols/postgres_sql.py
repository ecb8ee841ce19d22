"""What Postgres's clients write beside GreptimeDB's SQL, put into its words: casts, type names, parameters' types.

'x'::bytea, '…'::timestamptz           the literal that is meant; in an INSERT every cast of a literal goes
c TIMESTAMP WITHOUT TIME ZONE, FLOAT8  the column type by GreptimeDB's name
WHERE host = $1, VALUES ($1, $2)       a parameter without a type has that of the column it meets
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dataplane.tsdb.protocols.lexer import Kind, Token
from dataplane.tsdb.protocols.postgres_parameters import Words, bytea, cast, utc
from dataplane.tsdb.protocols.postgres_types import ARRAYS, NAMES, OF_COLUMN, Oid
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Invalid

_COLUMN_TYPES = {"FLOAT4": "FLOAT", "FLOAT8": "DOUBLE", "INT2": "SMALLINT", "INT4": "INT", "TIMESTAMPTZ": "TIMESTAMP"}
_TEXT_TYPES = frozenset(
    {"name", "char", "bpchar", "unknown", "json", "jsonb", "cstring"}
    | {f"reg{what}" for what in ("class", "type", "proc", "procedure", "namespace", "role", "oper", "operator")}
)
"""That DuckDB does not have, or has in another way: text here."""
_SYNONYMS: dict[str, Oid] = {
    **{name.strip('"'): oid for oid, name in NAMES.items()},
    "bool": Oid.BOOL,
    "int": Oid.INT4,
    "int2": Oid.INT2,
    "int4": Oid.INT4,
    "int8": Oid.INT8,
    "float": Oid.FLOAT8,
    "float4": Oid.FLOAT4,
    "float8": Oid.FLOAT8,
    "decimal": Oid.NUMERIC,
    "varchar": Oid.VARCHAR,
    "timestamp": Oid.TIMESTAMP,
    "timestamptz": Oid.TIMESTAMPTZ,
    "time": Oid.TIME,
}
_ARRAY_OF = {element: oid for oid, element in ARRAYS.items()}
_OPERATORS = ("=", "<", ">", "<=", ">=", "<>", "!=")


def first_word(statement: Sequence[Token]) -> str:
    """In upper case; "(" for a query in parentheses."""
    return statement[0].text.upper() if statement[0].kind is not Kind.STRING else ""


def placed(words: Words, at: Token) -> list[Token]:
    """Tokens in the place of another."""
    return [Token(kind, text, at.start, at.end) for kind, text in words]


def adapted(statement: Sequence[Token]) -> list[Token]:
    """The statement without what only Postgres has.

    Raises:
        Invalid: a literal is none of the type that it is cast to.
    """
    word = first_word(statement)
    if word in ("CREATE", "ALTER"):
        return _column_types(statement)
    bare = word == "INSERT"
    found: list[Token] = []
    at = 0
    while at < len(statement):
        token = statement[at]
        if token.kind is Kind.OPERATOR and token.text == "::" and found:
            named, at = _cast(statement, at, found[-1], bare=bare)
            found[-1:] = named
        elif _is(token, "pg_catalog") and at + 1 < len(statement) and statement[at + 1].text == ".":
            at += 2  # names are few enough without it
        else:
            found.append(token)
            at += 1
    return found


def _is(token: Token, word: str) -> bool:
    return token.kind in (Kind.WORD, Kind.NAME) and token.text.lower() == word


def type_at(statement: Sequence[Token], at: int) -> tuple[str, int]:
    """The type's name that begins at `at`, in lower case, and where it ends; of an array with []."""
    if at + 1 < len(statement) and _is(statement[at], "pg_catalog") and statement[at + 1].text == ".":
        at += 2
    if at >= len(statement) or statement[at].kind not in (Kind.WORD, Kind.NAME):
        raise Invalid("a type's name is expected after '::'")
    words = [statement[at].text.lower()]
    at += 1

    def takes(*more: str) -> bool:
        nonlocal at
        if [token.text.lower() for token in statement[at : at + len(more)]] == list(more):
            at += len(more)
            return True
        return False

    if words == ["double"] and takes("precision"):
        words.append("precision")
    elif words == ["character"] and takes("varying"):
        words.append("varying")
    if takes("("):
        while at < len(statement) and not takes(")"):
            at += 1
    if words[0] in ("timestamp", "time"):
        if takes("with", "time", "zone"):
            words.append("with time zone")
        elif takes("without", "time", "zone"):
            words.append("without time zone")
    if takes("[", "]"):
        words.append("[]")
    return " ".join(words), at


def _cast(statement: Sequence[Token], at: int, value: Token, *, bare: bool) -> tuple[list[Token], int]:
    """What stands for `value::type`, whose `::` is at `at`, and where it ends."""
    name, end = type_at(statement, at + 1)
    oid = _SYNONYMS.get(name)
    literal = value.kind is Kind.STRING
    if literal and oid is Oid.BYTEA:
        try:
            return placed([(Kind.BYTES, bytea(value.text).hex())], value), end
        except ValueError:
            raise Invalid(f"{value.text[:60]!r} is not a value of type bytea", sqlstate="22P02") from None
    if literal and oid is Oid.TIMESTAMPTZ:
        moment: Words = [(Kind.STRING, utc(value.text))]
        return placed(moment if bare else cast(moment, "TIMESTAMP"), value), end
    if literal and name in ("regclass", "regtype"):
        if value.text.isdigit():
            return placed([(Kind.NUMBER, value.text)], value), end
        call: Words = [(Kind.WORD, f"to_{name}"), (Kind.PUNCTUATION, "("), (Kind.STRING, value.text)]
        return placed([*call, (Kind.PUNCTUATION, ")")], value), end
    if bare and value.kind in (Kind.STRING, Kind.NUMBER, Kind.PARAMETER, Kind.BYTES, Kind.WORD):
        return [value], end
    kept = list(statement[at:end])
    if name.removesuffix(" []") in _TEXT_TYPES:
        kept = placed([(Kind.OPERATOR, "::"), (Kind.WORD, "VARCHAR")], statement[at])
    elif oid is Oid.TIMESTAMPTZ:
        kept = placed([(Kind.OPERATOR, "::"), (Kind.WORD, "TIMESTAMP")], statement[at])
    else:
        kept = [token for place, token in enumerate(kept) if place != 1 or not _is(token, "pg_catalog")]
        if len(kept) > 1 and kept[1].text == ".":
            del kept[1]
    return [value, *kept], end


def _column_types(statement: Sequence[Token]) -> list[Token]:
    found: list[Token] = []
    at = 0
    while at < len(statement):
        token = statement[at]
        upper = token.text.upper() if token.kind is Kind.WORD else ""
        after = [one.text.upper() for one in statement[at : at + 3]]
        if after[1:] == ["TIME", "ZONE"] and upper in ("WITH", "WITHOUT"):
            at += 3
            continue
        if after[:2] == ["CHARACTER", "VARYING"]:
            found.append(token._replace(text="VARCHAR"))
            at += 2
            continue
        follows_name = bool(found) and found[-1].kind in (Kind.WORD, Kind.NAME)
        found.append(token._replace(text=_COLUMN_TYPES[upper]) if upper in _COLUMN_TYPES and follows_name else token)
        at += 1
    return found


# ── parameters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def count(statement: Sequence[Token]) -> int:
    """How many parameters it has: the greatest number. Raises Invalid: a number that is none."""
    numbers = [int(token.text[1:]) for token in statement if token.kind is Kind.PARAMETER]
    if numbers and min(numbers) < 1:
        raise Invalid("there is no parameter $0", sqlstate="42P02")
    return max(numbers, default=0)


def inferred(statement: Sequence[Token], find: Callable[[str], TableSchema | None]) -> dict[int, int]:
    """Types of parameters by number, as far as the statement says: by a cast, or by the column that one meets.

    `find`: a table by its name.
    """
    found: dict[int, int] = {}
    schemas = [schema for token in statement if token.kind in (Kind.WORD, Kind.NAME) and (schema := find(token.text))]
    columns = {column.name.lower(): OF_COLUMN[column.type] for schema in schemas for column in schema.columns}
    if first_word(statement) == "INSERT" and schemas:
        found = _of_insert(statement, schemas[0])
    for at, token in enumerate(statement):
        if token.kind is not Kind.PARAMETER:
            continue
        number = int(token.text[1:])
        before, after = statement[max(0, at - 2) : at], statement[at + 1 : at + 3]
        kind: int | None = None
        if after and after[0].text == "::":
            kind = _SYNONYMS.get(type_at(statement, at + 2)[0])
        elif len(before) == 2 and before[1].text in _OPERATORS:
            kind = columns.get(before[0].text.lower())
        elif len(after) == 2 and after[0].text in _OPERATORS:
            kind = columns.get(after[1].text.lower())
        elif [token.text.upper() for token in before] == ["ANY", "("] and at > 3:
            kind = _ARRAY_OF.get(columns.get(statement[at - 4].text.lower(), Oid.UNKNOWN))
        elif before and before[-1].text.upper() in ("LIMIT", "OFFSET"):
            kind = Oid.INT8
        elif len(before) == 2 and before[1].text.upper() == "BETWEEN":
            kind = columns.get(before[0].text.lower())
        elif len(before) == 2 and before[1].text.upper() == "AND" and before[0].kind is Kind.PARAMETER:
            kind = found.get(int(before[0].text[1:]))  # of BETWEEN, most often
        if kind is not None:
            found.setdefault(number, kind)
    return found


def _of_insert(statement: Sequence[Token], schema: TableSchema) -> dict[int, int]:
    """By the place among the values."""
    texts = [token.text.upper() if token.kind is Kind.WORD else token.text for token in statement]
    if "VALUES" not in texts:
        return {}
    values = texts.index("VALUES")
    named = [token.text.lower() for token in statement[3:values] if token.kind in (Kind.WORD, Kind.NAME)]
    types = {column.name.lower(): OF_COLUMN[column.type] for column in schema.columns}
    opens = "(" in texts[:values]
    listed = [name for name in named if name in types] if opens else [column.name.lower() for column in schema.columns]
    found: dict[int, int] = {}
    place = depth = 0
    for token in statement[values + 1 :]:
        if token.kind is Kind.PUNCTUATION and token.text == "(":
            depth += 1
            place = 0 if depth == 1 else place
        elif token.kind is Kind.PUNCTUATION and token.text == ")":
            depth -= 1
        elif token.kind is Kind.PUNCTUATION and token.text == "," and depth == 1:
            place += 1
        elif token.kind is Kind.PARAMETER and place < len(listed):
            found.setdefault(int(token.text[1:]), types[listed[place]])
    return found
