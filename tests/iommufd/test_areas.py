"""The map of an IOAS: what the recordings do not reach."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV, ENOENT, EPERM

import pytest

from iommufd.fakes import BASE
from iommufd.soft import APERTURE, FIXED, READ, WRITE, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test, vfio
from softiommu.memory.files import DmabufFile

PAGE = 4096
EVERYTHING = 2**64 - 1


def dmabuf(soft: Soft, ioas: int, iova: int, pages: int) -> tuple[int, DmabufFile]:
    """A dma-buf of the test command, mapped: its descriptor and file."""
    soft.op(test.TestOp.DMABUF_GET, 0, test.DmabufGet(length=pages * PAGE))
    fd = soft.result
    soft.call(abi.IoasMapFile(flags=FIXED | READ | WRITE, ioas_id=ioas, fd=fd, length=pages * PAGE, iova=iova))
    file = soft.caller.files[fd]
    assert isinstance(file, DmabufFile)
    return fd, file


def test_a_copy_of_pieces_smaller_than_the_targets_pages_is_refused_and_leaves_nothing(soft: Soft) -> None:
    source, target = soft.ioas(), soft.ioas()
    soft.map(source, BASE, 512, APERTURE)
    soft.map(source, BASE + PAGE, 1536, APERTURE + 512)
    soft.mock(target)
    copy = abi.IoasCopy(flags=7, dst_ioas_id=target, src_ioas_id=source, length=2048, dst_iova=APERTURE)
    copy.src_iova = APERTURE
    with refused(EINVAL):
        soft.call(copy)
    assert soft.pins == 0
    assert not soft.table(target).map.areas
    assert soft.map(target, BASE, 2048, APERTURE) == APERTURE


def test_unmapping_all_2_to_the_64_bytes_reports_what_64_bits_hold(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.map(ioas, 0, 2**63, 0)
    soft.map(ioas, 0, 2**63, 2**63)
    raw = abi.IoasUnmap(ioas_id=ioas, iova=0, length=EVERYTHING).to_bytes()
    answer = abi.IoasUnmap.from_bytes(soft.ioctl(abi.IOAS_UNMAP, raw))
    assert answer.length == 0
    assert not soft.table(ioas).map.areas


def test_an_unmap_that_cuts_an_area_keeps_what_it_removed_before(soft: Soft) -> None:
    ioas = soft.ioas()
    for at in (1, 2, 3):
        soft.map(ioas, BASE, PAGE * (1 + (at == 3)), at * PAGE)
    cmd = abi.IoasUnmap(ioas_id=ioas, iova=PAGE, length=3 * PAGE)
    with refused(ENOENT):
        soft.call(cmd)
    assert cmd.length == 3 * PAGE
    assert list(soft.table(ioas).map.areas) == [3 * PAGE]


def test_a_copy_that_would_write_memory_mapped_to_be_read_is_refused(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.map(ioas, BASE, PAGE, 0x10000, READ)
    copy = abi.IoasCopy(flags=WRITE, dst_ioas_id=ioas, src_ioas_id=ioas, length=PAGE, src_iova=0x10000)
    with refused(EPERM):
        soft.call(copy)


def test_a_revoked_dma_buf_no_longer_translates_and_its_areas_stay(soft: Soft) -> None:
    ioas = soft.ioas()
    device = soft.mock(ioas)
    fd, _ = dmabuf(soft, ioas, APERTURE, 2)
    domain = soft.paging(device.out_hwpt_id).domain
    assert domain.iova_to_pa(APERTURE) is not None
    soft.op(test.TestOp.DMABUF_REVOKE, 0, test.DmabufRevoke(dmabuf_fd=fd, revoked=1))
    assert domain.iova_to_pa(APERTURE) is None
    assert soft.unmap(ioas, APERTURE, 2 * PAGE) == 2 * PAGE


def test_the_parts_of_a_cut_dma_buf_stop_translating_when_it_is_revoked(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.call(abi.Option(option_id=1, object_id=ioas, val64=0))
    device = soft.mock(ioas)
    fd, file = dmabuf(soft, ioas, APERTURE, 3)
    soft.call(abi.VfioIoas(ioas_id=ioas, op=abi.VfioIoasOp.SET))
    unmap = vfio.IommuType1DmaUnmap(argsz=24, iova=APERTURE + PAGE, size=PAGE)
    soft.ioctl(vfio.IOMMU_UNMAP_DMA, unmap.to_bytes())
    domain = soft.paging(device.out_hwpt_id).domain
    assert [domain.iova_to_pa(APERTURE + n * PAGE) is None for n in range(3)] == [False, True, False]
    soft.op(test.TestOp.DMABUF_REVOKE, 0, test.DmabufRevoke(dmabuf_fd=fd, revoked=1))
    assert [domain.iova_to_pa(APERTURE + n * PAGE) for n in range(3)] == [None] * 3
    later = soft.hwpt(device.out_idev_id, ioas)
    assert soft.paging(later).domain.iova_to_pa(APERTURE) is None
    soft.unmap(ioas, 0, EVERYTHING)
    assert file.on_revoke == []


def test_a_revoked_dma_buf_cannot_be_mapped_until_it_is_given_back(soft: Soft) -> None:
    ioas = soft.ioas()
    device = soft.mock(ioas)
    fd, _ = dmabuf(soft, ioas, APERTURE, 1)
    cmd = abi.IoasMapFile(flags=READ | WRITE, ioas_id=ioas, fd=fd, length=PAGE)
    soft.op(test.TestOp.DMABUF_REVOKE, 0, test.DmabufRevoke(dmabuf_fd=fd, revoked=1))
    with refused(ENODEV):
        soft.call(cmd)
    soft.op(test.TestOp.DMABUF_REVOKE, 0, test.DmabufRevoke(dmabuf_fd=fd, revoked=0))
    new = soft.call(cmd).iova
    domain = soft.paging(device.out_hwpt_id).domain
    assert domain.iova_to_pa(APERTURE) is None
    assert domain.iova_to_pa(new) is not None


def test_cutting_an_area_keeps_each_part_on_its_own_pages(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.call(abi.Option(option_id=1, object_id=ioas, val64=0))
    soft.map(ioas, BASE, 4 * PAGE, APERTURE)
    device = soft.mock(ioas)
    domain = soft.paging(device.out_hwpt_id).domain
    before = [domain.iova_to_pa(APERTURE + n * PAGE) for n in range(4)]
    soft.call(abi.VfioIoas(ioas_id=ioas, op=abi.VfioIoasOp.SET))
    unmap = vfio.IommuType1DmaUnmap(argsz=24, iova=APERTURE + PAGE, size=2 * PAGE)
    assert vfio.IommuType1DmaUnmap.from_bytes(soft.ioctl(vfio.IOMMU_UNMAP_DMA, unmap.to_bytes())).size == 2 * PAGE
    after = [domain.iova_to_pa(APERTURE + n * PAGE) for n in range(4)]
    assert after == [before[0], None, None, before[3]]
    assert soft.pins == 2


def test_a_range_under_a_hardware_queue_cannot_be_unmapped(soft: Soft) -> None:
    soft.caller.mm.ram.together = True
    ioas = soft.ioas()
    soft.map(ioas, BASE, 2 * PAGE, APERTURE)
    device = soft.mock(ioas).out_idev_id
    parent = soft.hwpt(device, ioas, 1)
    viommu = soft.call(abi.ViommuAlloc(type=test.VIOMMU_TYPE_SELFTEST, dev_id=device, hwpt_id=parent)).out_viommu_id
    queue = abi.HwQueueAlloc(viommu_id=viommu, type=test.HW_QUEUE_TYPE_SELFTEST, length=PAGE)
    queue.nesting_parent_iova = APERTURE
    soft.call(queue)
    with refused(EBUSY):
        soft.unmap(ioas, 0, EVERYTHING)
    soft.destroy(queue.out_hw_queue_id)
    assert soft.unmap(ioas, 0, EVERYTHING) == 2 * PAGE


@pytest.mark.parametrize("last", [2**64 - 1, 2**64 - 2])
def test_a_mapping_may_end_at_the_last_address(soft: Soft, last: int) -> None:
    ioas = soft.ioas()
    iova = last - 2 * PAGE + 1
    assert soft.map(ioas, BASE, 2 * PAGE, iova) == iova
    assert soft.unmap(ioas, iova, 2 * PAGE) == 2 * PAGE
