"""Every nesting level is a visible object.

Nesting happens in hardware (two walks, a child managed by bind and invalidate) or in software (child and parent merged
into a shadow), with equal results; it is refused with a clear error where it is not sound.
"""

import re
from errno import EBUSY, EINVAL

import pytest

import softiommu
from api.test_software_nesting import machine, vm
from scenarios.guests import GUESTS, IOVA, PAGE, OnArm, Software
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, Scope, Target
from softiommu.abi.iommufd import HwptAllocFlags, HwptDataType, HwptVtdS1

EVERYTHING = InvalidateV1(scope=Scope.DOMAIN, targets=Target.LEAF | Target.TABLES)
BLOCKED = bytes(8)


def told(guest):
    """The guest tells its IOMMU that anything may have changed."""
    assert guest.cache.invalidate(GENERIC, [EVERYTHING]) == 1


@pytest.fixture(params=GUESTS, ids=lambda guest: guest.__name__)
def guest(request):
    made = request.param()
    told(made)
    yield made
    made.close()


def test_one_guest_sees_the_same_on_every_kind_of_nesting(guest):
    seen = []
    for content in (b"1st page", b"2nd page", None, b"3rd page"):
        if content is None:
            unmap(guest)
        else:
            guest.map(guest.page(content))
        told(guest)
        seen.append(guest.read())
    assert seen == [b"1st page", b"2nd page", BLOCKED, b"3rd page"]


def unmap(guest):
    """Nothing is at IOVA any more."""
    if isinstance(guest, Software):
        guest.vm.store(guest.vm.entry(IOVA), 0)
    else:
        guest.pages.unmap(IOVA, PAGE)


def test_a_parent_outlives_its_children(guest):
    parent = guest.vm.parent
    with pytest.raises(OSError, match=r".") as refused:
        parent.destroy()
    assert refused.value.errno == EBUSY


@pytest.mark.parametrize("kind", [Software, OnArm])
def test_software_nesting_is_refused_where_a_guest_does_not_tell_what_is_new(kind):
    with vm(machine(kind.IOMMU)) as guest:
        plain = guest.device.hwpt(guest.parent, data=(HwptDataType.VTD_S1, HwptVtdS1(0, 0x1000, 48)))
        with pytest.raises(OSError, match=re.escape("the guest does not promise them (CACHING_MODE)")) as refused:
            guest.device.attach(plain)
        assert refused.value.errno == EINVAL


@pytest.mark.parametrize("name", ["vtd", "viommu"])
def test_a_machine_that_does_not_nest_says_so(name):
    with softiommu.open(name) as iommufd, iommufd.ioas() as ioas, iommufd.device("edu0") as device:
        with pytest.raises(OSError, match=r"nest|plain domains only") as refused:
            device.hwpt(ioas, HwptAllocFlags.ALLOC_NEST_PARENT)
        assert refused.value.why
