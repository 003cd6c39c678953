"""A VMM with one guest behind a virtual SMMUv3: the guest's page table, its device's DMA, an unmap, an event.

Everything is in this process: the machine (an Arm server whose SMMU nests), the VMM, and a guest of a few lines.
With the PCI address of a test device (1234:11e9) as its argument, the VMM uses the device nodes that are there.
"""

import sys
from typing import Any

import softiommu
from softiommu.abi.iommufd import HwptAllocFlags, ViommuType
from softiommu.hardware.smmuv3 import commands as smmu
from softiommu.hardware.smmuv3.events import Event0
from softiommu.hardware.smmuv3.registers import SIZES, CmdqProd, Cr0, QueueBase, Registers, StrtabBase, StrtabBaseCfg
from softiommu.hardware.smmuv3.tables import STE_BYTES, Cd0, Cd1, Cd3, Config, Ste0, Ste1
from softiommu.registers import Register
from softiommu.vmm.capabilities import probe
from softiommu.vmm.offers import smmuv3_offer
from softiommu.vmm.ram import GuestRam
from softiommu.vmm.smmuv3 import VirtualSmmu
from softiommu.vmm.smmuv3_viommu import OnViommu

RAM = 0x4000_0000
#: The device's name in the guest.
SID = 0x20
ASID = 1
BUFFER = 0x7000_0000_0000
PAGE = 4096
#: log2 of the entries of queues, and of the stream table (which then fits a page).
QUEUE_LG2, STREAMS_LG2 = 6, 6
#: A descriptor: valid, accessed, inner shareable, unprivileged.
LEAF, TABLE = 0x743, 0b11


class Guest:
    """Its kernel: it knows its RAM, and the registers of its SMMU. Pages are given once, from the start of RAM."""

    def __init__(self, ram: GuestRam, iommu: VirtualSmmu) -> None:
        self.ram, self.iommu = ram, iommu
        self.next = RAM
        self.streams, self.queue, self.events, self.table = (self.page() for _ in range(4))
        self.prod = 0

    def page(self) -> int:
        """A page of zeros."""
        self.next += PAGE
        return self.next - PAGE

    def write(self, register: Register[Any], value: int) -> None:
        """Write a register of the SMMU."""
        self.iommu.write(register.offset, register.size, int(value))

    def boot(self) -> None:
        """A context and a stream table entry for one device; then turn the SMMU on."""
        ram, context, ste = self.ram, self.page(), self.streams + STE_BYTES * SID
        low = Cd0.of(T0SZ=16, EPD1=1, V=1, IPS=SIZES.index(44), AA64=1, R=1, A=1, ASET=1, ASID=ASID)
        for number, word in enumerate((low, Cd1.of(TTB0=self.table >> 4), 0, Cd3.of(MAIR0=0xFF))):
            ram.write_u64(context + 8 * number, word)
        ram.write_u64(ste + 8, Ste1.of())
        ram.write_u64(ste, Ste0.of(V=1, CONFIG=Config.S1, S1CONTEXTPTR=context >> 6))
        self.write(Registers.STRTAB_BASE, StrtabBase.of(ADDR=self.streams >> 6))
        self.write(Registers.STRTAB_BASE_CFG, StrtabBaseCfg.of(LOG2SIZE=STREAMS_LG2))
        self.write(Registers.CMDQ_BASE, QueueBase.of(ADDR=self.queue >> 5, LOG2SIZE=QUEUE_LG2))
        self.write(Registers.EVENTQ_BASE, QueueBase.of(ADDR=self.events >> 5, LOG2SIZE=QUEUE_LG2))
        self.write(Registers.CR0, Cr0.of(CMDQEN=1, EVENTQEN=1))
        self.submit((smmu.Stream0.of(OPCODE=smmu.Op.CFGI_STE_RANGE), smmu.Range1.of(RANGE=31)))
        self.write(Registers.CR0, Cr0.of(CMDQEN=1, EVENTQEN=1, SMMUEN=1))

    def set_entry(self, iova: int, entry: int) -> None:
        """Write the last descriptor of the four-level walk for an address; tables are made where they are missing."""
        table = self.table
        for shift in (39, 30, 21):
            at = table + 8 * (iova >> shift & 511)
            if not self.ram.read_u64(at) & 1:
                self.ram.write_u64(at, self.page() | TABLE)
            table = self.ram.read_u64(at) & ~0xFFF
        self.ram.write_u64(table + 8 * (iova >> 12 & 511), entry)

    def submit(self, *commands: tuple[int, int]) -> None:
        """Put commands in the queue, and a SYNC behind them."""
        for low, high in (*commands, (smmu.Sync0.of(OPCODE=smmu.Op.SYNC), 0)):
            at = self.queue + smmu.COMMAND_BYTES * (self.prod & (1 << QUEUE_LG2) - 1)
            self.ram.write_u64(at, low)
            self.ram.write_u64(at + 8, high)
            self.prod = self.prod + 1 & (2 << QUEUE_LG2) - 1
        self.write(Registers.CMDQ_PROD, CmdqProd.of(WR=self.prod))
        assert self.iommu.read(Registers.CMDQ_CONS.offset, 4) == self.prod

    def forget(self, iova: int) -> None:
        """Invalidate a page."""
        low = smmu.Va0.of(OPCODE=smmu.Op.TLBI_NH_VA, ASID=ASID)
        self.submit((low, smmu.Address1.of(ADDR=iova >> 12)))

    def event(self) -> str:
        """The first event in its queue, for people."""
        words = [self.ram.read_u64(self.events + 8 * number) for number in range(4)]
        first = Event0(words[0])
        return f"{first.TYPE.name} at {words[2]:#x} of stream {first.SID:#x}"


def copy(device: softiommu.VfioDevice, iova: int, command: int) -> None:
    """Let the device move its 4 KiB from (3) or to (1) memory."""
    device.write(0, 0, 8, iova)
    device.write(0, 8, 4, command)


def main() -> None:
    """The VMM, and what the guest does in it."""
    address = sys.argv[1] if len(sys.argv) > 1 else None
    iommufd = softiommu.open_kernel() if address else softiommu.open("smmuv3")
    device = iommufd.device(address or "pcitest0")

    offer = smmuv3_offer(probe(iommufd, device))
    print(f"the host's IOMMU allows this to be offered: {offer.idr0!r}")
    ram = GuestRam(RAM, 2 << 20)
    ioas = iommufd.ioas()
    ram.show(ioas)
    parent = device.hwpt(ioas, HwptAllocFlags.ALLOC_NEST_PARENT)
    unit = VirtualSmmu(ram, OnViommu(device.viommu(ViommuType.ARM_SMMUV3, parent)), offer)
    unit.plug(SID, device)
    device.enable()

    guest = Guest(ram, unit)
    data, other, another = guest.page(), guest.page(), guest.page()
    ram.write(data, b"hello, guest")
    guest.set_entry(BUFFER, data | LEAF)
    guest.set_entry(BUFFER + PAGE, other | LEAF)
    guest.boot()
    copy(device, BUFFER, 3)
    copy(device, BUFFER + PAGE, 1)
    print(f"the device read at {BUFFER:#x} and wrote {ram.read(other, 12)!r} one page behind it")

    guest.set_entry(BUFFER + PAGE, 0)
    guest.set_entry(BUFFER + 2 * PAGE, another | LEAF)
    ram.write(other, bytes(12))
    copy(device, BUFFER + PAGE, 1)
    print(f"unmapped, not invalidated: the device still writes there: {ram.read(other, 12)!r}")
    guest.forget(BUFFER + PAGE)
    ram.write(other, bytes(12))
    copy(device, BUFFER + PAGE, 1)
    print(f"invalidated: the device is stopped, and the page stays as it is: {ram.read(other, 12) == bytes(12)}")
    unit.service()
    print(f"the guest's event queue: {guest.event()}")
    copy(device, BUFFER + 2 * PAGE, 1)
    print(f"other pages are as before: {ram.read(another, 12)!r}")
    unit.close()
    iommufd.close()


if __name__ == "__main__":
    main()
