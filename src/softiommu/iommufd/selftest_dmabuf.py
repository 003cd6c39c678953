"""The test command's dma-bufs: a device's memory as a file, which its exporter can revoke."""

from __future__ import annotations

import os
from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from softiommu.abi import iommufd_test as test
from softiommu.errors import UapiError
from softiommu.iommufd.context import Context
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.files import DmabufFile
from softiommu.memory.shared import SharedMemory

if TYPE_CHECKING:
    from softiommu.iommufd.selftest import SelftestCommand

_MAX_LENGTH = 2 << 20


def get(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.DmabufGet) -> int:
    """DMABUF_GET: a new buffer; its descriptor is the ioctl's result. EINVAL: empty, or more than 2 MiB."""
    length = -(-arg.length // PAGE_SIZE) * PAGE_SIZE
    if not 0 < length <= _MAX_LENGTH:
        raise UapiError(EINVAL, f"a dma-buf of {arg.length:#x} bytes")
    try:
        fd = os.memfd_create("dmabuf", os.MFD_CLOEXEC)
    except OSError as error:
        raise UapiError(error.errno or ENOMEM, "the memory of a dma-buf cannot be made") from error
    os.ftruncate(fd, length)
    return ctx.caller.install(DmabufFile(SharedMemory(fd), length))


def revoke(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.DmabufRevoke) -> None:
    """DMABUF_REVOKE: existing mappings stop translating for good; un-revoking only helps new ones."""
    file = ctx.caller.file(arg.dmabuf_fd)
    if not isinstance(file, DmabufFile):
        raise UapiError(EINVAL, f"descriptor {arg.dmabuf_fd} is a {file.kind}, not a dma-buf of the test")
    file.set_revoked(bool(arg.revoked))
