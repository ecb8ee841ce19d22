"""YAML text to plain values that remember their lines.

Positions come from PyYAML's nodes. What is plain in YAML and dangerous or puzzling in a spec is refused here: duplicate
keys, merge keys, tags, recursive or explosive aliases, deep nesting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from providers.base.errors import Invalid

FILE_BYTES_MAX = 4 << 20
DEPTH_MAX = 32
VALUES_MAX = 200_000

PathKey = tuple[str | int, ...]
"""Where in a document: ("spec", "zones", 1)."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `line` counts from 1; `path` is dotted, empty for the document itself."""

    file: str
    line: int
    path: str
    what: str
    hint: str | None = None

    def sentence(self) -> str:
        # An object that came from the store has no line; its `file` is its kind and name.
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.what) if part)


@dataclass(slots=True)
class Document:
    """One YAML document: its value, and for each path in it the line of its key and the line of its value."""

    file: str
    line: int
    value: Any = None
    lines: dict[PathKey, int] = field(default_factory=dict)
    key_lines: dict[PathKey, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: PathKey, *, key: bool = False) -> int:
        """The line of `path`, or of the nearest thing around it that has one."""
        table: Mapping[PathKey, int] = self.key_lines if key else self.lines
        while path and path not in table:
            path = path[:-1]
            table = self.lines
        return table.get(path, self.line)


def dotted(path: PathKey) -> str:
    """`spec.zones[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        Invalid: missing, unreadable, too large, not UTF-8.
    """
    try:
        if path.is_dir():
            raise Invalid(
                f"{path} is a directory, not a file of specs", hint="name the YAML file in it", path=str(path)
            )
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise Invalid(f"{path} does not exist", hint="check the path", path=str(path)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Invalid(f"{path} cannot be read: {reason}", path=str(path)) from error
    if len(data) > FILE_BYTES_MAX:
        raise Invalid(
            f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB", hint="split it into several files", path=str(path)
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid(
            f"{path}:{line}: not UTF-8 text", hint="save the file as UTF-8", path=str(path), line=line
        ) from error


def documents(text: str, file: str) -> Iterator[Document]:
    """The documents of `text`; empty ones are passed over. Problems of form are in each document's `problems`.

    Raises:
        Invalid: not YAML, nested too deeply, too large.
    """
    try:
        _check_shape(text, file)
        for node in yaml.compose_all(text, Loader=_Loader):
            if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
                continue
            document = Document(file, node.start_mark.line + 1)
            document.value = _Builder(document).build(node, (), 0)
            yield document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = error.problem or error.context or "cannot be parsed"
        raise Invalid(
            f"{file}:{line}: not YAML: {what}", hint="check indentation, colons and quotes there", path=file, line=line
        ) from error
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position if isinstance(position, int) else 0) + 1
        raise Invalid(f"{file}:{line}: holds a character that YAML does not allow", path=file, line=line) from error


def _check_shape(text: str, file: str) -> None:
    """Refuse what would overrun the composer before it recurses."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        values += isinstance(event, yaml.NodeEvent)
        if depth > DEPTH_MAX or values > VALUES_MAX:
            line = event.start_mark.line + 1 if event.start_mark else 1
            what = f"nested more than {DEPTH_MAX} deep" if depth > DEPTH_MAX else f"more than {VALUES_MAX} values"
            raise Invalid(
                f"{file}:{line}: {what}", hint="specs are shallow; is this the right file?", path=file, line=line
            )


class _Builder:
    """Builds a document's value and line tables from its nodes."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._constructor = yaml.SafeLoader("")
        self._values = 0

    def build(self, node: yaml.Node, path: PathKey, depth: int) -> Any:
        document = self._document
        self._values += 1
        if depth > DEPTH_MAX or self._values > VALUES_MAX:
            line = node.start_mark.line + 1
            raise Invalid(f"{document.file}:{line}: aliases that unfold without end", path=document.file, line=line)
        document.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: PathKey, depth: int) -> dict[str | int, Any]:
        result: dict[str | int, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(line, path, "a field's name must be plain text")
                continue
            if key_node.tag.endswith(":merge"):
                self._problem(line, path, "merge keys (<<) are not used here", "write the fields out")
                continue
            key = key_node.value
            inner = (*path, key)
            if key in result:
                self._problem(
                    line, inner, f"stands there twice, first in line {self._document.key_lines[inner]}", "keep one"
                )
                continue
            self._document.key_lines[inner] = line
            result[key] = self.build(value_node, inner, depth + 1)
        return result

    def _scalar(self, node: yaml.Node, path: PathKey) -> Any:
        if node.tag == _TIMESTAMP:
            return node.value  # a date is text to every field here
        if node.tag not in _SCALARS:
            self._problem(node.start_mark.line + 1, path, f"YAML tag {node.tag} is not used here", "remove the tag")
            return None
        try:
            return self._constructor.construct_object(node)
        except (ValueError, yaml.YAMLError):
            self._problem(
                node.start_mark.line + 1, path, f"{node.value!r} does not fit its tag", "quote it, or remove the tag"
            )
            return None

    def _problem(self, line: int, path: PathKey, what: str, hint: str | None = None) -> None:
        self._document.problems.append(Problem(self._document.file, line, dotted(path), what, hint))
