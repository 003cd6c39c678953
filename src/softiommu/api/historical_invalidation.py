"""Invalidations in the forms of 2017 and 2019 to 2022, as entries of the generic form (docs/invalidation.md).

>>> from softiommu.abi.historical_invalidation import TlbInvalidate
>>> from_2017(TlbInvalidate(granularity=1, pasid=5).to_bytes()).scope
1
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP

from softiommu.abi.generic_invalidation import Hint, InvalidateV2, Scope, Target, Valid
from softiommu.abi.historical_invalidation import (
    VERSION_1,
    Cache,
    CacheInvalidateInfo,
    CacheInvalidateInfo2019,
    Granularity,
    InfoFlags,
    TlbGranularity,
    TlbInvalidate,
)
from softiommu.errors import UapiError

_PAGE_LG2 = 12
_LAST = (1 << 64) - 1
_EVERY_FLAG, _EVERY_CACHE = sum(InfoFlags), sum(Cache)
_TRANSLATIONS = Target.LEAF | Target.TABLES
#: Which caches each granularity of 2019 may name.
_PAIRS = {
    Granularity.DOMAIN: Cache.IOTLB | Cache.PASID,
    Granularity.PASID: Cache.IOTLB | Cache.DEV_IOTLB | Cache.PASID,
    Granularity.ADDR: Cache.IOTLB | Cache.DEV_IOTLB,
}
#: How long the union is that goes with each: nothing, pasid_info, addr_info.
_UNIONS = {Granularity.DOMAIN: 0, Granularity.PASID: 16, Granularity.ADDR: 40}


def from_2017(raw: bytes) -> InvalidateV2:
    """struct iommu_tlb_invalidate: its scope, in every cache. Bytes that only a vendor knows are not taken.

    EINVAL: a field is wrong; EOPNOTSUPP: a model's own format.
    """
    if len(raw) < TlbInvalidate.SIZE:
        raise UapiError(EINVAL, f"{len(raw)} bytes are fewer than the {TlbInvalidate.SIZE} of iommu_tlb_invalidate")
    old = TlbInvalidate.from_bytes(raw)
    if old.model or len(raw) > TlbInvalidate.SIZE:
        raise UapiError(EOPNOTSUPP, f"bytes in a format of model {old.model:#x}: nothing opaque is taken")
    if old.granularity not in list(TlbGranularity) or any(old.padding) or old.padding2:
        raise UapiError(EINVAL, f"granularity {old.granularity} is unknown, or padding is not 0")
    _check_pasid(old.pasid)
    everything = _TRANSLATIONS | Target.DEVICE_TLB
    if old.granularity == TlbGranularity.DEVICE:
        return InvalidateV2(Scope.DOMAIN, targets=everything | Target.CONFIG)
    if old.granularity == TlbGranularity.PASID:
        return InvalidateV2(Scope.PASID, targets=everything | Target.CONFIG, pasid=old.pasid)
    last = old.addr + old.size - 1
    if not old.size or last > _LAST:
        raise UapiError(EINVAL, f"{old.size:#x} bytes from {old.addr:#x} are no range")
    first, end = old.addr >> _PAGE_LG2, last >> _PAGE_LG2
    return InvalidateV2(
        Scope.RANGE, _PAGE_LG2, everything, pasid=old.pasid, addr=first << _PAGE_LG2, count=end - first + 1
    )


def from_2019(raw: bytes) -> InvalidateV2:
    """struct iommu_cache_invalidate_info of Linux 5.3 to 5.9, 48 bytes. EINVAL: a field is wrong."""
    if len(raw) != CacheInvalidateInfo2019.SIZE:
        raise UapiError(EINVAL, f"{len(raw)} bytes are not the {CacheInvalidateInfo2019.SIZE} of the structure")
    old = CacheInvalidateInfo2019.from_bytes(raw)
    fields = {name: getattr(old, name) for name in CacheInvalidateInfo2019.FIELDS}
    return _entry(CacheInvalidateInfo(argsz=CacheInvalidateInfo.SIZE, **fields))


def from_2020(raw: bytes) -> InvalidateV2:
    """struct iommu_cache_invalidate_info of Linux 5.10 to 5.17: `argsz` says how long it is, and may leave out the part
    of the union that the granularity does not use. EINVAL: a field is wrong."""
    argsz = int.from_bytes(raw[:4], "little")
    if len(raw) < CacheInvalidateInfo.MIN_SIZE or argsz > len(raw):
        raise UapiError(EINVAL, f"argsz is {argsz}, and there are {len(raw)} bytes")
    known = raw[: min(argsz, CacheInvalidateInfo.SIZE)]
    return _entry(CacheInvalidateInfo.from_bytes(known.ljust(CacheInvalidateInfo.SIZE, b"\0")))


def _entry(old: CacheInvalidateInfo) -> InvalidateV2:
    _check(old)
    # Without a union there are no flags: what lies in its place says nothing.
    leaf = old.granularity != Granularity.DOMAIN and bool(old.flags & InfoFlags.LEAF)
    targets = Target(0)
    if old.cache & Cache.IOTLB:
        targets |= Target.LEAF if leaf else _TRANSLATIONS
    if old.cache & Cache.DEV_IOTLB:
        targets |= Target.DEVICE_TLB
    if old.cache & Cache.PASID:
        targets |= Target.CONFIG
    entry = InvalidateV2(Scope.DOMAIN, targets=targets)
    if old.granularity == Granularity.DOMAIN:
        return entry
    if old.flags & InfoFlags.ARCHID:
        entry.valid, entry.arch_id = int(Valid.ARCH_ID), old.archid
    has_pasid = bool(old.flags & InfoFlags.PASID)
    entry.pasid = old.pasid if has_pasid else 0
    if old.granularity == Granularity.PASID:
        # Without a PASID it is for everything that has the architecture's id.
        entry.scope = Scope.PASID if has_pasid else Scope.DOMAIN
        return entry
    entry.scope = Scope.RANGE if has_pasid else Scope.RANGE_ALL_PASIDS
    entry.hints = int(Hint.LEAF_ONLY) if leaf else 0
    entry.addr, entry.count = old.addr, old.nb_granules
    entry.granule_lg2 = old.granule_size.bit_length() - 1
    return entry


def _check(old: CacheInvalidateInfo) -> None:
    """EINVAL: what the kernel refused, and what it could not have meant."""
    if old.version != VERSION_1 or old.granularity not in list(Granularity) or old.padding or old.padding2:
        raise UapiError(EINVAL, f"version {old.version}, granularity {old.granularity}, or padding that is not 0")
    granularity = Granularity(old.granularity)
    if old.argsz < CacheInvalidateInfo.MIN_SIZE + _UNIONS[granularity]:
        raise UapiError(EINVAL, f"argsz {old.argsz} leaves out what {granularity.name} needs")
    if not old.cache or old.cache & ~_EVERY_CACHE or old.cache & ~_PAIRS[granularity]:
        raise UapiError(EINVAL, f"caches {old.cache:#x} do not go with granularity {granularity.name}")
    if granularity is Granularity.DOMAIN:
        return
    known = _EVERY_FLAG if granularity is Granularity.ADDR else _EVERY_FLAG & ~int(InfoFlags.LEAF)
    named = old.flags & (InfoFlags.PASID | InfoFlags.ARCHID)
    if old.flags & ~known or (granularity is Granularity.PASID and not named):
        raise UapiError(EINVAL, f"flags {old.flags:#x} of granularity {granularity.name}")
    if named & InfoFlags.PASID:
        _check_pasid(old.pasid)
    if granularity is Granularity.ADDR:
        _check_range(old)


def _check_pasid(pasid: int) -> None:
    if pasid >> 20:
        raise UapiError(EINVAL, f"PASID {pasid:#x} has more than 20 bits")


def _check_range(old: CacheInvalidateInfo) -> None:
    size = old.granule_size
    if size < 1 << _PAGE_LG2 or size & size - 1 or old.addr & size - 1 or not old.nb_granules:
        raise UapiError(EINVAL, f"{old.nb_granules} granules of {size:#x} bytes from {old.addr:#x} are no range")
    if old.addr + size * old.nb_granules - 1 > _LAST:
        raise UapiError(EINVAL, f"{old.nb_granules} granules of {size:#x} bytes from {old.addr:#x} end beyond 2**64")
