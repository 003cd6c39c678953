"""A table that gets a root above its own translates what it did, and more."""

import pytest

from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS, sizes
from softiommu.pagetable.kinds import OK, READ, WRITE

LEVELS = [VARIANTS[f"amdv1-{levels}level"] for levels in range(2, 7)]


@pytest.mark.parametrize("compiled", [False, True])
def test_what_was_mapped_stays_and_all_of_it_is_freed(compiled):
    memory = PhysicalMemory(16 << 20)
    pages = PageTable(memory, LEVELS[0], compiled=compiled)
    pages.map(0x5000, 0x90000, 0x3000, READ | WRITE)
    for table in LEVELS[1:]:
        pages.grow(table)
        top = (1 << table.input_bits) - 0x1000
        assert pages.map(top, 0x70000, 0x1000, READ) == (OK, 0x1000)
        assert (pages.translate(0x6008).oa, pages.translate(top).oa) == (0x91008, 0x70000)
        assert pages.sizes == sizes(table)
    removed = pages.unmap(0, 1 << 64)
    assert removed.length == 0x3000 + 0x1000 * (len(LEVELS) - 1)
    pages.free_tables(removed.tables)
    pages.destroy()
    assert memory.given == 0
