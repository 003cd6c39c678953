"""IOMMU_OPTION."""

from __future__ import annotations

from errno import EADDRINUSE, EBUSY, EINVAL, ENOENT, EOPNOTSUPP, EPERM

import pytest

from iommufd.fakes import BASE
from iommufd.soft import APERTURE, Soft
from softiommu.abi.iommufd import Option
from softiommu.memory.client import CAP_SYS_RESOURCE

LIMIT_MODE, HUGE_PAGES = 0, 1
SET, GET = 0, 1


@pytest.mark.parametrize("value", [0, 1])
def test_the_limit_mode_reads_back_as_it_was_set(soft: Soft, value: int) -> None:
    soft.caller.capabilities.add(CAP_SYS_RESOURCE)
    soft.call(Option(option_id=LIMIT_MODE, op=SET, val64=value))
    assert soft.call(Option(option_id=LIMIT_MODE, op=GET, val64=77)).val64 == value


def test_the_limit_mode_is_checked_in_the_kernels_order(soft: Soft) -> None:
    soft.ioas()
    assert soft.errno(Option(option_id=LIMIT_MODE, object_id=1, op=9)) == EOPNOTSUPP
    assert soft.errno(Option(option_id=LIMIT_MODE, op=9)) == EOPNOTSUPP
    assert soft.errno(Option(option_id=LIMIT_MODE, op=SET, val64=2)) == EPERM
    soft.caller.capabilities.add(CAP_SYS_RESOURCE)
    assert soft.errno(Option(option_id=LIMIT_MODE, op=SET, val64=2)) == EBUSY
    soft.destroy(1)
    assert soft.errno(Option(option_id=LIMIT_MODE, op=SET, val64=2)) == EINVAL


def test_huge_pages_look_for_the_ioas_before_the_operation(soft: Soft) -> None:
    assert soft.errno(Option(option_id=HUGE_PAGES, object_id=5, op=9)) == ENOENT
    assert soft.errno(Option(option_id=HUGE_PAGES, object_id=soft.ioas(), op=9)) == EOPNOTSUPP
    assert soft.errno(Option(option_id=2)) == EOPNOTSUPP
    assert soft.errno(Option(option_id=HUGE_PAGES, object_id=1, reserved=1)) == EOPNOTSUPP


def test_without_huge_pages_every_area_is_whole_pages(soft: Soft) -> None:
    ioas = soft.ioas()
    off = Option(option_id=HUGE_PAGES, object_id=ioas, op=SET, val64=0)
    soft.map(ioas, BASE, 512, APERTURE)
    assert soft.errno(off) == EADDRINUSE
    assert soft.call(Option(option_id=HUGE_PAGES, object_id=ioas, op=GET)).val64 == 1
    soft.unmap(ioas, APERTURE, 512)
    soft.call(off)
    assert soft.table(ioas).map.alignment == 4096


def test_huge_pages_stay_on_while_a_page_table_shows_areas(soft: Soft) -> None:
    ioas = soft.ioas()
    device = soft.mock(ioas)
    off = Option(option_id=HUGE_PAGES, object_id=ioas, op=SET, val64=0)
    soft.map(ioas, BASE, 4096, APERTURE)
    assert soft.errno(off) == EINVAL
    soft.unmap(ioas, APERTURE, 4096)
    assert soft.errno(off) == 0
    soft.destroy(device.out_stdev_id)


def test_without_huge_pages_no_entry_spans_two_pages(soft: Soft) -> None:
    soft.caller.mm.ram.together = True
    ioas = soft.ioas()
    soft.call(Option(option_id=HUGE_PAGES, object_id=ioas, op=SET, val64=0))
    device = soft.mock(ioas)
    soft.map(ioas, BASE, 4 * 4096, APERTURE)
    domain = soft.paging(device.out_hwpt_id).domain
    pa = domain.iova_to_pa(APERTURE)
    assert domain.unmap(APERTURE, 4096) == 4096
    assert domain.iova_to_pa(APERTURE + 4096) == (pa or 0) + 4096
