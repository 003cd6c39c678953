"""One ioctl, in and out: what sizes alone do not say."""

from __future__ import annotations

from errno import E2BIG, EFAULT, EINVAL, ENOENT, ENOTTY

from iommufd.fakes import BASE
from iommufd.soft import Soft, refused
from softiommu.abi import iommufd as abi, vfio
from softiommu.iommufd import dispatch
from softiommu.iommufd.context import CallDone

PAGE = 4096


def test_an_unknown_number_in_the_table_reads_its_size_first(soft: Soft) -> None:
    for cmd in (0x3B9F, abi.IOAS_ALLOC | 1 << 30, abi.IOAS_ALLOC | 12 << 16):
        with refused(EFAULT):
            soft.file.ioctl(soft.caller, cmd, 0)
        with refused(ENOTTY):
            soft.file.ioctl(soft.caller, cmd, BASE)


def test_a_number_outside_the_table_never_reads_its_pointer(soft: Soft) -> None:
    for cmd in (0x3B00, 0x3B63, 0x3BA1, 0xFFFFFFFF, 0x3B7F):
        with refused(ENOTTY):
            soft.file.ioctl(soft.caller, cmd, 0)


def test_a_zero_tail_may_be_longer_than_any_structure(soft: Soft) -> None:
    size = 50 * PAGE
    soft.caller.write(BASE, abi.IoasAlloc(size=size).to_bytes())
    assert soft.file.ioctl(soft.caller, abi.IOAS_ALLOC, BASE) == 0
    soft.caller.write(BASE + size - 1, b"\1")
    with refused(E2BIG):
        soft.file.ioctl(soft.caller, abi.IOAS_ALLOC, BASE)
    soft.caller.mm.holes = {20}
    with refused(EFAULT):
        soft.file.ioctl(soft.caller, abi.IOAS_ALLOC, BASE)
    soft.caller.write(BASE + 19 * PAGE, b"\1")
    with refused(E2BIG):
        soft.file.ioctl(soft.caller, abi.IOAS_ALLOC, BASE)


def test_a_short_size_is_refused_before_the_rest_is_read(soft: Soft) -> None:
    at = BASE + 4 * PAGE - 4
    soft.caller.mm.holes = {4}
    soft.caller.write(at, (39).to_bytes(4, "little"))
    with refused(EINVAL):
        soft.file.ioctl(soft.caller, abi.IOAS_MAP, at)
    soft.caller.write(at, (40).to_bytes(4, "little"))
    with refused(EFAULT):
        soft.file.ioctl(soft.caller, abi.IOAS_MAP, at)


def test_a_structure_in_hand_must_be_the_commands_own(soft: Soft) -> None:
    with refused(ENOTTY):
        dispatch.execute(soft.ctx, soft.caller, abi.IOAS_ALLOC, abi.IoasMap())
    with refused(ENOTTY):
        dispatch.execute(soft.ctx, soft.caller, 0x1234, abi.IoasMap())


def test_a_listener_hears_of_every_call_and_how_it_ended(soft: Soft) -> None:
    heard: list[CallDone] = []
    soft.machine.services.on_call = heard.append
    ioas = soft.ioas()
    soft.ioctl(abi.IOAS_ALLOC, abi.IoasAlloc().to_bytes())
    assert soft.errno(abi.Destroy(id=99)) == ENOENT
    with refused(EFAULT):
        soft.file.ioctl(soft.caller, abi.IOAS_MAP, 0)
    with refused(ENOTTY):
        soft.file.ioctl(soft.caller, 0x3B9F, BASE)
    soft.file.ioctl(soft.caller, vfio.GET_API_VERSION, 0)
    soft.machine.services.on_call = None
    ends = [(call.name, call.result, call.error.errno if call.error else 0) for call in heard]
    assert ends == [
        ("IOAS_ALLOC", 0, 0),
        ("IOAS_ALLOC", 0, 0),
        ("DESTROY", -1, ENOENT),
        ("IOAS_MAP", -1, EFAULT),
        ("0x3b9f", -1, ENOTTY),
        ("VFIO_GET_API_VERSION", 0, 0),
    ]
    assert isinstance(heard[0].cmd, abi.IoasAlloc)
    assert heard[0].cmd.out_ioas_id == ioas
    assert (heard[3].cmd, heard[4].cmd) == (None, None)
