"""Reading a statement token by token, with errors that say what was expected and where."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.tsdb.protocols.lexer import Kind, Token, place
from providers.base.errors import Invalid

_WORDLIKE = (Kind.WORD, Kind.NAME)


class Unsupported(Invalid):
    """Well understood, and not there: HTTP answers 501, the MySQL wire 1235, Postgres's 0A000."""


class Cursor:
    """A place in a statement. Keywords are given in upper case."""

    def __init__(self, tokens: Sequence[Token], sql: str) -> None:
        self.tokens = tokens
        self.sql = sql
        self.at = 0

    @property
    def ended(self) -> bool:
        return self.at >= len(self.tokens)

    def peek(self, ahead: int = 0) -> Token | None:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else None

    def sees(self, *keywords: str) -> bool:
        """Whether these keywords (or single punctuation) come next."""
        for ahead, keyword in enumerate(keywords):
            token = self.peek(ahead)
            if token is None or token.kind in (Kind.STRING, Kind.NAME) or token.text.upper() != keyword:
                return False
        return True

    def takes(self, *keywords: str) -> bool:
        """The same, and goes past them."""
        if not self.sees(*keywords):
            return False
        self.at += len(keywords)
        return True

    def expect(self, *keywords: str) -> None:
        """Raises Invalid: something else comes."""
        if not self.takes(*keywords):
            raise self.unexpected(" ".join(keywords))

    def next(self, expected: str) -> Token:
        """Raises Invalid: the statement ends here."""
        token = self.peek()
        if token is None:
            raise self.unexpected(expected)
        self.at += 1
        return token

    def name(self, what: str) -> str:
        """Raises Invalid: something else than a name comes."""
        token = self.peek()
        if token is None or token.kind not in _WORDLIKE:
            raise self.unexpected(what)
        self.at += 1
        return token.text

    def string(self, what: str) -> str:
        """Raises Invalid: something else than a string comes."""
        token = self.peek()
        if token is None or token.kind is not Kind.STRING:
            raise self.unexpected(what)
        self.at += 1
        return token.text

    def end(self) -> None:
        """Raises Invalid: the statement goes on."""
        if not self.ended:
            raise self.unexpected("the end of the statement")

    def unexpected(self, expected: str) -> Invalid:
        token = self.peek()
        if token is None:
            return Invalid(f"the statement ends where {expected} is expected")
        where = place(self.sql, token.start)
        return Invalid(f"expected {expected} and found {self.sql[token.start : token.end][:60]!r} at {where}")
