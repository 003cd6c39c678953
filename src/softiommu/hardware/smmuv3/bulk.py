"""Long runs of invalidations, carried out at once: those that differ in tags and addresses alone.

Between two commands of a queue nothing is translated, but for what a device does that is told to forget. So the order
of invalidations does not matter if those of devices come last, and what a run drops is found by sorting. A run ends
before the first command that is of another kind, or illegal, and before a SYNC that may have to tell of a device:
`CommandQueue` takes it as it takes every single one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from softiommu.hardware.smmuv3.commands import (
    LAST_SIZE,
    LAYOUTS,
    TLBI_TG,
    Address1,
    Asid0,
    AtcInv0,
    AtcInv1,
    CfgiCd0,
    Leaf1,
    Op,
    Sync0,
    Va0,
    Vmid0,
)
from softiommu.hardware.smmuv3.streams import GLOBALS, STAGE2_ONLY
from softiommu.hardware.smmuv3.tables import Strw
from softiommu.hardware.smmuv3.tlb import ADDRESS
from softiommu.words import Field

if TYPE_CHECKING:
    from softiommu.hardware.cache import Entry, Page
    from softiommu.hardware.smmuv3.model import Smmu
    from softiommu.hardware.smmuv3.tlb import Tlb

Array = np.ndarray[Any, np.dtype[np.uint64]]

_BY_ADDRESS, _BY_ASID = (Op.TLBI_NH_VA, Op.TLBI_NH_VAA), (Op.TLBI_NH_VA, Op.TLBI_NH_ASID)
_TLBI, _CONTEXTS = (Op.TLBI_NH_ALL, Op.TLBI_NH_ASID, *_BY_ADDRESS), (Op.CFGI_CD, Op.CFGI_CD_ALL)
_KINDS = (*_TLBI, *_CONTEXTS, Op.ATC_INV, Op.SYNC)
_16K = next(code for code, lg2 in TLBI_TG.items() if lg2 == 14)
_OTHERS = 2**64 - 1 ^ Vmid0.VMID.mask
_ALL = 2**64 - 1
#: Of a command that names no ASID, or of hardware that knows no VMIDs.
_ANY = (1 << 20) - 1


class Bulk:
    """What one SMMU takes in runs."""

    def __init__(self, smmu: Smmu) -> None:
        self._smmu = smmu
        self._identity = identity = smmu.identity
        #: By opcode: whether it can be in a run, and the bits that must be 0.
        self._known = np.zeros(256, bool)
        self._low, self._high = (np.zeros(256, np.uint64) for _ in range(2))
        for op in _KINDS:
            layout = LAYOUTS[op]
            if layout.exists(identity.idr0):
                self._known[op] = True
                self._low[op], self._high[op] = layout.low(0).RESERVED, layout.high(0).RESERVED
        self._low[Op.SYNC] |= np.uint64(Sync0.CS.mask)
        idr0 = identity.idr0
        asid = 0 if idr0.ASID16 else 0xFF << 8 + Asid0.ASID.low
        vmid = 0 if idr0.VMID16 or not idr0.S2P else 0xFF << 8 + Vmid0.VMID.low
        for op in _BY_ASID:
            self._low[op] |= np.uint64(asid | vmid)
        self._low[Op.TLBI_NH_ALL] |= np.uint64(vmid)
        self._low[Op.TLBI_NH_VAA] |= np.uint64(vmid)
        for op in _BY_ADDRESS:
            self._high[op] |= np.uint64(Address1.TTL128.mask)

    def run(self, raw: bytes, may_sync: bool, vmid: int | None = None) -> tuple[int, bool]:
        """Carry out a run at the start of commands; how many there are in it, and whether all devices answered.
        `vmid`: they are a guest's."""
        words = np.frombuffer(raw, np.uint64).reshape(-1, 2)
        low, high = words[:, 0], words[:, 1]
        ops = (low & np.uint64(0xFF)).astype(np.intp)
        guests = True
        if vmid is not None:
            named = (ops == Op.TLBI_NH_ASID) | (ops == Op.TLBI_NH_VA)
            guests = named | (ops == Op.SYNC)
            low = np.where(named, low & np.uint64(_OTHERS) | np.uint64(vmid << Vmid0.VMID.low), low)
        fits = self._known[ops] & ((low & self._low[ops]) | (high & self._high[ops]) == 0)
        by_address = (ops == Op.TLBI_NH_VA) | (ops == Op.TLBI_NH_VAA)
        fits &= guests
        fits &= ~by_address | self._good_ranges(low, high)
        told = ops == Op.ATC_INV
        fits &= ~told | (_field(high, AtcInv1.SIZE) <= LAST_SIZE)
        # A SYNC behind an invalidation of a device may have to tell that it did not answer.
        fits &= (ops != Op.SYNC) | ~(np.logical_or.accumulate(told) | (not may_sync))
        count = len(fits) if fits.all() else int(fits.argmin())
        return count, self._carry_out(ops[:count], low[:count], high[:count])

    def _carry_out(self, ops: Any, low: Array, high: Array) -> bool:
        """The commands of a run, those of devices last; whether all devices answered."""
        self._forget_contexts(ops, low, high)
        tlb, translations = self._smmu.tlb, np.isin(ops, _TLBI)
        if len(tlb.iotlb.cache) and translations.any():
            self._drop(low[translations], high[translations], tlb)
        told = ops == Op.ATC_INV
        return self._tell(low[told], high[told]) if told.any() else True

    def _forget_contexts(self, ops: Any, low: Array, high: Array) -> None:
        one, every = ops == Op.CFGI_CD, ops == Op.CFGI_CD_ALL
        if not (one | every).any():
            return
        sids = _field(low, CfgiCd0.SID)
        ssids = _field(low, CfgiCd0.SSID)
        streams = set(sids[every].tolist())
        contexts = set(zip(sids[one].tolist(), ssids[one].tolist(), strict=True))
        links = streams.union(sids[one & (_field(high, Leaf1.LEAF) == 0)].tolist())
        self._smmu.configuration.forget_named(contexts, streams, links)

    def _tell(self, low: Array, high: Array) -> bool:
        """Invalidations of devices, in their order; False: one did not answer."""
        lg2 = _field(high, AtcInv1.SIZE) + np.uint64(12)
        within = np.where(lg2 < 64, (np.uint64(1) << np.minimum(lg2, np.uint64(63))) - np.uint64(1), np.uint64(_ALL))
        first = high & np.uint64(AtcInv1.ADDR.mask) & ~within
        sids, pasids, every = (_field(low, field).tolist() for field in (AtcInv0.SID, AtcInv0.SSID, AtcInv0.GLOBAL))
        has_pasid = _field(low, AtcInv0.SSV).tolist()
        named = [pasid if has else None for pasid, has in zip(pasids, has_pasid, strict=True)]
        return self._smmu.ats.invalidate(
            zip(sids, named, every, first.tolist(), (first | within).tolist(), strict=True)
        )

    def _good_ranges(self, low: Array, high: Array) -> Any:
        """Whether each is for a page, or for a range that is one (4.4.1)."""
        idr3, idr5 = self._identity.idr3, self._identity.idr5
        granule, ttl = _field(high, Address1.TG), _field(high, Address1.TTL)
        number, scale = _field(low, Va0.NUM), _field(low, Va0.SCALE)
        plain = (granule == 0) & ((number | scale | ttl) == 0)
        if not idr3.RIL:
            return plain
        if not idr5.DS:
            ttl = np.where((granule == _16K) & (ttl == 1), np.uint64(0), ttl)
        # Longer ranges than all addresses are left to the one that takes single commands.
        return plain | ((granule != 0) & ((number | scale | ttl) != 0) & (scale < 32))

    def _drop(self, low: Array, high: Array, tlb: Tlb) -> None:
        pages: list[tuple[Page, Entry]] = tlb.iotlb.cache.items()
        kept = [(page, entry) for page, entry in pages if page.tags[0] == Strw.NS_EL1 and page.tags[2] != STAGE2_ONLY]
        if not kept:
            return
        lg2 = [max(page.lg2, entry.leaf_lg2) for page, entry in kept]
        starts = np.array(
            [page.number << page.lg2 >> size << size for (page, _), size in zip(kept, lg2, strict=True)], np.uint64
        )
        ends = starts + np.array([(1 << size) - 1 for size in lg2], np.uint64)
        vmids, asids = (np.array([page.tags[which] for page, _ in kept], np.int64) for which in (1, 2))
        gone = np.zeros(len(kept), bool)
        for (vmid, asid, with_globals), first, last in self._groups(low, high):
            at = np.searchsorted(first, ends, "right")
            hit = (at > 0) & (np.maximum.accumulate(last)[at - 1] >= starts)
            if vmid != _ANY:
                hit &= vmids == vmid
            if asid != _ANY:
                hit &= (asids == asid) | (with_globals & np.isin(asids, GLOBALS))
            gone |= hit
        if gone.any():
            doomed = {page for (page, _), is_gone in zip(kept, gone, strict=True) if is_gone}
            tlb.iotlb.drop(lambda page, entry: page in doomed)

    def _groups(self, low: Array, high: Array) -> list[tuple[tuple[int, int, bool], Array, Array]]:
        """The commands by what tags they name: first and last addresses, ascending by the first."""
        ops = (low & np.uint64(0xFF)).astype(np.intp)
        first, last = self._windows(ops, low, high)
        has_asid = (ops == Op.TLBI_NH_VA) | (ops == Op.TLBI_NH_ASID)
        asids = np.where(has_asid, _field(low, Va0.ASID), np.uint64(_ANY))
        vmids = _field(low, Vmid0.VMID) if self._identity.idr0.S2P else np.full(len(low), _ANY, np.uint64)
        names = vmids << np.uint64(32) | asids << np.uint64(1) | (ops == Op.TLBI_NH_VA).astype(np.uint64)
        order = np.lexsort((first, names))
        names, first, last = names[order], first[order], last[order]
        ends = [*(np.flatnonzero(np.diff(names)) + 1).tolist(), len(names)]
        groups, start = [], 0
        for end in ends:
            name = int(names[start])
            tags = (name >> 32, name >> 1 & _ANY, bool(name & 1))
            groups.append((tags, first[start:end], last[start:end]))
            start = end
        return groups

    @staticmethod
    def _windows(ops: Any, low: Array, high: Array) -> tuple[Array, Array]:
        by_address = (ops == Op.TLBI_NH_VA) | (ops == Op.TLBI_NH_VAA)
        granule = np.array([TLBI_TG.get(code, 12) for code in range(4)], np.uint64)[
            _field(high, Address1.TG).astype(np.intp)
        ]
        first = high & np.uint64(Address1.ADDR.mask & ADDRESS)
        size = (_field(low, Va0.NUM) + np.uint64(1)) << (_field(low, Va0.SCALE) + granule)
        last = np.minimum(first + size - np.uint64(1), np.uint64(ADDRESS))
        everything = np.uint64(0), np.uint64(2**64 - 1)
        return np.where(by_address, first, everything[0]), np.where(by_address, last, everything[1])


def _field(words: Array, field: Field[Any]) -> Array:
    return (words & np.uint64(field.mask)) >> np.uint64(field.low)
