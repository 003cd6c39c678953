"""The test command's dma-bufs: made, mapped, taken back."""

from __future__ import annotations

from errno import (
    EBADF,
    EINVAL,
    EMFILE,
    ENODEV,
)

import pytest

from iommufd.soft import APERTURE, Soft
from softiommu.abi import iommufd as abi, iommufd_test as test

K, PAGE = 1 << 10, 4096
TOP = 1 << 64
Op = test.TestOp
NO_DIRTY, PASID = int(test.DeviceFlags.NO_DIRTY), int(test.DeviceFlags.PASID)
HWPT_PASID = 8


@pytest.mark.parametrize("length", [0, (2 << 20) + 1])
def test_a_dma_buf_has_1_byte_to_2_mib(soft: Soft, length: int) -> None:
    assert soft.op_errno(Op.DMABUF_GET, 0, test.DmabufGet(length)) == EINVAL


def test_a_revoked_dma_buf_stops_translating_for_good(soft: Soft) -> None:
    ioas = soft.ioas()
    hwpt = soft.mock(ioas).out_hwpt_id
    soft.op(Op.DMABUF_GET, 0, test.DmabufGet(PAGE + 1))
    fd = soft.result
    arg = abi.IoasMapFile(flags=7, ioas_id=ioas, fd=fd, start=0, length=2 * PAGE, iova=APERTURE)
    soft.call(arg)
    domain = soft.paging(hwpt).domain
    assert domain.iova_to_pa(APERTURE) is not None
    soft.op(Op.DMABUF_REVOKE, 0, test.DmabufRevoke(fd, 1))
    assert domain.iova_to_pa(APERTURE) is None
    again = abi.IoasMapFile(flags=7, ioas_id=ioas, fd=fd, start=0, length=PAGE, iova=APERTURE + 2 * PAGE)
    assert soft.errno(again) == ENODEV
    soft.op(Op.DMABUF_REVOKE, 0, test.DmabufRevoke(fd, 0))
    assert domain.iova_to_pa(APERTURE) is None
    soft.call(again)
    assert domain.iova_to_pa(APERTURE + 2 * PAGE) is not None
    assert soft.unmap(ioas, APERTURE, 3 * PAGE) == 3 * PAGE


def test_only_a_dma_buf_can_be_revoked(soft: Soft) -> None:
    assert soft.op_errno(Op.DMABUF_REVOKE, 0, test.DmabufRevoke(99, 1)) == EBADF
    access = soft.op(Op.CREATE_ACCESS, soft.ioas(), test.CreateAccess()).out_access_fd
    assert soft.op_errno(Op.DMABUF_REVOKE, 0, test.DmabufRevoke(access, 1)) == EINVAL


def test_a_dma_buf_that_finds_no_descriptor_is_gone(soft: Soft) -> None:
    soft.caller.table_full = True
    assert soft.op_errno(Op.DMABUF_GET, 0, test.DmabufGet(PAGE)) == EMFILE


def test_the_cpu_does_not_reach_a_dma_buf(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.op(Op.DMABUF_GET, 0, test.DmabufGet(PAGE))
    soft.call(abi.IoasMapFile(flags=7, ioas_id=ioas, fd=soft.result, length=PAGE, iova=APERTURE))
    access = soft.op(Op.CREATE_ACCESS, ioas, test.CreateAccess(flags=1)).out_access_fd
    assert soft.op_errno(Op.ACCESS_PAGES, access, test.AccessPages(iova=APERTURE, length=PAGE)) == EINVAL
    assert soft.op_errno(Op.ACCESS_RW, access, test.AccessRw(iova=APERTURE, length=8, uptr=soft.scratch)) == EINVAL
