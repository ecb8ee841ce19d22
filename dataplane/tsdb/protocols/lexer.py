"""SQL text becomes tokens, and tokens text again that DuckDB's grammar reads the same way.

Three ways of writing meet here. GreptimeDB's users quote names "so" and double a quote inside a string; MySQL's clients
quote names `so` and escape with backslashes; Postgres's mark strings that escape (E'…') and number their parameters
($1). After this module nothing knows which it was. It refuses what they, or the parsers behind it, would read
differently: prefixed strings (E'…' but from Postgres's clients), dollar quotes, a string that does not end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from providers.base.errors import Invalid

SQL_CHARS_MAX = 8 << 20
"""Of one request. Rows in bulk have better ways in: line protocol, Arrow."""
TOKENS_MAX = 600_000
"""Of one request: about 100 bytes of memory each."""


class Kind(StrEnum):
    """Of a token. Names as regular-expression groups."""

    WORD = "word"
    NAME = "name"
    """Quoted: never a keyword."""
    STRING = "string"
    BYTES = "bytes"
    """x'…', 0x… or _binary'…'; the token's text is hex digits."""
    NUMBER = "number"
    VARIABLE = "variable"
    """@@name; the token's text is the name without its scope."""
    PARAMETER = "parameter"
    PUNCTUATION = "punctuation"
    OPERATOR = "operator"


class Token(NamedTuple):
    kind: Kind
    text: str
    """What it means: a name or string without its quotes and escapes."""
    start: int
    end: int


_QUOTE_DOUBLED = r"'(?:[^']|'')*+'"
_QUOTE_ESCAPED = r"'(?:[^'\\]|''|\\.)*+'"


def _grammar(string: str, comment: str, comment_begins: str, parameter: str = r"\?") -> re.Pattern[str]:
    return re.compile(
        rf"""
          (?P<blank>\s++|{comment}|/\*.*?\*/)
        | (?P<bytes>[xX]'[^']*+'|0x[0-9a-fA-F]++(?!\w))
        | (?P<string>{string})
        | (?P<name>"(?:[^"]|"")*+"|`(?:[^`]|``)*+`)
        | (?P<variable>@@(?:(?:session|global|local)\.)?[A-Za-z_]\w*+)
        | (?P<number>(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?)
        | (?P<word>[^\W\d]\w*+)
        | (?P<parameter>{parameter})
        | (?P<punctuation>[(),;.\[\]{{}}])
        | (?P<operator>(?:(?!{comment_begins}|/\*)[-+*/<>=~!@%^&|:\#])++|--)
        """,
        re.VERBOSE | re.DOTALL | re.IGNORECASE,
    )


# MySQL's `--` is a comment before white space only; its `#` always is.
_MYSQL = _grammar(_QUOTE_ESCAPED, r"--(?=\s|$)[^\n]*+|\#[^\n]*+", r"--|\#")
_STANDARD = _grammar(_QUOTE_DOUBLED, r"--[^\n]*+", "--")
_POSTGRES = _grammar(rf"[eE]{_QUOTE_ESCAPED}|{_QUOTE_DOUBLED}", r"--[^\n]*+", "--", r"\$\d{1,5}(?!\w)")
_ESCAPE = re.compile(r"\\(.)|''", re.DOTALL)
_ESCAPED = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a", "%": "\\%", "_": "\\_"}
_ESCAPE_C = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(?:u(?=[0-9a-fA-F]{4})|U(?=[0-9a-fA-F]{8}))((?<=u)[0-9a-fA-F]{4}|"
    r"(?<=U)[0-9a-fA-F]{8})|(.))|''",
    re.DOTALL,
)
_ESCAPED_C = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_INTRODUCERS = {"_utf8mb4": "utf-8", "_utf8": "utf-8"}
_KINDS = {kind.value: kind for kind in Kind}


def tokens(sql: str, *, backslash_escapes: bool = False, postgres: bool = False) -> list[Token]:
    """All tokens of `sql`, without comments. `backslash_escapes`: as MySQL's clients write; `postgres`: as Postgres's.

    Raises:
        Invalid: it is too long, a string or a name does not end, or a character belongs to nothing; with its place.
    """
    if len(sql) > SQL_CHARS_MAX:
        raise Invalid(
            f"a request of {len(sql)} characters of SQL is longer than {SQL_CHARS_MAX}",
            hint="send rows in smaller INSERTs, or by line protocol",
        )
    grammar = _POSTGRES if postgres else _MYSQL if backslash_escapes else _STANDARD
    found: list[Token] = []
    at = 0
    for match in grammar.finditer(sql):
        start, end = match.span()
        if start != at:
            break
        at = end
        group = match.lastgroup
        if group == "blank" or group is None:
            continue
        kind = _KINDS[group]
        if len(found) >= TOKENS_MAX:
            raise Invalid(f"a request of more than {TOKENS_MAX} words of SQL", hint="send rows in smaller INSERTs")
        if kind is Kind.WORD or kind is Kind.NUMBER:
            found.append(Token(kind, match.group(), start, end))
        elif kind is Kind.STRING:
            text = match.group()[1:-1]
            if sql[start] in "eE":
                text = _ESCAPE_C.sub(_unescaped_c, text[1:])
            elif backslash_escapes and "\\" in text:
                text = _ESCAPE.sub(_unescaped, text)
            elif "'" in text:
                text = text.replace("''", "'")
            _string(found, Token(kind, text, start, end), sql)
        elif kind is Kind.NAME:
            quote, text = sql[start], match.group()[1:-1]
            found.append(Token(kind, text.replace(quote * 2, quote), start, end))
        elif kind is Kind.BYTES:
            digits = match.group()[2:].rstrip("'")
            if len(digits) % 2 or not re.fullmatch(r"[0-9a-fA-F]*", digits):
                raise Invalid(f"{match.group()[:40]!r} at {place(sql, start)} is not pairs of hex digits")
            found.append(Token(kind, digits, start, end))
        elif kind is Kind.VARIABLE:
            found.append(Token(kind, match.group()[2:].rpartition(".")[2].lower(), start, end))
        else:
            if match.group() == "--":  # MySQL's two minus signs; to every other parser a comment
                raise Invalid(f"'--' at {place(sql, start)}: write '- -' for two minus signs, '-- ' for a comment")
            found.append(Token(kind, match.group(), start, end))
    if at != len(sql):
        what = "a string or a name that does not end" if sql[at] in "'\"`" else f"character {sql[at]!r}"
        if sql[at] in "/":
            what = "a comment that does not end"
        raise Invalid(f"{what} at {place(sql, at)}")
    return found


def _unescaped(match: re.Match[str]) -> str:
    after = match.group(1)
    return "'" if after is None else _ESCAPED.get(after, after)


def _unescaped_c(match: re.Match[str]) -> str:
    """As Postgres's E'…': an octal or hex byte is a character here, since text is UTF-8 and its bytes come whole."""
    octal, digits, point, after = match.groups()
    number = int(octal, 8) if octal else int(digits or point, 16) if digits or point else None
    if number is None:
        return "'" if after is None else _ESCAPED_C.get(after, after)
    if number > 0x10FFFF or not (point or number < 0x80):
        raise Invalid(f"the escape {match.group()!r} is no character: write the character, or \\u and its number")
    return chr(number)


def _string(found: list[Token], token: Token, sql: str) -> None:
    """Add a string, with the introducer before it if there is one."""
    before = found[-1] if found else None
    if before is not None and before.kind is Kind.WORD:
        introducer = before.text.lower()
        if introducer == "_binary":
            data = token.text.encode("utf-8", "surrogateescape")
            found[-1] = Token(Kind.BYTES, data.hex(), before.start, token.end)
            return
        if introducer in _INTRODUCERS:
            found.pop()
        elif before.end == token.start:
            raise Invalid(f"a string with the prefix {before.text!r} at {place(sql, before.start)}")
    try:
        token.text.encode()
    except UnicodeEncodeError:
        raise Invalid(f"the string at {place(sql, token.start)} is not UTF-8") from None
    found.append(token)


def place(sql: str, at: int) -> str:
    """`line 3, column 7`, both from 1."""
    return f"line {sql.count(chr(10), 0, at) + 1}, column {at - sql.rfind(chr(10), 0, at)}"


def text(tokens: Sequence[Token]) -> str:
    """SQL in DuckDB's grammar that says the same: names in double quotes, strings without escapes, no comments.

    Raises:
        Invalid: a parameter or a variable is left, or a string holds a NUL, which DuckDB's parser ends at.
    """
    parts: list[str] = []
    end = tokens[0].start if tokens else 0
    for token in tokens:
        if token.start != end:
            parts.append(" ")
        end = token.end
        parts.append(_written(token))
    return "".join(parts)


def _written(token: Token) -> str:
    if "\0" in token.text:
        raise Invalid("a string or a name with a NUL in it cannot be in a query")
    if token.kind is Kind.STRING:
        return quoted_string(token.text)
    if token.kind is Kind.NAME:
        return quoted_name(token.text)
    if token.kind is Kind.BYTES:
        pairs = (token.text[at : at + 2] for at in range(0, len(token.text), 2))
        return "CAST('" + "".join(f"\\x{pair}" for pair in pairs) + "' AS BLOB)"
    if token.kind is Kind.NUMBER and token.text.startswith("-"):
        return f"({token.text})"  # a parameter's: after a minus sign it would begin a comment
    if token.kind is Kind.PARAMETER:
        raise Invalid(f"a {token.text!r} outside a prepared statement")
    if token.kind is Kind.VARIABLE:
        raise Invalid(f"variable @@{token.text} cannot stand there")
    return token.text


def quoted_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quoted_string(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def split(tokens: Sequence[Token]) -> list[list[Token]]:
    """Statements, without the semicolons between them and without empty ones."""
    statements: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind is Kind.PUNCTUATION and token.text == ";":
            statements.append([])
        else:
            statements[-1].append(token)
    return [statement for statement in statements if statement]
