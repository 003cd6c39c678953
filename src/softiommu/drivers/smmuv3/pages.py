"""The tables that a driver of SMMUv3 builds: which granule, how wide, and where they start."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.smmuv3.registers import SIZES, Idr5
from softiommu.hardware.smmuv3.tables import START_LEVELS, TG0, Cd0, Cd1, Cd3, Ste2, Ste3
from softiommu.pagetable.formats import VARIANTS, arm64
from softiommu.pagetable.kinds import HW_DIRTY, Table

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.registers import Idr0

#: Virtual addresses of the kernel, and so of first stages; stage 2 starts with at most 16 tables side by side.
_VA_BITS, _MOST_TABLES_LG2 = 48, 4
_NAMES = {12: "4k", 14: "16k", 16: "64k"}
_WRITE_BACK, _INNER = 1, 3
#: Attributes of index 0, which leaves have: normal memory, write back.
_MAIR = 0xFF


class Limits(NamedTuple):
    """What the hardware's tables can be."""

    granule_lg2: int
    #: Bits of physical addresses.
    oas: int


def limits(idr5: Idr5) -> Limits:
    """The smallest granule; addresses of more than 48 bits need that of 64 KiB."""
    has = {12: idr5.GRAN4K, 14: idr5.GRAN16K, 16: idr5.GRAN64K}
    granule = min(lg2 for lg2, there in has.items() if there)
    return Limits(granule, min(SIZES[idr5.OAS], 52 if granule == 16 else 48))


def stage1(have: Limits, dirty: bool) -> Table:
    """A first stage: all addresses of a program."""
    table = VARIANTS[f"arm64-{_NAMES[have.granule_lg2]}-{_VA_BITS}-s1"]
    return table._replace(output_bits=have.oas, option=HW_DIRTY if dirty else 0)


def stage2(have: Limits) -> Table:
    """A second stage, as wide as physical addresses. Sixteen tables side by side are better than a level more."""
    lg2, width = have.granule_lg2, have.granule_lg2 - 3
    top = -(-(have.oas - lg2) // width) - 1
    top_bits = have.oas - lg2 - width * top
    if top == 3 and top_bits <= _MOST_TABLES_LG2:
        top, top_bits = top - 1, top_bits + width
    like = VARIANTS[f"arm64-{_NAMES[lg2]}-{48 if lg2 != 14 else 40}-s2"]
    leaf_top = min(2 if have.oas == 52 else like.leaf_top, top)
    return like._replace(
        top=top, top_bits=top_bits, leaf_top=leaf_top, input_bits=have.oas, output_bits=have.oas, option=arm64.STAGE2
    )


def context(table: Table, root: int, asid: int, idr0: Idr0) -> tuple[int, ...]:
    """The CD of a first stage."""
    dirty = int(bool(table.option & HW_DIRTY))
    word = Cd0.of(
        T0SZ=64 - table.input_bits,
        TG0=_code(table),
        IR0=_WRITE_BACK,
        OR0=_WRITE_BACK,
        SH0=_INNER,
        EPD1=1,
        V=1,
        IPS=SIZES.index(table.output_bits),
        AA64=1,
        HA=dirty,
        HD=dirty,
        S=int(idr0.STALL_MODEL == 2),
        R=1,
        A=1,
        ASET=1,
        ASID=asid,
    )
    return word, Cd1.of(TTB0=root >> 4), 0, Cd3.of(MAIR0=_MAIR), 0, 0, 0, 0


def second(table: Table, root: int, vmid: int, idr0: Idr0) -> tuple[Ste2, Ste3]:
    """Words 2 and 3 of an STE with a second stage."""
    levels = START_LEVELS[table.granule_lg2]
    word = Ste2.of(
        S2VMID=vmid,
        S2T0SZ=64 - table.input_bits,
        S2SL0=next(code for code, level in levels.items() if level == 3 - table.top),
        S2IR0=_WRITE_BACK,
        S2OR0=_WRITE_BACK,
        S2SH0=_INNER,
        S2TG=_code(table),
        S2PS=SIZES.index(table.output_bits),
        S2AA64=1,
        S2PTW=1,
        S2S=int(idr0.STALL_MODEL == 2),
        S2R=1,
    )
    return word, Ste3.of(S2TTB=root >> 4)


def _code(table: Table) -> int:
    return next(code for code, lg2 in TG0.items() if lg2 == table.granule_lg2)
