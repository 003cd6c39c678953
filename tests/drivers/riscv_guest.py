"""A guest of a RISC-V IOMMU: its first stages, its directory of processes, and its commands."""

from drivers.nested_host import PAGE, Host
from softiommu.abi.riscv_extension import HWPT_DATA, INVALIDATE_DATA, VIOMMU, HwptRiscv, RiscvCommand
from softiommu.drivers.driver import Prot
from softiommu.drivers.riscv.nested import GuestTa, GuestTc
from softiommu.hardware.riscv.commands import Ats0, Command, Inval, Iodir0, Iotinval0, Iotinval1
from softiommu.hardware.riscv.tables import FirstMode, Iosatp, PdtMode, Pdtp, ProcessTa
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS

RW = (Prot.READ | Prot.WRITE).value
#: The guest's name for the device.
NAME = 0x123456
FORMATS = {FirstMode.SV39: "riscv-sv39", FirstMode.SV48: "riscv-sv48", FirstMode.SV57: "riscv-sv57"}


class Guest(Host):
    """A guest. It has a name for the device where it has a vIOMMU."""

    def __init__(self, machine="riscv", viommu=True, flags=0):
        super().__init__(machine, VIOMMU if viommu else None, flags)
        if viommu:
            self.vdevice = self.viommu.vdevice(self.device, NAME)
        self.directory = self.memory.alloc(PAGE)

    def table(self, mode=FirstMode.SV39):
        """An empty first stage."""
        return PageTable(self.memory, VARIANTS[FORMATS[mode]])

    def process(self, pid, table, pscid, mode=FirstMode.SV39, **attributes):
        """Write a process context; without a table it is not valid."""
        at = self.directory + 16 * pid
        self.memory.write_u64(at, 0)
        if table is not None:
            self.memory.write_u64(at + 8, Iosatp.of(MODE=mode, PPN=table.root >> 12))
            self.memory.write_u64(at, ProcessTa.of(V=1, PSCID=pscid, **attributes))

    def context(self, table=None, pscid=1, mode=FirstMode.SV39, **tc):
        """A device context with a first stage; without a table, with the guest's directory."""
        if table is None:
            fsc, how = Pdtp.of(MODE=PdtMode.PD8, PPN=self.directory >> 12), GuestTc.of(V=1, PDTV=1)
        else:
            fsc, how = Iosatp.of(MODE=mode, PPN=table.root >> 12), GuestTc.of(V=1)
        return HwptRiscv(how.replace(**tc), GuestTa.of(PSCID=pscid), fsc)

    def nest(self, context, flags=0, parent=None):
        """A nested HWPT of a context, on the vIOMMU if there is one."""
        return self.device.hwpt(parent or self.viommu or self.parent, flags, (HWPT_DATA, context))

    def tell(self, *commands, target=None):
        """Commands of the guest's queue."""
        return (target or self.viommu).invalidate(
            INVALIDATE_DATA, [RiscvCommand(int(low), int(high)) for low, high in commands]
        )


def vma(iova=None, pscid=None, **more):
    """IOTINVAL.VMA."""
    low = Iotinval0.of(COMMAND=Command.IOTINVAL_VMA, **more)
    if pscid is not None:
        low = low.replace(PSCV=1, PSCID=pscid)
    if iova is None:
        return low, 0
    return low.replace(AV=1), Iotinval1.of(PAGE=iova >> 12)


def pdt(pid, name=NAME, **more):
    """IODIR.INVAL_PDT."""
    return Iodir0.of(COMMAND=Command.IODIR_INVAL_PDT, DV=1, DID=name, PID=pid).replace(**more), 0


def ats(name=NAME, **more):
    """ATS.INVAL of all addresses."""
    low = Ats0.of(COMMAND=Command.ATS_INVAL, RID=name & 0xFFFF, DSEG=name >> 16, DSV=1).replace(**more)
    return low, Inval.of(S=1, PAGE=(1 << 51) - 1)
