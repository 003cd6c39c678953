"""VFIO's container commands on an iommufd."""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOENT, EOVERFLOW

import pytest

from iommufd.fakes import BASE
from iommufd.soft import APERTURE, Soft, refused
from softiommu.abi import iommufd as abi, vfio
from softiommu.errors import UapiError
from softiommu.iommufd.ioas import Ioas

PAGE = 4096
PLACE = BASE + 40 * PAGE


@pytest.fixture
def ioas(soft: Soft) -> int:
    number = soft.ioas()
    soft.call(abi.VfioIoas(ioas_id=number, op=abi.VfioIoasOp.SET))
    return number


def unmap(soft: Soft, iova: int, size: int, flags: int = 0) -> tuple[int, int]:
    """VFIO_IOMMU_UNMAP_DMA: errno, and the size that is answered."""
    soft.store(vfio.IommuType1DmaUnmap(argsz=24, flags=flags, iova=iova, size=size).to_bytes())
    errno = 0
    try:
        soft.file.ioctl(soft.caller, vfio.IOMMU_UNMAP_DMA, soft.scratch)
    except UapiError as error:
        errno = error.errno
    return errno, vfio.IommuType1DmaUnmap.from_bytes(soft.caller.read(soft.scratch, 24)).size


def info(soft: Soft, argsz: int) -> tuple[vfio.IommuType1Info, bytes]:
    """VFIO_IOMMU_GET_INFO: the structure, and everything after it that changed."""
    soft.caller.write(PLACE, b"\xa5" * PAGE)
    soft.caller.write(PLACE, argsz.to_bytes(4, "little"))
    assert soft.file.ioctl(soft.caller, vfio.IOMMU_GET_INFO, PLACE) == 0
    raw = soft.caller.read(PLACE, PAGE)
    return vfio.IommuType1Info.from_bytes(raw), raw[24:].rstrip(b"\xa5")


def test_without_an_ioas_the_commands_name_no_device_after_their_arguments_are_checked(soft: Soft) -> None:
    assert unmap(soft, 0, PAGE, flags=8)[0] == EINVAL
    assert unmap(soft, 0, PAGE)[0] == ENODEV
    assert soft.errno(abi.VfioIoas(op=abi.VfioIoasOp.GET)) == ENODEV
    assert soft.errno(abi.VfioIoas(op=abi.VfioIoasOp.SET, ioas_id=9)) == ENOENT


def test_destroying_the_ioas_clears_it(soft: Soft, ioas: int) -> None:
    assert soft.call(abi.VfioIoas(op=abi.VfioIoasOp.GET)).ioas_id == ioas
    soft.destroy(ioas)
    assert soft.errno(abi.VfioIoas(op=abi.VfioIoasOp.GET)) == ENODEV


@pytest.mark.parametrize("argsz", [16, 20, 24, 40, 47, 48, 71, 72, 88, 200])
def test_information_never_reaches_past_the_callers_size(soft: Soft, ioas: int, argsz: int) -> None:
    soft.mock(ioas)
    struct, tail = info(soft, argsz)
    needed = 24 + 16 + 16 + 16
    assert struct.argsz == needed
    assert len(tail) <= max(argsz - 24, 0)
    if argsz >= 24:
        assert struct.cap_offset == (24 if argsz >= needed else 0)
    if argsz >= needed:
        ranges = vfio.IommuType1InfoCapIovaRange.from_bytes(tail, 16)
        assert ranges.nr_iovas == 1
        assert vfio.IovaRange.from_bytes(tail, 32) == vfio.IovaRange(APERTURE, 0x7FFFFFFF)


@pytest.mark.parametrize(
    ("argsz", "written"),
    [(35, ""), (36, "avail"), (39, "avail"), (40, "avail next"), (71, "avail next"), (72, "avail next 0"), (88, "all")],
)
def test_information_holds_every_capability_and_range_that_fits(
    soft: Soft, ioas: int, argsz: int, written: str
) -> None:
    soft.mock(ioas)
    soft.ctx.objects.get(ioas, Ioas).map.reserve(APERTURE + PAGE, APERTURE + 2 * PAGE - 1, soft)
    struct, tail = info(soft, argsz)
    assert struct.argsz == 88
    avail = bytes.fromhex("03000100") + (b"\x28\0\0\0" if "next" in written or written == "all" else bytes(4))
    gap = b"\xa5" * 4
    first = vfio.IovaRange(APERTURE, APERTURE + PAGE - 1).to_bytes()
    head = vfio.IommuType1InfoCapIovaRange(header_id=1, header_version=1, nr_iovas=2).to_bytes()
    expected = {
        "": b"",
        "avail": avail + b"\xff" * 4,
        "avail next": avail + b"\xff" * 4,
        "avail next 0": avail + b"\xff" * 4 + gap + b"\xa5" * 16 + first,
        "all": avail + b"\xff" * 4 + gap + head + first + vfio.IovaRange(APERTURE + 2 * PAGE, 0x7FFFFFFF).to_bytes(),
    }
    assert tail == expected[written]


def test_information_shorter_than_its_first_fields_is_refused(soft: Soft, ioas: int) -> None:
    soft.caller.write(PLACE, (15).to_bytes(4, "little"))
    with refused(EINVAL):
        soft.file.ioctl(soft.caller, vfio.IOMMU_GET_INFO, PLACE)


def test_an_empty_range_unmaps_nothing_and_a_cut_area_is_an_error(soft: Soft, ioas: int) -> None:
    soft.map(ioas, BASE, 2 * PAGE, APERTURE)
    assert unmap(soft, 0, PAGE) == (0, 0)
    assert unmap(soft, APERTURE, PAGE) == (ENOENT, 0)
    assert unmap(soft, 0, 0, flags=2) == (0, 2 * PAGE)
    assert unmap(soft, 0, 0, flags=2) == (0, 0)
    assert unmap(soft, 1, 0, flags=2)[0] == EINVAL
    assert unmap(soft, 2**64 - PAGE, 2 * PAGE)[0] == EOVERFLOW
    assert unmap(soft, PAGE, 0)[0] == EINVAL


def test_the_size_is_answered_also_when_a_later_area_is_cut(soft: Soft, ioas: int) -> None:
    soft.map(ioas, BASE, PAGE, APERTURE)
    soft.map(ioas, BASE, 2 * PAGE, APERTURE + PAGE)
    assert unmap(soft, APERTURE, 2 * PAGE) == (ENOENT, PAGE)


def test_unmapping_all_2_to_the_64_bytes_answers_what_64_bits_hold(soft: Soft, ioas: int) -> None:
    soft.map(ioas, 0, 2**63, 0)
    soft.map(ioas, 0, 2**63, 2**63)
    assert unmap(soft, 0, 0, flags=2) == (0, 0)
    assert not soft.table(ioas).map.areas


def test_type_1_may_unmap_the_middle_of_shared_memory_and_nothing_of_it_translates(soft: Soft, ioas: int) -> None:
    soft.caller.mm.ram.together = True
    soft.file.ioctl(soft.caller, vfio.SET_IOMMU, vfio.Extension.TYPE1_IOMMU)
    device = soft.mock(ioas)
    cmd = vfio.IommuType1DmaMap(argsz=32, flags=3, vaddr=BASE, iova=APERTURE, size=8 * PAGE)
    soft.ioctl(vfio.IOMMU_MAP_DMA, cmd.to_bytes())
    domain = soft.paging(device.out_hwpt_id).domain
    assert unmap(soft, APERTURE + 2 * PAGE, 3 * PAGE) == (0, 3 * PAGE)
    mapped = [domain.iova_to_pa(APERTURE + n * PAGE) is not None for n in range(8)]
    assert mapped == [True, True, False, False, False, True, True, True]
    assert soft.pins == 5


def test_other_types_cannot_be_set(soft: Soft, ioas: int) -> None:
    for kind in (0, 2, 7, 8, 2**40):
        with refused(EINVAL):
            soft.file.ioctl(soft.caller, vfio.SET_IOMMU, kind)
    assert soft.file.ioctl(soft.caller, vfio.SET_IOMMU, vfio.Extension.TYPE1v2_IOMMU) == 0
    assert soft.file.ioctl(soft.caller, vfio.CHECK_EXTENSION, 2**63) == 0
    assert soft.file.ioctl(soft.caller, vfio.CHECK_EXTENSION, vfio.Extension.UNMAP_ALL) == 1
