"""What a program says of a guest's table: the HWPT data, checked, and why some of it cannot be kept in a shadow."""

from __future__ import annotations

from errno import EINVAL
from typing import NamedTuple

from softiommu.abi.iommufd import HwptDataType, HwptVtdS1, VtdS1Flags
from softiommu.abi.software_nesting import BOUND, BoundFlags, HwptBound, TableFormat
from softiommu.drivers.driver import Range, unsupported
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.kinds import Table

_PAGE_LG2 = 12
#: The variant of a format for each width of its addresses.
_TABLES: dict[int, dict[int, str]] = {
    TableFormat.X86_64: {48: "x86-64-4level", 57: "x86-64-5level"},
    TableFormat.VTD_SECOND_STAGE: {39: "vtdss-39", 48: "vtdss-48", 57: "vtdss-57"},
    TableFormat.AMD_V1: {30: "amdv1-2level", 39: "amdv1-3level", 48: "amdv1-4level", 57: "amdv1-5level"},
    TableFormat.ARM64_4K: {48: "arm64-4k-48-s1"},
    TableFormat.ARM64_16K: {48: "arm64-16k-48-s1"},
    TableFormat.ARM64_64K: {48: "arm64-64k-48-s1"},
    TableFormat.RISCV: {39: "riscv-sv39", 48: "riscv-sv48", 57: "riscv-sv57"},
}
#: Formats that have tables of every width from this on.
_LEAST_WIDTH = {TableFormat.ARM64_4K: 25, TableFormat.ARM64_16K: 25, TableFormat.ARM64_64K: 25}
#: Formats whose upper half is far away, beyond a gap.
_SPLIT = frozenset((TableFormat.X86_64, TableFormat.RISCV))


class Binding(NamedTuple):
    """A guest's table, and what is known of its guest."""

    table: Table
    root: int
    #: The addresses that are translated.
    window: Range
    #: The guest invalidates also what it maps.
    caching_mode: bool
    #: Why no device can be attached; empty: nothing is in the way.
    refusal: str = ""


def binding(data: UserData) -> Binding:
    """The typed structure of VT-d's kernel driver, or our own. EINVAL: another type or length, a format, width or root
    that there is not; EOPNOTSUPP: unknown flags."""
    if data.data_type == HwptDataType.VTD_S1:
        return _of_vtd(data.copy(HwptVtdS1, HwptDataType.VTD_S1))
    config = data.copy(HwptBound, BOUND)
    if config.flags & ~sum(BoundFlags):
        raise unsupported(f"flags {config.flags:#x} of a bound table are not known")
    caching = bool(config.flags & BoundFlags.CACHING_MODE)
    return _bound(config.format, config.addr_width, config.root, caching)


def _of_vtd(config: HwptVtdS1) -> Binding:
    """VT-d's structure promises nothing."""
    if config.flags & ~sum(VtdS1Flags) or config.reserved:
        raise unsupported(f"flags {config.flags:#x} or reserved {config.reserved:#x} of a first-stage table")
    found = _bound(TableFormat.X86_64, config.addr_width, config.pgtbl_addr, False)
    if config.flags & VtdS1Flags.SRE:
        return found._replace(refusal="SRE: a shadow cannot tell supervisor requests from others")
    if config.flags & VtdS1Flags.EAFE:
        return found._replace(refusal="EAFE: a shadow sets no extended accessed flags")
    return found


def _bound(format: int, width: int, root: int, caching_mode: bool) -> Binding:
    variants = _TABLES.get(format)
    if variants is None:
        raise UapiError(EINVAL, f"there is no table format {format}")
    split = format in _SPLIT
    least = _PAGE_LG2 + 1 if split else _LEAST_WIDTH.get(TableFormat(format))
    fitting = [size for size in variants if size == width or (least is not None and least <= width < size)]
    if not fitting:
        raise UapiError(EINVAL, f"no table of format {TableFormat(format).name} has addresses of {width} bits")
    size = min(fitting)
    table = VARIANTS[variants[size]]
    if not split and width < size:
        table = _narrowed(table, width)
    if root & max(8 << table.top_bits, 64) - 1 or root >> table.output_bits:
        raise UapiError(EINVAL, f"no table of {8 << table.top_bits:#x} bytes begins at {root:#x}")
    top = width - 1 if split and width == size else width
    return Binding(table, root, Range(0, (1 << top) - 1), caching_mode)


def _narrowed(t: Table, width: int) -> Table:
    """A table that translates fewer bits: its root is smaller, or that of a lower level (TnSZ, Arm ARM D8.2)."""
    index = width - t.granule_lg2
    top = -(-index // t.bits) - 1
    return t._replace(top=top, top_bits=index - top * t.bits, leaf_top=min(t.leaf_top, top), input_bits=width)
