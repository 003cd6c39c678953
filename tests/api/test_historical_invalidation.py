"""The forms of 2017 and 2019 to 2022 mean what an entry of the generic form says; what is wrong in them is refused."""

from errno import EINVAL, EOPNOTSUPP

import pytest
from hypothesis import given, strategies as st

from softiommu.abi.generic_invalidation import Hint, InvalidateV2, Scope, Target, Valid
from softiommu.abi.historical_invalidation import (
    Cache,
    CacheInvalidateInfo,
    CacheInvalidateInfo2019,
    Granularity,
    InfoFlags,
    TlbGranularity,
    TlbInvalidate,
)
from softiommu.api.historical_invalidation import from_2017, from_2019, from_2020
from softiommu.drivers.driver import Range
from softiommu.drivers.generic_invalidation import decode
from softiommu.errors import UapiError

EVERYTHING = Target.LEAF | Target.TABLES | Target.DEVICE_TLB


def info(**fields):
    return CacheInvalidateInfo(**{"argsz": CacheInvalidateInfo.SIZE} | fields)


def test_the_structures_are_as_long_as_they_were():
    assert (TlbInvalidate.SIZE, CacheInvalidateInfo.SIZE, CacheInvalidateInfo2019.SIZE) == (32, 56, 48)
    assert (CacheInvalidateInfo.MIN_SIZE, CacheInvalidateInfo2019.MIN_SIZE) == (16, 8)


@pytest.mark.parametrize(
    ("old", "entry"),
    [
        (TlbInvalidate(), InvalidateV2(Scope.DOMAIN, targets=15)),
        (TlbInvalidate(granularity=TlbGranularity.PASID, pasid=7), InvalidateV2(Scope.PASID, targets=15, pasid=7)),
        (
            TlbInvalidate(granularity=TlbGranularity.PAGES, pasid=7, addr=0x5FFF, size=2),
            InvalidateV2(Scope.RANGE, 12, EVERYTHING, pasid=7, addr=0x5000, count=2),
        ),
        (
            TlbInvalidate(granularity=TlbGranularity.PAGES, addr=0, size=2**64 - 1),
            InvalidateV2(Scope.RANGE, 12, EVERYTHING, addr=0, count=2**52),
        ),
    ],
    ids=str,
)
def test_a_draft_of_2017(old, entry):
    assert from_2017(old.to_bytes()) == entry
    decode(entry)


@pytest.mark.parametrize(
    ("raw", "errno"),
    [
        (bytes(31), EINVAL),
        (bytes(33), EOPNOTSUPP),
        (TlbInvalidate(model=1).to_bytes(), EOPNOTSUPP),
        (TlbInvalidate(granularity=3).to_bytes(), EINVAL),
        (TlbInvalidate(padding=b"\0\1\0").to_bytes(), EINVAL),
        (TlbInvalidate(padding2=1).to_bytes(), EINVAL),
        (TlbInvalidate(granularity=1, pasid=1 << 20).to_bytes(), EINVAL),
        (TlbInvalidate(granularity=2).to_bytes(), EINVAL),
        (TlbInvalidate(granularity=2, addr=2**64 - 1, size=2).to_bytes(), EINVAL),
    ],
)
def test_a_wrong_draft(raw, errno):
    with pytest.raises(UapiError) as caught:
        from_2017(raw)
    assert caught.value.errno == errno


RANGE = {"granularity": Granularity.ADDR, "addr": 0x4000, "granule_size": 0x4000, "nb_granules": 3}


@pytest.mark.parametrize(
    ("fields", "entry"),
    [
        ({"cache": Cache.IOTLB}, InvalidateV2(Scope.DOMAIN, targets=3)),
        ({"cache": Cache.PASID | Cache.IOTLB}, InvalidateV2(Scope.DOMAIN, targets=7)),
        (
            {"cache": 7, "granularity": Granularity.PASID, "flags": InfoFlags.PASID, "pasid": 9, "archid": 5},
            InvalidateV2(Scope.PASID, targets=15, pasid=9),
        ),
        (
            {"cache": Cache.IOTLB, "granularity": Granularity.PASID, "flags": InfoFlags.ARCHID, "archid": 5},
            InvalidateV2(Scope.DOMAIN, targets=3, valid=Valid.ARCH_ID, arch_id=5),
        ),
        (
            {"cache": 3, **RANGE, "flags": 7, "pasid": 9, "archid": 5},
            InvalidateV2(Scope.RANGE, 14, 9, Hint.LEAF_ONLY, 9, 0, 0x4000, 3, Valid.ARCH_ID, 5),
        ),
        ({"cache": 2, **RANGE}, InvalidateV2(Scope.RANGE_ALL_PASIDS, 14, Target.DEVICE_TLB, addr=0x4000, count=3)),
    ],
    ids=str,
)
def test_a_structure_of_2019_and_2020(fields, entry):
    assert from_2020(info(**fields).to_bytes()) == entry
    assert from_2019(CacheInvalidateInfo2019(**fields).to_bytes()) == entry
    decode(entry)


def test_what_lies_where_a_granularity_has_no_union_says_nothing():
    stale = {"cache": Cache.IOTLB, "flags": 0xFFFF_FFFF, "archid": 7, "pasid": 1 << 40, "addr": 5}
    everything = InvalidateV2(Scope.DOMAIN, targets=Target.LEAF | Target.TABLES)
    assert from_2019(CacheInvalidateInfo2019(**stale).to_bytes()) == everything
    assert from_2020(info(**stale).to_bytes()) == everything
    assert from_2020(info(**stale, argsz=16).to_bytes()) == everything


def test_what_lies_beyond_argsz_says_nothing():
    page = {"cache": Cache.IOTLB, "granularity": Granularity.PASID, "flags": InfoFlags.PASID, "pasid": 7}
    assert from_2020(info(**page, argsz=32, addr=5).to_bytes()).pasid == 7
    assert from_2020(info(cache=1, argsz=100).to_bytes() + bytes([1]) * 50).targets == 3
    with pytest.raises(UapiError, match="argsz 16 leaves out"):
        from_2020(info(**page, argsz=16).to_bytes())


def test_the_part_of_the_union_that_is_not_used_may_be_missing():
    assert from_2020(info(cache=1, argsz=16).to_bytes()[:16]).scope == Scope.DOMAIN
    pasid = info(cache=1, granularity=1, flags=1, pasid=4, argsz=32, addr=99).to_bytes()
    assert from_2020(pasid[:32]).pasid == 4
    with pytest.raises(UapiError, match="argsz 31"):
        from_2020(info(cache=1, granularity=1, flags=1, argsz=31).to_bytes())
    with pytest.raises(UapiError, match="argsz is 56, and there are 32 bytes"):
        from_2020(info(cache=1).to_bytes()[:32])
    with pytest.raises(UapiError, match="there are 15 bytes"):
        from_2020(info(cache=1, argsz=15).to_bytes()[:15])
    with pytest.raises(UapiError, match="47 bytes"):
        from_2019(bytes(47))


@pytest.mark.parametrize(
    "fields",
    [
        {"cache": 1, "version": 0},
        {"cache": 1, "version": 2},
        {"cache": 1, "granularity": 3},
        {"cache": 1, "padding": 1},
        {"cache": 0},
        {"cache": 8},
        {"cache": Cache.DEV_IOTLB},
        {"cache": Cache.PASID, **RANGE},
        {"cache": 1, "granularity": 1},
        {"cache": 1, "granularity": 1, "flags": 5},
        {"cache": 1, "granularity": 1, "flags": 1, "pasid": 1 << 20},
        {"cache": 1, **RANGE, "flags": 8},
        {"cache": 1, **RANGE, "granule_size": 0x800},
        {"cache": 1, **RANGE, "granule_size": 0x6000},
        {"cache": 1, **RANGE, "granule_size": 0},
        {"cache": 1, **RANGE, "nb_granules": 0},
        {"cache": 1, **RANGE, "addr": 0x1000},
        {"cache": 1, **RANGE, "addr": 2**64 - 0x4000},
    ],
    ids=str,
)
def test_a_wrong_structure_is_einval(fields):
    for decoder, raw in ((from_2020, info(**fields)), (from_2019, CacheInvalidateInfo2019(**fields))):
        with pytest.raises(UapiError) as caught:
            decoder(raw.to_bytes())
        assert caught.value.errno == EINVAL


def outcome(decoder, raw):
    """The errno, or the decoded request of the entry."""
    try:
        entry = decoder(raw)
    except UapiError as error:
        return error.errno
    return decode(entry)


@given(st.sampled_from([from_2017, from_2019, from_2020]), st.binary(min_size=30, max_size=60))
def test_any_bytes_are_refused_or_give_a_right_entry(decoder, raw):
    assert outcome(decoder, raw) in (EINVAL, EOPNOTSUPP) or outcome(decoder, raw).targets


@given(st.integers(0, 2), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_any_draft_is_refused_or_a_right_entry(granularity, pasid, addr, size):
    old = TlbInvalidate(granularity=granularity, pasid=pasid, addr=addr, size=size)
    assert outcome(from_2017, old.to_bytes()) == EINVAL or outcome(from_2017, old.to_bytes()).targets


@given(
    granularity=st.sampled_from(Granularity),
    cache=st.integers(1, 7),
    flags=st.integers(0, 7),
    page=st.integers(0, 2**30),
    count=st.integers(1, 100),
)
def test_every_right_structure_is_a_right_entry(granularity, cache, flags, page, count):
    fields = {"addr": page << 12, "granule_size": 4096, "nb_granules": count, "pasid": 3, "archid": 4}
    try:
        entry = from_2020(info(granularity=granularity, cache=cache, flags=flags, **fields).to_bytes())
    except UapiError:
        return
    request = decode(entry)
    if granularity is Granularity.ADDR:
        assert request.window == Range(page << 12, (page + count << 12) - 1)
