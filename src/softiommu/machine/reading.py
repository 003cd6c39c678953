"""Reading a TOML file so that every error names the file, the line and what was expected."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from softiommu.errors import ConfigError

if TYPE_CHECKING:
    from softiommu.words import Word

W = TypeVar("W", bound="Word")

_KINDS: dict[type, str] = {str: "a string", int: "an integer", bool: "true or false", list: "an array", dict: "a table"}
_HEADER = re.compile(r"\[\[?\s*([\w.\"'-]+)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"[\"']?([\w-]+)[\"']?\s*[=.]")
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


def expected(value: str, choices: Collection[str]) -> str:
    """What exists, and the nearest match."""
    from difflib import get_close_matches

    near = get_close_matches(value, choices, n=1, cutoff=0.5)
    return f"expected one of {', '.join(choices)}" + (f" (did you mean {near[0]}?)" if near else "")


class Document:
    """The text of a TOML file. `source` is how errors call it."""

    def __init__(self, source: str, text: str) -> None:
        self.source, self._lines = source, text.splitlines()
        try:
            self.root = Table(self, tomllib.loads(text), None)
        except tomllib.TOMLDecodeError as error:
            found = _AT_LINE.search(str(error))
            line = int(found[1]) if found else max(len(self._lines), 1)
            raise self.error(line, f"not TOML: {_AT_LINE.sub('', str(error))}") from error

    def error(self, line: int, what: str) -> ConfigError:
        """A ConfigError at a line (from 1)."""
        return ConfigError(f"{self.source}:{line}: {what}")

    def line(self, header: str | None, index: int = 0, key: str | None = None) -> int:
        """The line of a key, or of the header of its table: the one of number `index` with that header."""
        seen, inside, at = -1, header is None, 0
        for number, line in enumerate(self._lines, 1):
            text = line.strip()
            if found := _HEADER.match(text):
                seen += found[1] == header
                inside = found[1] == header and seen == index
                at = number if inside else at
            elif inside and key is not None and (found := _KEY.match(text)) and found[1] == key:
                return number
        # A table may also be written within braces, in the line of its key.
        return at or (self.line(None, 0, header) if header else 1)


class Table:
    """One table of the file while it is read: takes keys out, and refuses what is left."""

    def __init__(self, document: Document, values: Mapping[str, Any], header: str | None, index: int = 0) -> None:
        self._document, self._values, self._header = document, dict(values), header
        #: Which of the tables with this header it is, from 0.
        self.index = index
        self._known: list[str] = []

    def error(self, key: str | None, what: str) -> ConfigError:
        """A ConfigError at the line of a key, or of the table."""
        return self._document.error(self._document.line(self._header, self.index, key), what)

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Without a default, the key must be there."""
        return str(self._required(key, str, default))

    def flag(self, key: str) -> bool:
        """True or false; false when the key is not there."""
        return bool(self._take(key, bool))

    def number(self, key: str, last: int, default: int | None = None) -> int:
        """An integer from 0 to `last`. Without a default, the key must be there."""
        number = int(self._required(key, int, default))
        if not 0 <= number <= last:
            raise self.error(key, f"{key} is {number:#x}: expected 0x0..{last:#x}")
        return number

    def one_of(self, key: str, numbers: Sequence[int]) -> int:
        """One of a few integers: the first when the key is not there."""
        number = int(self._required(key, int, numbers[0]))
        if number not in numbers:
            raise self.error(key, f"{key} is {number}: expected {' or '.join(map(str, numbers))}")
        return number

    def word(self, key: str, base: W) -> W:
        """`base` with the fields changed that the table `key` names, as in { MGAW = 38 }."""
        fields: dict[str, Any] = self._take(key, dict) or {}
        for name, value in fields.items():
            if name not in base.FIELDS:
                raise self.error(key, f"{type(base).__name__} has no field {name!r}: {expected(name, base.FIELDS)}")
            last = (1 << base.FIELDS[name].width) - 1
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= last:
                raise self.error(key, f"{name} is {value!r}: expected an integer from 0 to {last:#x}")
        return base.replace(**fields)

    def choice(self, key: str, choices: Collection[str]) -> str | None:
        """A string that is one of a few; None when the key is not there."""
        value: str | None = self._take(key, str)
        if value is not None and value not in choices:
            raise self.error(key, f"unknown {key} {value!r}: {expected(value, choices)}")
        return value

    def tables(self, key: str) -> Iterator[Table]:
        """The tables written as [[key]]."""
        for index, values in enumerate(self._take(key, list) or []):
            if not isinstance(values, dict):
                raise self.error(key, f"{key} must be written as [[{key}]] tables")
            yield Table(self._document, values, key, index)

    def finish(self) -> None:
        """Refuse keys that nothing asked for."""
        for key in self._values:
            raise self.error(key, f"unknown key {key!r} in {self._where()}: {expected(key, self._known)}")

    def _required(self, key: str, kind: type, default: object) -> Any:
        value = self._take(key, kind)
        if value is None:
            value = default
        if value is None:
            raise self.error(None, f"expected a key {key!r} in {self._where()}")
        return value

    def _take(self, key: str, kind: type) -> Any:
        self._known.append(key)
        value = self._values.pop(key, None)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            found = _KINDS.get(type(value), f"a {type(value).__name__}")
            raise self.error(key, f"{key} must be {_KINDS[kind]}, not {found} ({value!r})")
        return value

    def _where(self) -> str:
        return f"[[{self._header}]]" if self._header else "the machine"
