"""Accesses: kernel-side users that reach an IOAS without a device."""

from __future__ import annotations

from errno import EADDRINUSE, EBADE, EBADFD, EFAULT, EINVAL, ENOENT, EOPNOTSUPP, EPERM
from typing import NamedTuple

import pytest

from iommufd.fakes import BASE
from iommufd.soft import APERTURE, READ, WRITE, Soft, build, refused
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.iommufd.access import Flags
from softiommu.iommufd.selftest_access import AccessFile

PAGE = 4096
Op = test.TestOp


class Opened(NamedTuple):
    """An access on an IOAS with four pages."""

    soft: Soft
    ioas: int
    fd: int
    file: AccessFile

    def pin(self, iova: int, length: int, uptr: int = 0, flags: int = 0) -> int:
        """ACCESS_PAGES: the number of the pages."""
        arg = test.AccessPages(flags=flags, iova=iova, length=length, uptr=uptr)
        return self.soft.op(Op.ACCESS_PAGES, self.fd, arg).out_access_pages_id


def open_access(soft: Soft, flags: int = 1) -> Opened:
    """Open one."""
    ioas = soft.ioas()
    soft.map(ioas, BASE, 4 * PAGE, APERTURE)
    fd = soft.op(Op.CREATE_ACCESS, ioas, test.CreateAccess(flags=flags)).out_access_fd
    file = soft.caller.files[fd]
    assert isinstance(file, AccessFile)
    return Opened(soft, ioas, fd, file)


@pytest.fixture
def opened(soft: Soft) -> Opened:
    return open_access(soft)


def test_pages_that_two_items_hold_are_pinned_once_until_both_are_gone(opened: Opened) -> None:
    first, second = opened.pin(APERTURE, 3 * PAGE), opened.pin(APERTURE + PAGE, 3 * PAGE)
    assert (first, second) == (0, 1)
    assert opened.soft.pins == 4
    opened.soft.op(Op.DESTROY_ACCESS_PAGES, opened.fd, test.DestroyAccessPages(first))
    assert opened.soft.pins == 3
    opened.soft.op(Op.DESTROY_ACCESS_PAGES, opened.fd, test.DestroyAccessPages(second))
    assert opened.soft.pins == 0
    gone = opened.soft.op_errno(Op.DESTROY_ACCESS_PAGES, opened.fd, test.DestroyAccessPages(second))
    assert gone == ENOENT


def test_an_unmap_takes_the_items_of_its_range_along(opened: Opened) -> None:
    opened.pin(APERTURE, PAGE)
    assert opened.soft.unmap(opened.ioas, APERTURE, 4 * PAGE) == 4 * PAGE
    assert opened.file.items == {}
    assert opened.soft.pins == 0


@pytest.mark.parametrize("skew", [0, 1, 100, 4095])
def test_pages_are_compared_page_by_page_whatever_the_offset_in_the_first(opened: Opened, skew: int) -> None:
    opened.pin(APERTURE + PAGE, 2 * PAGE, BASE + PAGE)
    arg = test.AccessPages(iova=APERTURE + PAGE, length=PAGE, uptr=BASE + skew)
    assert opened.soft.op_errno(Op.ACCESS_PAGES, opened.fd, arg) == EBADE
    arg = test.AccessPages(iova=APERTURE + PAGE, length=PAGE, uptr=BASE + PAGE + skew)
    assert opened.soft.op_errno(Op.ACCESS_PAGES, opened.fd, arg) == 0


def test_pins_that_fail_hold_nothing(opened: Opened) -> None:
    soft = opened.soft
    for iova, length, expected in ((APERTURE, 5 * PAGE, ENOENT), (APERTURE, 0, EINVAL), (0, PAGE, ENOENT)):
        arg = test.AccessPages(iova=iova, length=length)
        assert soft.op_errno(Op.ACCESS_PAGES, opened.fd, arg) == expected
    soft.caller.mm.holes = {2}
    assert soft.op_errno(Op.ACCESS_PAGES, opened.fd, test.AccessPages(iova=APERTURE, length=4 * PAGE)) == EFAULT
    assert soft.pins == 0


def test_memory_mapped_for_one_direction_refuses_the_other(soft: Soft) -> None:
    opened = open_access(soft)
    soft.map(opened.ioas, BASE, PAGE, 0x10000, READ)
    soft.map(opened.ioas, BASE, PAGE, 0x20000, WRITE)
    access = opened.file.access
    with refused(EPERM):
        access.pin(0x10000, PAGE, Flags.WRITE)
    with refused(EPERM):
        access.pin(0x20000, PAGE, Flags.READ)
    with refused(EPERM):
        access.write(0x10000, b"x")
    with refused(EPERM):
        access.read(0x20000, 1)


def test_bytes_go_to_and_from_the_memory_behind_several_areas(opened: Opened) -> None:
    soft, access = opened.soft, opened.file.access
    soft.map(opened.ioas, BASE + 8 * PAGE, PAGE, APERTURE + 4 * PAGE)
    access.write(APERTURE + 4 * PAGE - 3, b"abcdef")
    assert soft.caller.read(BASE + 4 * PAGE - 3, 3) + soft.caller.read(BASE + 8 * PAGE, 3) == b"abcdef"
    assert access.read(APERTURE + 4 * PAGE - 3, 6) == b"abcdef"


def test_a_write_into_a_hole_keeps_what_came_before_it(opened: Opened) -> None:
    with refused(ENOENT):
        opened.file.access.write(APERTURE + 4 * PAGE - 2, b"xyz")
    assert opened.soft.caller.read(BASE + 4 * PAGE - 2, 2) == b"xy"


def test_an_access_that_pins_needs_whole_pages(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.map(ioas, BASE, 100, 0x5000)
    assert soft.op_errno(Op.CREATE_ACCESS, ioas, test.CreateAccess(flags=1)) == EADDRINUSE
    fd = soft.op(Op.CREATE_ACCESS, ioas, test.CreateAccess()).out_access_fd
    assert soft.table(ioas).map.alignment == 1
    assert soft.op_errno(Op.ACCESS_PAGES, fd, test.AccessPages(iova=0x5000, length=10)) == EOPNOTSUPP


def test_a_number_that_is_no_access_is_a_bad_descriptor(opened: Opened) -> None:
    for fd in (999, opened.soft.call(abi.FaultAlloc()).out_fault_fd):
        assert opened.soft.op_errno(Op.ACCESS_RW, fd, test.AccessRw(iova=APERTURE, length=1, uptr=BASE)) == EBADFD


def test_a_move_to_another_ioas_lets_pins_go_and_follows_its_maps(opened: Opened) -> None:
    soft = opened.soft
    other = soft.ioas()
    opened.pin(APERTURE, PAGE)
    soft.op(Op.ACCESS_REPLACE_IOAS, opened.fd, test.AccessReplaceIoas(ioas_id=other))
    assert (soft.pins, opened.file.items) == (0, {})
    with refused(ENOENT):
        opened.file.access.read(APERTURE, 1)
    soft.destroy(opened.ioas)


def test_an_access_moves_within_its_own_iommufd_whichever_file_is_called() -> None:
    machine = build()
    first, second = Soft(machine), Soft(machine)
    opened = open_access(first)
    second.caller.files = first.caller.files
    foreign = [second.ioas() for _ in range(3)][-1]
    arg = test.AccessReplaceIoas(ioas_id=foreign)
    assert second.op_errno(Op.ACCESS_REPLACE_IOAS, opened.fd, arg) == ENOENT
    assert second.table(foreign).map.accesses == []
    second.caller.files = {}
    first.close()
    second.close()
