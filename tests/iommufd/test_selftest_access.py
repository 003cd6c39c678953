"""The test command's accesses: what their descriptors take, in the kernel's order, and what errors leave behind."""

from __future__ import annotations

from errno import EADDRINUSE, EBADFD, EBUSY, EFAULT, EINVAL, EMFILE, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM

import pytest

from iommufd.fakes import BASE
from iommufd.soft import APERTURE, READ, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test

PAGE = 4096
TOP = 1 << 64
MAX_LENGTH = 16 << 20
Op = test.TestOp
WRITE, SYZ = int(test.AccessFlags.WRITE), int(test.AccessFlags.SYZ)
SLOW = int(test.AccessRwFlags.SLOW_PATH)


@pytest.fixture
def ioas(soft: Soft) -> int:
    number = soft.ioas()
    soft.map(number, BASE, 2 * PAGE, 0x10000)
    soft.map(number, BASE + 4 * PAGE, PAGE, 0x12000, READ)
    return number


def access(soft: Soft, ioas: int, flags: int = 1) -> int:
    """The descriptor of a new access."""
    return soft.op(Op.CREATE_ACCESS, ioas, test.CreateAccess(flags=flags)).out_access_fd


def test_an_access_is_refused_by_flags_then_ioas_then_alignment(soft: Soft, ioas: int) -> None:
    assert soft.op_errno(Op.CREATE_ACCESS, 99, test.CreateAccess(flags=2)) == EOPNOTSUPP
    assert soft.op_errno(Op.CREATE_ACCESS, 99, test.CreateAccess()) == ENOENT
    soft.map(ioas, BASE, 100, 0x20000)
    assert soft.op_errno(Op.CREATE_ACCESS, ioas, test.CreateAccess(flags=1)) == EADDRINUSE
    assert soft.op_errno(Op.CREATE_ACCESS, ioas, test.CreateAccess()) == 0


def test_an_access_keeps_its_ioas_and_an_id_until_it_is_closed(soft: Soft, ioas: int) -> None:
    fd = access(soft, ioas)
    assert soft.errno(abi.Destroy(id=ioas)) == EBUSY
    assert soft.ioas() == ioas + 2
    soft.caller.close(fd)
    assert soft.errno(abi.Destroy(id=ioas)) == 0


@pytest.mark.parametrize("why", ["no descriptor", "no room for the answer"])
def test_an_access_that_cannot_be_handed_out_is_undone(soft: Soft, ioas: int, why: str) -> None:
    raw = test.TestCmd(72, Op.CREATE_ACCESS, ioas, 0, test.CreateAccess(flags=1).to_bytes().ljust(48, b"\0")).to_bytes()
    soft.caller.write(soft.scratch, raw)
    soft.caller.table_full = why == "no descriptor"
    soft.caller.mm.read_only = set() if soft.caller.table_full else {63}
    with refused(EMFILE if soft.caller.table_full else EFAULT):
        soft.file.ioctl(soft.caller, test.TEST_CMD, soft.scratch)
    assert soft.caller.files == {}
    assert soft.table(ioas).map.accesses == []
    assert soft.table(ioas).map.alignment == 1
    # The IOAS must go when the only descriptor of the iommufd does: nothing else keeps the file.
    assert [obj.id for obj in soft.ctx.objects] == [ioas]
    assert soft.table(ioas).users == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"length": MAX_LENGTH + 1, "flags": 2}, ENOMEM),
        ({"flags": 2}, EOPNOTSUPP),
        ({"length": 0}, EINVAL),
        ({"iova": TOP - PAGE, "length": 2 * PAGE}, EOVERFLOW),
        ({"iova": 0x9000}, ENOENT),
        ({"length": 4 * PAGE}, ENOENT),
        ({"iova": 0x12000, "flags": WRITE}, EPERM),
        ({"iova": 0x12000}, 0),
        ({"iova": 0x10001, "length": PAGE - 1}, EINVAL),
        ({"uptr": 1 << 31}, EFAULT),
        ({"uptr": BASE}, 0),
    ],
)
def test_pages_are_refused_in_the_kernels_order_and_nothing_stays_pinned(
    soft: Soft, ioas: int, fields: dict[str, int], expected: int
) -> None:
    fd = access(soft, ioas)
    arg = test.AccessPages(**({"iova": 0x10000, "length": PAGE} | fields))
    assert soft.op_errno(Op.ACCESS_PAGES, fd, arg) == expected
    assert bool(soft.pins) is not bool(expected)


def test_only_an_access_made_for_it_pins(soft: Soft, ioas: int) -> None:
    arg = test.AccessPages(iova=0x10000, length=PAGE)
    assert soft.op_errno(Op.ACCESS_PAGES, access(soft, ioas, 0), arg) == EOPNOTSUPP
    assert soft.op_errno(Op.ACCESS_PAGES, 99, arg) == EBADFD


def test_pages_whose_number_cannot_be_stored_are_let_go(soft: Soft, ioas: int) -> None:
    fd = access(soft, ioas)
    arg = test.AccessPages(iova=0x10000, length=PAGE).to_bytes().ljust(48, b"\0")
    soft.caller.write(soft.scratch, test.TestCmd(72, Op.ACCESS_PAGES, fd, 0, arg).to_bytes())
    soft.caller.mm.read_only = {63}
    with refused(EFAULT):
        soft.file.ioctl(soft.caller, test.TEST_CMD, soft.scratch)
    assert soft.pins == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"length": MAX_LENGTH + 1, "flags": 2}, ENOMEM),
        ({"flags": 2}, EOPNOTSUPP),
        ({"length": 0}, EINVAL),
        ({"iova": TOP - 4, "length": 8}, EOVERFLOW),
        ({"iova": 0x9000}, ENOENT),
        ({"iova": 0x12000, "flags": WRITE}, EPERM),
        ({"uptr": 1 << 31}, EFAULT),
        ({"uptr": 1 << 31, "iova": 0x9000}, ENOENT),
        ({"uptr": 1 << 31, "iova": 0x9000, "flags": WRITE}, EFAULT),
        ({"flags": SLOW}, 0),
        ({"flags": SLOW | WRITE}, 0),
    ],
)
def test_copies_are_refused_in_the_kernels_order(soft: Soft, ioas: int, fields: dict[str, int], expected: int) -> None:
    fd = access(soft, ioas, 0)
    arg = test.AccessRw(**({"iova": 0x10000, "length": 8, "uptr": soft.scratch} | fields))
    assert soft.op_errno(Op.ACCESS_RW, fd, arg) == expected
    if arg.length <= MAX_LENGTH and arg.flags != 2:
        assert soft.op_errno(Op.ACCESS_RW, 99, arg) == EBADFD


def test_a_packed_address_is_an_area_by_its_number_and_an_offset(soft: Soft, ioas: int) -> None:
    fd = access(soft, ioas)
    for number, offset, expected in ((0, PAGE, 0), (1, 0, 0), (1, PAGE, ENOENT), (2, 0, ENOENT)):
        arg = test.AccessPages(flags=SYZ, iova=offset << 32 | number, length=PAGE)
        assert soft.op_errno(Op.ACCESS_PAGES, fd, arg) == expected
    assert soft.pins == 2
    soft.call(abi.IoasCopy(64, SYZ | READ | 1, ioas, ioas, PAGE, 0x40000, PAGE << 32))
    copied = soft.table(ioas).map.areas[0x40000]
    assert (copied.start, copied.length) == (PAGE, PAGE)


def test_a_packed_address_past_the_end_of_all_addresses_is_refused(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.map(ioas, BASE, PAGE, TOP - 2 * PAGE)
    copy = abi.IoasCopy(64, SYZ | READ | 1, ioas, ioas, PAGE, APERTURE, 0xFFFFFFFF << 32)
    assert soft.errno(copy) == ENOENT


def test_a_move_needs_an_ioas(soft: Soft, ioas: int) -> None:
    fd, other = access(soft, ioas), soft.ioas()
    assert soft.op_errno(Op.ACCESS_REPLACE_IOAS, 99, test.AccessReplaceIoas(other)) == EBADFD
    assert soft.op_errno(Op.ACCESS_REPLACE_IOAS, fd, test.AccessReplaceIoas(99)) == ENOENT
    assert soft.op_errno(Op.ACCESS_REPLACE_IOAS, fd, test.AccessReplaceIoas(other)) == 0
    soft.map(ioas, BASE, 100, 0x20000)
    assert soft.op_errno(Op.ACCESS_REPLACE_IOAS, fd, test.AccessReplaceIoas(ioas)) == EADDRINUSE
    assert soft.errno(abi.Destroy(id=other)) == EBUSY
    assert soft.errno(abi.Destroy(id=ioas)) == 0
