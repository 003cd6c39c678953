"""An open iommufd with a fake caller: calls by structure, test operations, and a check that nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from iommufd.fakes import BASE, FakeCaller, FakeMm
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.abi.struct import UserStruct
from softiommu.errors import UapiError
from softiommu.iommufd import dispatch
from softiommu.iommufd.hwpt import HwptPaging
from softiommu.iommufd.ioas import Ioas
from softiommu.machine.assemble import Machine
from softiommu.machine.description import Description, Iommu

S = TypeVar("S", bound=UserStruct)
#: The command of each structure.
COMMANDS: dict[type[UserStruct], int] = {row.struct: row.cmd for row in abi.IOCTLS} | {test.TestCmd: test.TEST_CMD}
READ, WRITE, FIXED = 4, 2, 1
#: The first I/O address of the mock's aperture.
APERTURE = int(test.Mock.APERTURE_START)


def build(kernel: str = "7.2", mock: bool = True, no_iommu: bool = False) -> Machine:
    """A machine for tests."""
    iommus = (Iommu("mock0", "mock"),) if mock else ()
    return Machine(Description("test", "test", kernel=kernel, no_iommu=no_iommu, iommus=iommus))


class Soft:
    """An iommufd of `machine`. `caller.mm` is the program's memory; its last page is for arguments."""

    def __init__(self, machine: Machine | None = None, pages: int = 64) -> None:
        self.machine = machine or build()
        self.caller = FakeCaller(FakeMm(pages))
        self.file = self.machine.open_iommu(self.caller, os.O_RDWR)
        self.ctx = self.file.context
        self.scratch = BASE + (pages - 1) * 4096

    # Calls

    def call(self, struct: S) -> S:
        """Carry out the command of this structure; it is answered in place. UapiError."""
        dispatch.execute(self.ctx, self.caller, COMMANDS[type(struct)], struct)
        return struct

    def errno(self, struct: UserStruct) -> int:
        """The errno of a command; 0 when it succeeds."""
        try:
            self.call(struct)
        except UapiError as error:
            return error.errno
        return 0

    def ioctl(self, cmd: int, raw: bytes, at: int | None = None) -> bytes:
        """An ioctl with these bytes in memory; the bytes afterwards. UapiError."""
        va = self.scratch if at is None else at
        self.caller.write(va, raw)
        self.file.ioctl(self.caller, cmd, va)
        return self.caller.read(va, len(raw))

    def store(self, data: bytes) -> int:
        """Put data in the program's memory: its address."""
        self.caller.write(self.scratch, data)
        return self.scratch

    def op(self, op: int, id: int, payload: S) -> S:
        """One operation of the test command; its part of the union afterwards. UapiError."""
        raw = payload.to_bytes().ljust(56, b"\0")
        cmd = test.TestCmd(72, op, id, 0, raw[:48], int.from_bytes(raw[48:52], "little"), raw[52:])
        self.result = dispatch.execute(self.ctx, self.caller, test.TEST_CMD, cmd)
        return type(payload).from_bytes(cmd.payload + cmd.last.to_bytes(4, "little") + cmd.padding)

    def op_errno(self, op: int, id: int, payload: UserStruct) -> int:
        """The errno of a test operation; 0 when it succeeds."""
        try:
            self.op(op, id, payload)
        except UapiError as error:
            return error.errno
        return 0

    # Things

    def ioas(self) -> int:
        """A new IOAS."""
        return self.call(abi.IoasAlloc()).out_ioas_id

    def map(self, ioas: int, va: int, length: int, iova: int | None = None, prot: int = READ | WRITE) -> int:
        """Map memory: its I/O address."""
        flags = prot if iova is None else prot | FIXED
        return self.call(abi.IoasMap(flags=flags, ioas_id=ioas, user_va=va, length=length, iova=iova or 0)).iova

    def unmap(self, ioas: int, iova: int, length: int) -> int:
        """Unmap: the bytes."""
        return self.call(abi.IoasUnmap(ioas_id=ioas, iova=iova, length=length)).length

    def mock(self, target: int, flags: int = 0) -> test.MockDomainFlags:
        """A mock device attached to an IOAS or HWPT: ids of the selftest object, the HWPT and the device."""
        return self.op(test.TestOp.MOCK_DOMAIN_FLAGS, target, test.MockDomainFlags(dev_flags=flags))

    def hwpt(self, device: int, target: int, flags: int = 0, **data: int) -> int:
        """A new HWPT."""
        return self.call(abi.HwptAlloc(flags=flags, dev_id=device, pt_id=target, **data)).out_hwpt_id

    def nested(self, device: int, target: int, flags: int = 0, **more: int) -> int:
        """A new nested HWPT with the mock's data, which every kernel knows as far as the IOTLB word."""
        uptr = self.store(test.HwptSelftest(iotlb=0x1234).to_bytes())
        return self.hwpt(device, target, flags, data_type=test.HWPT_DATA_SELFTEST, data_len=4, data_uptr=uptr, **more)

    def destroy(self, id: int) -> None:
        """DESTROY."""
        self.call(abi.Destroy(id=id))

    def table(self, ioas: int) -> Ioas:
        """The IOAS object."""
        return self.ctx.objects.get(ioas, Ioas)

    def paging(self, hwpt: int) -> HwptPaging:
        """The HWPT object."""
        return self.ctx.objects.get(hwpt, HwptPaging)

    @property
    def pins(self) -> int:
        """Pages pinned on the machine."""
        return self.machine.physical.accounts.total

    def close(self) -> None:
        """Close every descriptor, then the file; nothing may be left."""
        for fd in list(self.caller.files):
            self.caller.close(fd)
        self.file.release()
        check_empty(self)


def check_empty(soft: Soft) -> None:
    """No object, id, pin, charge or page set of a closed context is left."""
    assert list(soft.ctx.objects) == []
    assert not soft.machine.physical.pinned
    assert soft.pins == 0
    assert (soft.caller.mm.pinned, soft.caller.mm.locked) == (0, 0)


@contextmanager
def refused(errno: int) -> Iterator[None]:
    """The block must be refused with this errno."""
    with pytest.raises(UapiError) as caught:
        yield
    assert caught.value.errno == errno, caught.value.why
