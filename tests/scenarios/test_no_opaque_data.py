"""No opaque data.

Every byte that crosses the interface is specified, versioned by its size, and validated. One generic typed
invalidation is accepted by every hardware model, and where the guest's IOMMU is of another make than the host's.
"""

from errno import E2BIG, EOPNOTSUPP

import pytest

from scenarios.guests import GUESTS, IOVA
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, InvalidateV2, Scope, Target
from softiommu.abi.struct import UserStruct, u8, u16, u32, u64


class InvalidateV3(UserStruct):
    """A version that nobody knows yet: version 2, and one more field."""

    scope: u8 = 0
    granule_lg2: u8 = 0
    targets: u16 = 0
    hints: u32 = 0
    pasid: u32 = 0
    reserved: u32 = 0
    addr: u64 = 0
    count: u64 = 0
    valid: u32 = 0
    arch_id: u32 = 0
    device: u64 = 0
    out_errno: u32 = 0
    out_fault: u32 = 0
    news: u64 = 0


FIRST, SECOND = b"page one", b"page two"


@pytest.fixture(params=GUESTS, ids=lambda guest: guest.__name__)
def guest(request):
    made = request.param()
    page = made.page(FIRST)
    made.map(page)
    # A guest in caching mode tells what is new, too.
    made.cache.invalidate(GENERIC, [InvalidateV1(scope=Scope.DOMAIN, targets=Target.LEAF | Target.TABLES)])
    yield made
    made.close()


def forget(guest, version, **fields):
    """The generic entry for one page of any address space of the guest's."""
    named = {"scope": Scope.RANGE_ALL_PASIDS, "addr": IOVA, "count": 1, "granule_lg2": 12, "targets": Target.LEAF}
    return guest.cache.invalidate(GENERIC, [version(**(named | fields))])


@pytest.mark.parametrize("version", [InvalidateV1, InvalidateV2])
def test_one_entry_means_the_same_to_every_iommu(guest, version):
    assert guest.read() == FIRST
    guest.map(guest.page(SECOND))
    assert guest.read() == FIRST, "nobody told the IOMMU"
    assert forget(guest, version) == 1
    assert guest.read() == SECOND


def test_a_bit_that_nobody_defined_is_refused_by_every_iommu(guest):
    for fields in ({"hints": 1 << 31}, {"targets": 1 << 15}, {"reserved": 1}, {"scope": 200}):
        with pytest.raises(OSError, match=r".") as caught:
            forget(guest, InvalidateV2, **fields)
        assert (caught.value.errno, caught.value.handled) == (EOPNOTSUPP, 0), fields


def test_a_version_of_the_future_is_taken_while_it_asks_for_nothing_new(guest):
    assert guest.read() == FIRST
    guest.map(guest.page(SECOND))
    with pytest.raises(OSError, match=r".") as caught:
        forget(guest, InvalidateV3, news=1)
    assert (caught.value.errno, caught.value.handled) == (E2BIG, 0)
    assert guest.read() == FIRST
    assert forget(guest, InvalidateV3) == 1
    assert guest.read() == SECOND
