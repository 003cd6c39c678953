"""The shape of translation tables, as STEs and CDs describe it. Arm IHI 0070, 3.4; Arm ARM DDI 0487, D8.2."""

from __future__ import annotations

from softiommu.hardware.smmuv3.tables import START_LEVELS
from softiommu.pagetable.formats.arm64 import DS, STAGE2
from softiommu.pagetable.kinds import ARM64, Table

#: Input addresses of AArch64 tables have at most 39 bits taken away, with small tables (STT) 48, or 47.
LEAST_BITS, LEAST_BITS_STT, LEAST_BITS_STT_64K = 64 - 39, 64 - 48, 64 - 47


def fewest_bits(granule_lg2: int, small: bool) -> int:
    """The smallest input address size of a table."""
    if not small:
        return LEAST_BITS
    return LEAST_BITS_STT_64K if granule_lg2 == 16 else LEAST_BITS_STT


def reaches_52(granule_lg2: int, ds: bool) -> bool:
    """Whether tables of this granule can hold addresses of 52 bits."""
    return granule_lg2 == 16 or ds


def stage1(granule_lg2: int, input_bits: int, output_bits: int, option: int) -> Table:
    """A table that starts where its input size says."""
    width = granule_lg2 - 3
    top = -(-(input_bits - granule_lg2) // width) - 1
    return _table(granule_lg2, top, input_bits, output_bits, option)


def stage2(granule_lg2: int, input_bits: int, output_bits: int, option: int, sl0: int, sl0_2: int) -> Table | None:
    """A table that starts where S2SL0 says, maybe with tables side by side; None: the fields are inconsistent."""
    if sl0_2 and option & DS and granule_lg2 == 12 and sl0 == 0:
        start = -1
    else:
        found = START_LEVELS[granule_lg2].get(sl0)
        if found is None or (granule_lg2 == 14 and found == 0 and not option & DS):
            return None
        start = found
    width, top = granule_lg2 - 3, 3 - start
    if not 1 <= input_bits - granule_lg2 - width * top <= width + 4:
        return None
    return _table(granule_lg2, top, input_bits, output_bits, option | STAGE2)


def _table(granule_lg2: int, top: int, input_bits: int, output_bits: int, option: int) -> Table:
    width = granule_lg2 - 3
    leaf_top = {12: 3 if option & DS else 2, 14: 2 if option & DS else 1, 16: 2 if output_bits == 52 else 1}[
        granule_lg2
    ]
    top_bits = input_bits - granule_lg2 - width * top
    return Table(ARM64, top, granule_lg2, width, top_bits, min(leaf_top, top), input_bits, output_bits, option)


def root(table: Table, address: int) -> int:
    """The address of the first table, aligned to its size, and to 64 bytes at least."""
    return address & ~((1 << max(6, table.top_bits + 3)) - 1)
