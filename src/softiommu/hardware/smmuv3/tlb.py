"""The IOTLB: leaves of stage 1 (with stage 2 or without), and of stage 2 alone, by their tags. Arm IHI 0070, 3.17."""

from __future__ import annotations

from typing import NamedTuple

from softiommu.hardware.cache import Entry, Iotlb, Page, Shape
from softiommu.hardware.smmuv3.streams import GLOBALS, STAGE2_ONLY, Tags
from softiommu.hardware.smmuv3.tables import Strw
from softiommu.hardware.smmuv3.walker import Found

#: Bits 63:56 may be a tag (TBI), or equal bit 55: no command and no entry is told apart by them.
ADDRESS = (1 << 56) - 1


class Selection(NamedTuple):
    """What a command names; None is any."""

    world: Strw = Strw.NS_EL1
    vmid: int | None = None
    asid: int | None = None
    #: With an ASID: global entries, too.
    with_globals: bool = False
    #: An inclusive range of addresses.
    window: tuple[int, int] | None = None
    stage1: bool = True
    stage2: bool = False
    #: Entries of ASIDs that are none of the CPUs' stay (CD.ASET).
    spares_private: bool = False

    def covers(self, page: Page, entry: Entry) -> bool:
        """Whether an entry is named."""
        world, vmid, asid, _ = page.tags
        if world != self.world or (self.vmid is not None and vmid != self.vmid):
            return False
        if not (self.stage2 if asid == STAGE2_ONLY else self.stage1 and self._covers_asid(asid)):
            return False
        if self.spares_private and entry.private:
            return False
        # A command for any address of a leaf of stage 1 is for all that is cached of it, in however small pages.
        if entry.leaf_lg2 > page.lg2:
            page = Page(page.tags, entry.leaf_lg2, page.number >> entry.leaf_lg2 - page.lg2)
        return self.window is None or Iotlb.meets(page, *self.window)

    def _covers_asid(self, asid: int) -> bool:
        return self.asid in (None, asid) or (asid in GLOBALS and self.with_globals)


class Tlb:
    """The IOTLB of one SMMU."""

    def __init__(self, shape: Shape) -> None:
        self.iotlb = Iotlb(shape)
        self._has_globals = False
        #: lg2 of the largest leaf of stage 1 of which only a part was cached.
        self._widest = 0

    def find(self, tags: Tags, iova: int, global_tags: Tags | None = None) -> tuple[int, Entry] | None:
        """The size and the entry of a cached leaf; `global_tags`: those of every address space of a stage 1."""
        found = self.iotlb.find(tags, iova & ADDRESS)
        if found is None and self._has_globals and global_tags is not None:
            return self.iotlb.find(global_tags, iova & ADDRESS)
        return found

    def fill(self, tags: Tags, iova: int, found: Found, global_tags: Tags | None = None, private: bool = False) -> None:
        """Keep a leaf. `private`: of a context whose ASID is none of the CPUs'."""
        if found.is_global and global_tags is not None:
            self._has_globals = True
            tags = global_tags
        page = found.pa & ~((1 << found.lg2) - 1)
        if found.leaf_lg2 > found.lg2:
            self._widest = max(self._widest, found.leaf_lg2)
        entry = Entry(page, found.allowed, found.is_global, found.leaf_lg2, private)
        self.iotlb.fill(tags, iova & ADDRESS, found.lg2, entry)

    def drop(self, selection: Selection) -> None:
        """Forget what a command names."""
        window = selection.window
        if window is not None and self._widest:
            around = (1 << self._widest) - 1
            window = window[0] & ~around, window[1] | around
        self.iotlb.cache.drop_range(window, selection.covers)
