"""Allowed and free ranges of an IOAS, and who pays for its memory."""

from __future__ import annotations

from errno import EADDRINUSE, EFAULT, EINVAL, EMSGSIZE, ENOMEM

import pytest

from iommufd.fakes import BASE, memory_file
from iommufd.good import DATA, mapped
from iommufd.soft import APERTURE, READ, WRITE, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test

PAGE = 4096


def allow(soft: Soft, ioas: int, *ranges: tuple[int, int]) -> int:
    """ALLOW_IOVAS: the errno."""
    soft.caller.write(DATA, b"".join(abi.IovaRange(*pair).to_bytes() for pair in ranges))
    return soft.errno(abi.IoasAllowIovas(ioas_id=ioas, num_iovas=len(ranges), allowed_iovas=DATA))


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(PAGE, PAGE)], EINVAL),
        ([(2, 1)], EINVAL),
        ([(PAGE, PAGE + 1)], 0),
        ([(10, 20), (30, 40), (20, 30)], EINVAL),
        ([(10, 20), (30, 40), (5, 50)], EINVAL),
        ([(30, 40), (10, 20), (21, 29)], 0),
        ([(0, 2**64 - 1)], 0),
    ],
)
def test_allowed_ranges_are_not_empty_and_do_not_meet(soft: Soft, ranges: list[tuple[int, int]], expected: int) -> None:
    assert allow(soft, soft.ioas(), *ranges) == expected


def test_a_refused_list_of_allowed_ranges_keeps_the_old_one(soft: Soft) -> None:
    ioas = soft.ioas()
    assert allow(soft, ioas, (0x100000, 0x1FFFFF)) == 0
    assert allow(soft, ioas, (0x10000, 0x1FFFF), (3, 3)) == EINVAL
    assert soft.map(ioas, BASE, PAGE) == 0x100000
    assert allow(soft, ioas) == 0
    assert soft.map(ioas, BASE, PAGE) == PAGE


def test_a_device_whose_aperture_lacks_an_allowed_range_cannot_come(soft: Soft) -> None:
    ioas = soft.ioas()
    assert allow(soft, ioas, (0x100000, 0x1FFFFF)) == 0
    assert soft.op_errno(test.TestOp.MOCK_DOMAIN, ioas, test.MockDomain()) == EADDRINUSE
    assert soft.table(ioas).map.free_ranges() == [(0, 2**64 - 1)]


def test_as_many_free_ranges_as_fit_are_stored_and_all_are_counted(soft: Soft) -> None:
    ioas = soft.ioas()
    for n in range(3):
        soft.op(test.TestOp.ADD_RESERVED, ioas, test.AddReserved(start=(2 * n + 1) * PAGE, length=PAGE))
    cmd = abi.IoasIovaRanges(ioas_id=ioas, num_iovas=2, allowed_iovas=DATA)
    soft.caller.write(DATA, b"\xa5" * 64)
    with refused(EMSGSIZE):
        soft.call(cmd)
    assert (cmd.num_iovas, cmd.out_iova_alignment) == (4, 1)
    assert abi.IovaRange.from_bytes(soft.caller.read(DATA, 16)) == abi.IovaRange(0, PAGE - 1)
    assert soft.caller.read(DATA + 32, 32) == b"\xa5" * 32
    with refused(EFAULT):
        soft.call(abi.IoasIovaRanges(ioas_id=ioas, num_iovas=4, allowed_iovas=2**64 - 8))


def test_a_new_process_pays_only_for_files_and_all_or_nothing(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.mock(ioas)
    soft.caller.files[9] = memory_file(8)
    old = soft.caller.mm
    for n in range(2):
        soft.call(abi.IoasMapFile(flags=READ | WRITE, ioas_id=ioas, fd=9, start=n * PAGE, length=2 * PAGE))
    del soft.caller.files[9]
    new = Soft(soft.machine).caller
    new.mm.limit = 3 * PAGE
    new.uid = 7
    mine, soft.caller = soft.caller, new
    with refused(ENOMEM):
        soft.call(abi.IoasChangeProcess())
    assert (old.pinned, new.mm.pinned) == (4, 0)
    new.mm.limit = 4 * PAGE
    soft.call(abi.IoasChangeProcess())
    assert (old.pinned, new.mm.pinned) == (0, 4)
    soft.unmap(ioas, 0, 2**64 - 1)
    assert new.mm.pinned == 0
    soft.caller = mine
    mapped(soft)
    with refused(EINVAL):
        soft.call(abi.IoasChangeProcess())


def test_a_limit_on_locked_memory_refuses_the_map_and_leaves_the_place_free(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.mock(ioas)
    soft.caller.mm.limit = 2 * PAGE
    with refused(ENOMEM):
        soft.map(ioas, BASE, 3 * PAGE, APERTURE)
    assert soft.map(ioas, BASE, 2 * PAGE, APERTURE) == APERTURE
