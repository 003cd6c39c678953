"""A complete guest of a RISC-V IOMMU: a first stage, and a directory of processes, over the host's second stage."""

from errno import EIO

import pytest

from nesting.whole_guest import IOVA, PAGE, RW, TARGET, Vm, WholeGuest
from softiommu.abi.riscv_extension import (
    HW_INFO,
    HWPT_DATA,
    INVALIDATE_DATA,
    VIOMMU,
    HwInfoRiscv,
    HwptRiscv,
    RiscvCommand,
)
from softiommu.hardware.riscv.commands import Command, Iodir0, Iofence0, Iotinval0, Iotinval1
from softiommu.hardware.riscv.registers import Capabilities
from softiommu.hardware.riscv.tables import DeviceTa, FirstMode, Iosatp, PdtMode, Pdtp, ProcessTa, Tc

PSCID = 5


class RiscvVm(Vm):
    """The guest."""

    MACHINE, VIOMMU, TABLE = "riscv", VIOMMU, "riscv-sv48"

    def fsc(self):
        """The table as a first stage."""
        return Iosatp.of(MODE=FirstMode.SV48, PPN=self.table.root >> 12)

    def nest(self):
        """A device context without processes."""
        context = HwptRiscv(Tc.of(V=1, SADE=1), DeviceTa.of(PSCID=PSCID), self.fsc())
        return self.device.hwpt(self.viommu, 0, (HWPT_DATA, context))

    def command(self, low, high=0):
        """A command of the guest's queue."""
        return self.viommu.invalidate(INVALIDATE_DATA, [RiscvCommand(int(low), int(high))])

    def forget(self, iova):
        """What a guest does when a page has gone."""
        low = Iotinval0.of(COMMAND=Command.IOTINVAL_VMA, PSCV=1, PSCID=PSCID, AV=1)
        assert self.command(low, Iotinval1.of(PAGE=iova >> 12)) == 1


class TestRiscvGuest(WholeGuest):
    """What every guest does, and what only this does."""

    VM = RiscvVm

    def test_a_guest_learns_what_its_iommu_can_do(self, vm):
        info = HwInfoRiscv.from_bytes(vm.device.hw_info(HW_INFO).data)
        assert Capabilities(info.capabilities).SV48

    def test_a_directory_of_processes(self, vm):
        """Requests without a process id are those of process 0."""
        source, target, directory = vm.page(b"by process zero."), vm.page(), vm.page()
        vm.table.map(IOVA, source, PAGE, RW)
        vm.table.map(TARGET, target, PAGE, RW)
        context = HwptRiscv(Tc.of(V=1, PDTV=1, DPE=1), 0, Pdtp.of(MODE=PdtMode.PD8, PPN=directory >> 12))
        nested = vm.device.hwpt(vm.viommu, 0, (HWPT_DATA, context))
        vm.device.attach(nested)
        assert vm.moved(IOVA, target) == bytes(16)
        vm.ram.write_u64(directory + 8, vm.fsc())
        vm.ram.write_u64(directory, ProcessTa.of(V=1, PSCID=PSCID))
        assert vm.moved(IOVA, target) == b"by process zero."
        vm.ram.write_u64(directory, 0)
        assert vm.moved(IOVA, target) == b"by process zero."
        assert vm.command(Iodir0.of(COMMAND=Command.IODIR_INVAL_PDT, DV=1, DID=vm.NAME)) == 1
        assert vm.moved(IOVA, target) == bytes(16)

    def test_a_command_for_the_vmm_is_not_the_hosts(self, vm):
        with pytest.raises(OSError, match=r"command 0|refused") as caught:
            vm.command(Iofence0.of(COMMAND=Command.IOFENCE_C))
        assert (caught.value.errno, caught.value.handled) == (EIO, 0)
