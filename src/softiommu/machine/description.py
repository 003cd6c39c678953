"""A machine's description: a TOML file, loaded and checked.

name = "lab"                      # required
summary = "one line"
kernel = "7.2"                    # the kernel whose uAPI it presents; `--kernel` overrides it
no_iommu = false                  # whether that kernel is built with CONFIG_VFIO_NOIOMMU
unsafe_interrupts = false         # whether iommufd.allow_unsafe_interrupts is set
memory = 0x40000000               # bytes of RAM: the tables and queues of IOMMUs lie there
page_fault_timeout_ms = 10000     # how long page faults wait for the program's answer; left out: for ever

[[iommu]]
name = "dmar0"
model = "vtd"                     # its features follow: see docs/machines.md
nesting = "hardware"              # or "software", or "mixed": see docs/nesting.md

[[bridge]]                        # from PCI Express to PCI: what is behind it is one group
name = "bridge0"
address = "0000:00:06.0"
bus = 2

[[device]]
name = "edu0"
address = "0000:00:04.0"
model = "edu"                     # what it is and does; its options follow
iommu = "dmar0"                   # may be left out where there is one IOMMU
no_mmap = false                   # true: its BARs cannot be mapped, whatever its model allows

[[device]]                        # without a model it is only seen, and says itself what it is
name = "card"
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
from dataclasses import dataclass, replace
from pathlib import Path

from softiommu.errors import ConfigError
from softiommu.iommufd.kernels import KERNELS
from softiommu.machine import models
from softiommu.machine.pci import Bridge, PciDevice, above, address
from softiommu.machine.reading import Document, Table, expected

_BUILTIN = Path(__file__).with_name("builtin")
_RAM = 1 << 30
_MOST_RAM = 1 << 40
#: A day, in milliseconds.
_MOST_PATIENCE = 86_400_000
_NESTING = ("hardware", "software", "mixed")


@dataclass(frozen=True)
class Iommu:
    """An IOMMU of the machine: which model it is, its features as that model read them, and what nests tables."""

    name: str
    model: str
    features: object = None
    nesting: str = "hardware"


@dataclass(frozen=True)
class Description:
    """A checked description. `source` is the file it came from."""

    name: str
    source: str
    summary: str = ""
    kernel: str | None = None
    no_iommu: bool = False
    unsafe_interrupts: bool = False
    memory: int = _RAM
    #: How long page faults wait for the program's answer, in milliseconds; 0: for ever.
    page_fault_timeout_ms: int = 0
    iommus: tuple[Iommu, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    devices: tuple[PciDevice, ...] = ()

    def has_model(self, model: str) -> bool:
        """Whether an IOMMU of this model is in the machine."""
        return any(iommu.model == model for iommu in self.iommus)


def parse(text: str, source: str) -> Description:
    """A description from its text. ConfigError names the line."""
    root = Document(source, text).root
    summary = root.text("name"), root.text("summary", "")
    iommus = tuple(_iommus(root))
    bridges = tuple(_bridges(root))
    description = Description(
        name=summary[0],
        source=source,
        summary=summary[1],
        kernel=root.choice("kernel", KERNELS),
        no_iommu=root.flag("no_iommu"),
        unsafe_interrupts=root.flag("unsafe_interrupts"),
        memory=_memory(root),
        page_fault_timeout_ms=root.number("page_fault_timeout_ms", _MOST_PATIENCE, 0),
        iommus=iommus,
        bridges=bridges,
        devices=tuple(
            replace(device, above=above(device.address, bridges))
            for device in _devices(root, [iommu.name for iommu in iommus if iommu.model != "mock"])
        ),
    )
    root.finish()
    return description


def _memory(root: Table) -> int:
    size = root.number("memory", _MOST_RAM, _RAM)
    if size < 16 << 20 or size % (2 << 20):
        raise root.error("memory", f"memory is {size:#x}: expected a multiple of 2 MiB, and 16 MiB or more")
    return size


def _iommus(root: Table) -> Iterator[Iommu]:
    names: dict[str, str] = {}
    for table in root.tables("iommu"):
        name, model = table.text("name"), table.choice("model", models.IOMMUS)
        if not model:
            raise table.error(None, f"expected a key 'model' in [[iommu]], one of {', '.join(models.IOMMUS)}")
        features = models.iommu(model).read(table)
        nesting = table.choice("nesting", _NESTING) or _NESTING[0]
        if model == "mock" and nesting != _NESTING[0]:
            raise table.error("nesting", "the mock IOMMU has no tables that software could merge")
        table.finish()
        _once(table, "name", name, name, names)
        yield Iommu(name, model, features, nesting)


def _bridges(root: Table) -> Iterator[Bridge]:
    names: dict[str, str] = {}
    buses: dict[str, str] = {}
    for table in root.tables("bridge"):
        bridge = Bridge(table.text("name"), _address(table), table.number("bus", 0xFF))
        table.finish()
        _once(table, "name", bridge.name, bridge.name, names)
        _once(table, "bus", f"{bridge.bus:#x}", bridge.name, buses)
        yield bridge


def _devices(root: Table, iommus: list[str]) -> Iterator[PciDevice]:
    names: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for table in root.tables("device"):
        name, at, model = table.text("name"), _address(table), table.choice("model", models.DEVICES)
        device = _identified(table, name, at) if model is None else _modelled(table, (name, at, model), iommus)
        table.finish()
        _once(table, "name", device.name, device.name, names)
        _once(table, "address", device.address, device.name, addresses)
        yield device


def _identified(table: Table, name: str, at: str) -> PciDevice:
    """A device that is only seen."""
    return PciDevice(
        name=name,
        address=at,
        vendor=table.number("vendor", 0xFFFF),
        device=table.number("device", 0xFFFF),
        class_code=table.number("class", 0xFFFFFF, 0),
        revision=table.number("revision", 0xFF, 0),
        subsystem_vendor=table.number("subsystem_vendor", 0xFFFF, 0),
        subsystem_device=table.number("subsystem_device", 0xFFFF, 0),
    )


def _modelled(table: Table, what: tuple[str, str, str], iommus: list[str]) -> PciDevice:
    """A device that does something: what it is comes from its model."""
    name, at, model = what
    iommu = table.choice("iommu", iommus)
    if iommu is None and len(iommus) > 1:
        raise table.error(None, f"expected a key 'iommu' in [[device]], one of {', '.join(iommus)}")
    if iommu is None and not iommus:
        raise table.error("model", f"a device of model {model!r} needs an [[iommu]] in front of it")
    options = models.device(model).read(table)
    behind, driver = iommu or iommus[0], table.choice("driver", models.DRIVERS)
    vdpa = driver == "vdpa" or (driver is None and model in models.VDPA)
    if vdpa and model not in models.VDPA:
        raise table.error("driver", f"vDPA has devices of model {', '.join(models.VDPA)} only, not {model!r}")
    no_mmap = table.flag("no_mmap")
    return PciDevice(name, at, 0, 0, model=model, options=options, iommu=behind, no_mmap=no_mmap, vdpa=vdpa)


def _address(table: Table) -> str:
    written = table.text("address")
    full = address(written)
    if full is None:
        raise table.error("address", f"{written!r} is no PCI address: expected one such as 0000:00:1e.0")
    return full


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
