"""A machine's description: a TOML file, loaded and checked.

name = "lab"                      # required
summary = "one line"
kernel = "7.2"                    # the kernel whose uAPI it presents; `--kernel` overrides it
no_iommu = false                  # whether that kernel is built with CONFIG_VFIO_NOIOMMU

[[iommu]]
name = "mock0"
model = "mock"

[[device]]
name = "edu0"
address = "0000:00:1e.0"
vendor = 0x1234
device = 0x11e8
class = 0x00ff00                  # this and the following are 0 when left out
revision = 0x10
subsystem_vendor = 0x1af4
subsystem_device = 0x1100
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softiommu.errors import ConfigError
from softiommu.iommufd.kernels import KERNELS
from softiommu.machine.pci import PciDevice, address
from softiommu.machine.reading import Document, Table, expected

MODELS = ("mock",)
_BUILTIN = Path(__file__).with_name("builtin")


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
    iommus: tuple[Iommu, ...] = ()
    devices: tuple[PciDevice, ...] = ()

    def has_model(self, model: str) -> bool:
        """Whether an IOMMU of this model is in the machine."""
        return any(iommu.model == model for iommu in self.iommus)


def parse(text: str, source: str) -> Description:
    """A description from its text. ConfigError names the line."""
    root = Document(source, text).root
    description = Description(
        name=root.text("name"),
        source=source,
        summary=root.text("summary", ""),
        kernel=root.choice("kernel", KERNELS),
        no_iommu=root.flag("no_iommu"),
        iommus=tuple(_iommus(root)),
        devices=tuple(_devices(root)),
    )
    root.finish()
    return description


def _iommus(root: Table) -> Iterator[Iommu]:
    names: dict[str, str] = {}
    for table in root.tables("iommu"):
        iommu = Iommu(table.text("name"), table.choice("model", MODELS) or "")
        if not iommu.model:
            raise table.error(None, f"expected a key 'model' in [[iommu]], one of {', '.join(MODELS)}")
        table.finish()
        _once(table, "name", iommu.name, iommu.name, names)
        yield iommu


def _devices(root: Table) -> Iterator[PciDevice]:
    names: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for table in root.tables("device"):
        written = table.text("address")
        device = PciDevice(
            name=table.text("name"),
            address=address(written) or "",
            vendor=table.number("vendor", 0xFFFF),
            device=table.number("device", 0xFFFF),
            class_code=table.number("class", 0xFFFFFF, 0),
            revision=table.number("revision", 0xFF, 0),
            subsystem_vendor=table.number("subsystem_vendor", 0xFFFF, 0),
            subsystem_device=table.number("subsystem_device", 0xFFFF, 0),
        )
        table.finish()
        if not device.address:
            raise table.error("address", f"{written!r} is no PCI address: expected one such as 0000:00:1e.0")
        _once(table, "name", device.name, device.name, names)
        _once(table, "address", device.address, device.name, addresses)
        yield device


def _once(table: Table, key: str, value: str, owner: str, seen: dict[str, str]) -> None:
    """Refuse a value that an earlier table has."""
    if value in seen:
        by = "" if seen[value] == value else f" by {seen[value]!r}"
        raise table.error(key, f"{key} {value!r} is taken{by}: expected another")
    seen[value] = owner


def builtin_names() -> tuple[str, ...]:
    """The machines that come with softiommu."""
    files = _BUILTIN.iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load(name: str) -> Description:
    """The description of a built-in machine, or of a TOML file by its path. ConfigError: what exists."""
    if name in builtin_names():
        file = _BUILTIN / f"{name}.toml"
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
