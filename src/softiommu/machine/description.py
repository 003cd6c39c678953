"""A machine's description: a TOML file, loaded and checked. Errors name the file, the line and what was expected."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from softiommu.errors import ConfigError
from softiommu.iommufd.kernels import KERNELS

MODELS = ("mock",)


@dataclass(frozen=True)
class Iommu:
    """An IOMMU of the machine: which model it is."""

    name: str
    model: str


@dataclass(frozen=True)
class Description:
    """A checked description. `source` is the file it came from."""

    name: str
    source: str
    summary: str = ""
    kernel: str | None = None
    no_iommu: bool = False
    iommus: tuple[Iommu, ...] = field(default=())

    def has_model(self, model: str) -> bool:
        """Whether an IOMMU of this model is in the machine."""
        return any(iommu.model == model for iommu in self.iommus)


class _Table:
    """One table of the file while it is read: takes keys out, and refuses what is left."""

    def __init__(self, document: _Document, values: Mapping[str, Any], header: str | None, index: int = 0) -> None:
        self._document, self._values, self._header, self._index = document, dict(values), header, index

    def take(self, key: str, kind: type, default: object = None, required: bool = False) -> Any:
        """The value of a key, of the TOML type `kind`."""
        if key not in self._values:
            if required:
                raise self._document.error(self._line(), f"expected a key {key!r} in {self._where()}")
            return default
        value = self._values.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._document.error(
                self._line(key), f"{key} must be {_KINDS[kind]}, not {_KINDS.get(type(value), 'that')} ({value!r})"
            )
        return value

    def choose(self, key: str, choices: tuple[str, ...], default: str | None = None, required: bool = False) -> Any:
        """The value of a key that must be one of a few words."""
        value = self.take(key, str, default, required)
        if value is not None and value not in choices:
            raise self._document.error(self._line(key), f"unknown {key} {value!r}: {expected(value, choices)}")
        return value

    def finish(self, known: tuple[str, ...]) -> None:
        """Refuse keys that nothing took."""
        for key in self._values:
            raise self._document.error(
                self._line(key), f"unknown key {key!r} in {self._where()}: {expected(key, known)}"
            )

    def _where(self) -> str:
        return f"[[{self._header}]]" if self._header else "the machine"

    def _line(self, key: str | None = None) -> int:
        return self._document.line(self._header, self._index, key)


_KINDS: dict[type, str] = {str: "a string", int: "an integer", bool: "true or false", list: "an array", dict: "a table"}


class _Document:
    """The text of a description, for finding lines."""

    def __init__(self, source: str, text: str) -> None:
        self.source, self.lines = source, text.splitlines()

    def error(self, line: int, what: str) -> ConfigError:
        """A ConfigError at a line (from 1)."""
        return ConfigError(f"{self.source}:{line}: {what}")

    def line(self, header: str | None, index: int, key: str | None) -> int:
        """The line of a key, or of the header of its table."""
        seen, inside, at = -1, header is None, 1
        for number, line in enumerate(self.lines, 1):
            text = line.strip()
            if text.startswith("["):
                name = text.strip("[] ")
                seen += name == header
                inside = header is not None and name == header and seen == index
                at = number if inside else at
            elif inside and key is not None and text.partition("=")[0].strip(" \"'") == key:
                return number
        return at


def expected(value: str, choices: tuple[str, ...]) -> str:
    """What exists, and the nearest match."""
    near = get_close_matches(value, choices, n=1, cutoff=0.5)
    return f"expected one of {', '.join(choices)}" + (f" (did you mean {near[0]}?)" if near else "")


def parse(text: str, source: str) -> Description:
    """A description from its text. ConfigError names the line."""
    document = _Document(source, text)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    root = _Table(document, values, None)
    description = Description(
        name=root.take("name", str, required=True),
        source=source,
        summary=root.take("summary", str, ""),
        kernel=root.choose("kernel", tuple(KERNELS)),
        no_iommu=root.take("no_iommu", bool, False),
        iommus=tuple(_iommus(document, root.take("iommu", list, []))),
    )
    root.finish(("name", "summary", "kernel", "no_iommu", "iommu"))
    return description


def _iommus(document: _Document, tables: list[Any]) -> Iterator[Iommu]:
    names: set[str] = set()
    for index, values in enumerate(tables):
        if not isinstance(values, dict):
            raise document.error(document.line(None, 0, "iommu"), "iommu must be written as [[iommu]] tables")
        table = _Table(document, values, "iommu", index)
        iommu = Iommu(table.take("name", str, required=True), table.choose("model", MODELS, required=True))
        table.finish(("name", "model"))
        if iommu.name in names:
            raise document.error(document.line("iommu", index, "name"), f"a second IOMMU named {iommu.name!r}")
        names.add(iommu.name)
        yield iommu


def builtin_names() -> tuple[str, ...]:
    """The machines that come with softiommu."""
    files = resources.files("softiommu.machine").joinpath("builtin").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load(name: str) -> Description:
    """The description of a built-in machine, or of a TOML file by its path. ConfigError: what exists."""
    if name in builtin_names():
        file = resources.files("softiommu.machine").joinpath("builtin", f"{name}.toml")
        return parse(file.read_text(encoding="utf-8"), f"builtin/{name}.toml")
    if "/" not in name and not name.endswith(".toml"):
        raise ConfigError(
            f"unknown machine {name!r}: {expected(name, builtin_names())}\n"
            "hint: a machine of your own is a TOML file, named by its path"
        )
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse(text, name)
