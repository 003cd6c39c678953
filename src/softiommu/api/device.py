"""Devices: what they are attached to, and what their IOMMU is."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.api.hwpt import Hwpt
from softiommu.api.viommu import Viommu

if TYPE_CHECKING:
    from softiommu.abi.struct import UserStruct
    from softiommu.api.ioas import Ioas
    from softiommu.api.iommufd import Iommufd
    from softiommu.api.queues import FaultQueue


class HwInfo(NamedTuple):
    """What GET_HW_INFO tells: a type with its raw structure, capability bits, and how many PASID bits."""

    type: int
    data: bytes
    capabilities: abi.HwCapabilities
    pasid_bits: int


class Device:
    """A device bound to an iommufd, by the id of its object."""

    def __init__(self, iommufd: Iommufd, id: int) -> None:
        self.iommufd, self.id = iommufd, id

    def hw_info(self, type: int | None = None, room: int = 256) -> HwInfo:
        """The hardware information of the device's IOMMU: the default type, or the one asked for (EOPNOTSUPP)."""
        buffer = ctypes.create_string_buffer(room)
        flags = 0 if type is None else int(abi.HwInfoFlags.INPUT_TYPE)
        cmd = abi.HwInfo(40, flags, self.id, room, ctypes.addressof(buffer), type or 0)
        self.iommufd.backend.call("GET_HW_INFO", abi.GET_HW_INFO, cmd)
        data = buffer.raw[: min(room, cmd.data_len)]
        return HwInfo(cmd.data_type, data, abi.HwCapabilities(cmd.out_capabilities), cmd.out_max_pasid_log2)

    def hwpt(
        self,
        parent: Ioas | Hwpt | Viommu,
        flags: int = 0,
        data: tuple[int, UserStruct] | None = None,
        faults: FaultQueue | None = None,
    ) -> Hwpt:
        """A new HWPT for the device: paging on an IOAS, nested on a nesting parent or a vIOMMU.

        `data`: a type number and its structure, for the driver. `faults`: where page faults go.
        """
        raw = ctypes.create_string_buffer(data[1].to_bytes()) if data else None
        cmd = abi.HwptAlloc(48, flags, self.id, parent.id)
        if data is not None and raw is not None:
            cmd.data_type, cmd.data_len, cmd.data_uptr = data[0], data[1].SIZE, ctypes.addressof(raw)
        if faults is not None:
            cmd.flags |= int(abi.HwptAllocFlags.FAULT_ID_VALID)
            cmd.fault_id = faults.id
        self.iommufd.backend.call("HWPT_ALLOC", abi.HWPT_ALLOC, cmd)
        return Hwpt(self.iommufd, cmd.out_hwpt_id)

    def viommu(self, type: int, parent: Hwpt, data: bytearray | None = None, flags: int = 0) -> Viommu:
        """A vIOMMU over a nesting parent. `data` is the driver's structure, which it may change."""
        return Viommu.new(self, type, parent.id, data, flags)


class MockDevice(Device):
    """A device of the mock IOMMU, which the test command makes, moves and looks into."""

    def __init__(self, iommufd: Iommufd, id: int, selftest_id: int, hwpt: Hwpt) -> None:
        super().__init__(iommufd, id)
        self.selftest_id = selftest_id
        #: The automatic HWPT that it was attached to first.
        self.hwpt_at_start = hwpt

    @classmethod
    def new(cls, iommufd: Iommufd, ioas: Ioas, flags: int) -> MockDevice:
        """A new device attached to `ioas`."""
        op = test.TestOp.MOCK_DOMAIN_FLAGS if flags else test.TestOp.MOCK_DOMAIN
        arg = test.MockDomainFlags(dev_flags=flags)
        answer = test.MockDomainFlags.from_bytes(run_test(iommufd, op, ioas.id, arg))
        return cls(iommufd, answer.out_idev_id, answer.out_stdev_id, Hwpt(iommufd, answer.out_hwpt_id))

    def replace(self, target: Ioas | Hwpt) -> int:
        """Move it to another HWPT or IOAS without a gap; the id of the HWPT."""
        raw = run_test(
            self.iommufd, test.TestOp.MOCK_DOMAIN_REPLACE, self.selftest_id, test.MockDomainReplace(target.id)
        )
        return test.MockDomainReplace.from_bytes(raw).pt_id

    def attach_pasid(self, pasid: int, target: Hwpt) -> None:
        """Attach a PASID."""
        run_test(self.iommufd, test.TestOp.PASID_ATTACH, self.selftest_id, test.PasidAttach(pasid, target.id))

    def detach_pasid(self, pasid: int) -> None:
        """Detach a PASID."""
        run_test(self.iommufd, test.TestOp.PASID_DETACH, self.selftest_id, test.PasidDetach(pasid))

    def fault(self, addr: int, perm: int = 1, group: int = 1, pasid: int = 0) -> None:
        """Let it report a page fault."""
        run_test(self.iommufd, test.TestOp.TRIGGER_IOPF, 0, test.TriggerIopf(self.id, pasid, group, perm, addr))

    def event(self) -> None:
        """Let it report an event to its vIOMMU."""
        run_test(self.iommufd, test.TestOp.TRIGGER_VEVENT, 0, test.TriggerVevent(self.id))

    def destroy(self) -> None:
        """Detach and unbind it."""
        self.iommufd.destroy(self.selftest_id)


def run_test(iommufd: Iommufd, op: int, id: int, arg: UserStruct) -> bytes:
    """One operation of the test command: the union's bytes after it."""
    cmd = test.TestCmd(72, op, id, 0, arg.to_bytes().ljust(48, b"\0")[:48])
    iommufd.backend.call(f"TEST_CMD {test.TestOp(op).name}", test.TEST_CMD, cmd)
    return cmd.payload
