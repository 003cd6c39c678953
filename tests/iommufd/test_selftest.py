"""The test command: its place in the table, reserved ranges, devices, and PASIDs of theirs."""

from __future__ import annotations

from collections.abc import Callable
from errno import (
    EADDRINUSE,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOTTY,
    EOPNOTSUPP,
    EOVERFLOW,
)

import pytest

from iommufd.fakes import BASE
from iommufd.good import mapped, viommu
from iommufd.soft import APERTURE, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.abi.struct import UserStruct

K, PAGE = 1 << 10, 4096
TOP = 1 << 64
Op = test.TestOp
NO_DIRTY, PASID = int(test.DeviceFlags.NO_DIRTY), int(test.DeviceFlags.PASID)
HWPT_PASID = 8


def read_only(soft: Soft, op: int, id: int, payload: UserStruct) -> int:
    """The errno of an operation whose structure cannot be written back."""
    raw = test.TestCmd(72, op, id, 0, payload.to_bytes().ljust(48, b"\0")).to_bytes()
    page = 50
    soft.caller.write(BASE + page * PAGE, raw)
    soft.caller.mm.read_only = {page}
    try:
        with refused(EFAULT):
            soft.file.ioctl(soft.caller, test.TEST_CMD, BASE + page * PAGE)
    finally:
        soft.caller.mm.read_only = set()
    return EFAULT


def ids(soft: Soft) -> list[int]:
    """The ids in use."""
    return sorted(obj.id for obj in soft.ctx.objects)


# The command


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
@pytest.mark.parametrize("op", [0, 24, 0xFFFFFFFF])
def test_an_operation_that_does_not_exist_is_not_supported(
    open_soft: Callable[..., Soft], kernel: str, op: int
) -> None:
    assert open_soft(kernel).op_errno(op, 0, test.MemoryLimit()) == EOPNOTSUPP


@pytest.mark.parametrize("op", range(16, 24))
def test_what_came_after_6_12_is_not_supported_there(open_soft: Callable[..., Soft], op: int) -> None:
    assert open_soft("6.12").op_errno(op, 0, test.MemoryLimit()) == EOPNOTSUPP
    assert open_soft("7.2").op_errno(op, 0, test.MemoryLimit()) != EOPNOTSUPP


def test_the_command_exists_where_there_is_a_mock_only(open_soft: Callable[..., Soft]) -> None:
    raw = test.TestCmd(op=Op.SET_TEMP_MEMORY_LIMIT).to_bytes()
    with refused(ENOTTY):
        open_soft(mock=False).ioctl(test.TEST_CMD, raw)
    with refused(EINVAL):
        open_soft().ioctl(test.TEST_CMD, raw)


def test_the_numbers_below_the_command_are_inside_the_table(soft: Soft) -> None:
    for number in (0x3B96, 0x3B9F):
        with refused(EFAULT):
            soft.file.ioctl(soft.caller, number, 0)
        with refused(ENOTTY):
            soft.ioctl(number, bytes(72))


def test_an_answer_changes_its_part_of_the_union_only(soft: Soft) -> None:
    ioas = soft.ioas()
    raw = test.TestCmd(72, Op.MOCK_DOMAIN, ioas, 5, b"\xaa" * 48, 0xBB, b"\xcc" * 4).to_bytes()
    after = soft.ioctl(test.TEST_CMD, raw)
    assert after[16:28] == b"".join(n.to_bytes(4, "little") for n in (2, 4, 3))
    assert after[:16] + after[28:] == raw[:16] + raw[28:]


@pytest.mark.parametrize(("limit", "expected"), [(0, EINVAL), (11, EINVAL), (12, 0), (1 << 31, 0)])
def test_a_memory_limit_holds_at_least_one_batch(soft: Soft, limit: int, expected: int) -> None:
    assert soft.op_errno(Op.SET_TEMP_MEMORY_LIMIT, 0, test.MemoryLimit(limit)) == expected


# Reserved ranges


def test_a_reserved_range_is_no_place_for_maps(soft: Soft) -> None:
    ioas = mapped(soft)
    assert soft.op_errno(Op.ADD_RESERVED, ioas, test.AddReserved(APERTURE + PAGE, 1)) == EADDRINUSE
    soft.op(Op.ADD_RESERVED, ioas, test.AddReserved(TOP - PAGE, PAGE))
    soft.op(Op.ADD_RESERVED, ioas, test.AddReserved(0x8000, PAGE))
    with refused(EINVAL):
        soft.map(ioas, BASE, PAGE, 0x8000)
    assert soft.table(ioas).map.free_ranges() == [(0, 0x7FFF), (0x9000, TOP - PAGE - 1)]


@pytest.mark.parametrize(("start", "length", "expected"), [(5, 0, EINVAL), (TOP - 1, 2, EOVERFLOW)])
def test_a_reserved_range_must_be_one(soft: Soft, start: int, length: int, expected: int) -> None:
    assert soft.op_errno(Op.ADD_RESERVED, 99, test.AddReserved(start, length)) == ENOENT
    assert soft.op_errno(Op.ADD_RESERVED, soft.ioas(), test.AddReserved(start, length)) == expected


# Devices


def test_a_device_takes_its_ids_in_the_order_object_device_table(soft: Soft) -> None:
    made = soft.op(Op.MOCK_DOMAIN, soft.ioas(), test.MockDomain())
    assert (made.out_stdev_id, made.out_idev_id, made.out_hwpt_id) == (2, 3, 4)
    soft.destroy(made.out_stdev_id)
    assert ids(soft) == [1]


def test_a_device_that_cannot_be_made_leaves_nothing(soft: Soft) -> None:
    ioas = soft.ioas()
    flags = test.MockDomainFlags(dev_flags=2)
    assert soft.op_errno(Op.MOCK_DOMAIN_FLAGS, 99, flags) == EINVAL
    assert soft.op_errno(Op.MOCK_DOMAIN, 99, test.MockDomain()) == ENOENT
    soft.map(ioas, 1 << 31, PAGE, 0)
    assert soft.op_errno(Op.MOCK_DOMAIN, ioas, test.MockDomain()) == EADDRINUSE
    soft.unmap(ioas, 0, PAGE)
    soft.map(ioas, 1 << 31, PAGE, APERTURE)
    assert soft.op_errno(Op.MOCK_DOMAIN, ioas, test.MockDomain()) == EFAULT
    assert ids(soft) == [ioas]


@pytest.mark.parametrize("op", [Op.MOCK_DOMAIN, Op.MOCK_DOMAIN_FLAGS])
def test_a_device_whose_ids_cannot_be_stored_is_undone(soft: Soft, op: int) -> None:
    ioas = mapped(soft)
    assert read_only(soft, op, ioas, test.MockDomainFlags()) == EFAULT
    assert ids(soft) == [ioas]
    assert soft.pins == 0


def test_a_replace_says_the_table_that_it_moved_to(soft: Soft) -> None:
    made = soft.mock(soft.ioas())
    other = soft.ioas()
    reply = soft.op(Op.MOCK_DOMAIN_REPLACE, made.out_stdev_id, test.MockDomainReplace(other))
    assert soft.paging(reply.pt_id).ioas is soft.table(other)
    assert soft.op_errno(Op.MOCK_DOMAIN_REPLACE, made.out_stdev_id, test.MockDomainReplace(99)) == ENOENT
    assert soft.op_errno(Op.MOCK_DOMAIN_REPLACE, made.out_idev_id, test.MockDomainReplace(other)) == ENOENT
    assert soft.op_errno(Op.MOCK_DOMAIN_REPLACE, made.out_stdev_id, test.MockDomainReplace(made.out_idev_id)) == EINVAL


def test_a_device_that_goes_leaves_a_tombstone_for_its_name(soft: Soft) -> None:
    device, number = viommu(soft)
    name = soft.call(abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=5)).out_vdevice_id
    selftest = next(obj.id for obj in soft.ctx.objects if obj.kind == "selftest")
    soft.destroy(selftest)
    assert soft.errno(abi.Destroy(id=name)) == ENOENT
    assert name not in {soft.ioas() for _ in range(8)}


# PASIDs


def with_pasid(soft: Soft) -> tuple[test.MockDomainFlags, int, int]:
    """A device with PASIDs on an HWPT made for them; that HWPT and another."""
    ioas = soft.ioas()
    made = soft.mock(ioas, PASID)
    one, two = (soft.hwpt(made.out_idev_id, ioas, HWPT_PASID) for _ in range(2))
    soft.op(Op.MOCK_DOMAIN_REPLACE, made.out_stdev_id, test.MockDomainReplace(one))
    return made, one, two


def test_a_pasid_moves_and_leaves(soft: Soft) -> None:
    made, one, two = with_pasid(soft)
    device = made.out_stdev_id

    def on(pasid: int, hwpt: int) -> int:
        return soft.op_errno(Op.PASID_CHECK_HWPT, device, test.PasidCheck(pasid, hwpt))

    assert (on(9, 0), on(0, one), on(9, 99), on(9, one)) == (0, 0, ENOENT, EINVAL)
    assert soft.op(Op.PASID_ATTACH, device, test.PasidAttach(9, one)).pt_id == one
    assert (on(9, one), on(9, two), on(9, 0)) == (0, EINVAL, EINVAL)
    assert soft.op_errno(Op.PASID_ATTACH, device, test.PasidAttach(9, one)) == EBUSY
    assert soft.op(Op.PASID_REPLACE, device, test.PasidReplace(9, two)).pt_id == two
    assert on(9, two) == 0
    for _ in range(2):
        soft.op(Op.PASID_DETACH, device, test.PasidDetach(9))
    assert on(9, 0) == 0
    assert soft.op_errno(Op.PASID_REPLACE, device, test.PasidReplace(9, two)) == EINVAL


@pytest.mark.parametrize("op", [Op.PASID_ATTACH, Op.PASID_REPLACE, Op.PASID_DETACH, Op.PASID_CHECK_HWPT])
def test_pasids_are_of_a_selftest_object(soft: Soft, op: int) -> None:
    made, one, _ = with_pasid(soft)
    assert soft.op_errno(op, made.out_idev_id, test.PasidAttach(9, one)) == ENOENT


def test_a_pasid_needs_tables_made_for_it_and_a_device_that_has_it(soft: Soft) -> None:
    made, one, _ = with_pasid(soft)
    ioas = soft.paging(one).ioas.id
    plain = soft.hwpt(made.out_idev_id, ioas)
    for pasid, target in ((9, plain), (9, ioas), (1 << 20, one)):
        assert soft.op_errno(Op.PASID_ATTACH, made.out_stdev_id, test.PasidAttach(pasid, target)) == EINVAL
    assert soft.op_errno(Op.PASID_ATTACH, made.out_stdev_id, test.PasidAttach(9, 99)) == ENOENT


def test_the_reserved_pasid_keeps_its_table_when_the_move_fails(soft: Soft) -> None:
    made, one, two = with_pasid(soft)
    soft.op(Op.PASID_ATTACH, made.out_stdev_id, test.PasidAttach(1024, one))
    assert soft.op_errno(Op.PASID_REPLACE, made.out_stdev_id, test.PasidReplace(1024, two)) == ENOMEM
    soft.op(Op.PASID_CHECK_HWPT, made.out_stdev_id, test.PasidCheck(1024, one))
    assert soft.errno(abi.Destroy(id=two)) == 0
    soft.op(Op.PASID_DETACH, made.out_stdev_id, test.PasidDetach(1024))


def test_a_pasid_whose_answer_cannot_be_stored_is_not_attached(soft: Soft) -> None:
    made, one, _ = with_pasid(soft)
    read_only(soft, Op.PASID_ATTACH, made.out_stdev_id, test.PasidAttach(9, one))
    soft.op(Op.PASID_CHECK_HWPT, made.out_stdev_id, test.PasidCheck(9, 0))
    soft.op(Op.PASID_ATTACH, made.out_stdev_id, test.PasidAttach(9, one))


def test_a_table_stays_busy_when_its_device_left_with_a_pasid_attached(soft: Soft) -> None:
    made, one, two = with_pasid(soft)
    soft.op(Op.PASID_ATTACH, made.out_stdev_id, test.PasidAttach(9, two))
    soft.destroy(made.out_stdev_id)
    assert (soft.errno(abi.Destroy(id=one)), soft.errno(abi.Destroy(id=two))) == (0, EBUSY)
