"""A VMM with one guest behind a virtual VT-d: the guest's page table, its device's DMA, an unmap, a page fault.

Everything is in this process: the machine (an Intel server whose IOMMU nests), the VMM, and a guest of a few lines.
With the PCI address of a test device (1234:11e9) as its argument, the VMM uses the device nodes that are there.
"""

import sys
from typing import Any

import softiommu
from softiommu.abi.iommufd import HwptAllocFlags
from softiommu.hardware.vtd import commands as vtd, tables
from softiommu.hardware.vtd.events import PageRequest0, PageRequest1
from softiommu.hardware.vtd.registers import Gcmd, Iqa, PagePointer, Pqa, QueuePointer, Registers, Rtaddr, Ttm
from softiommu.registers import Register
from softiommu.vmm.capabilities import probe
from softiommu.vmm.offers import vtd_offer
from softiommu.vmm.ram import GuestRam
from softiommu.vmm.vtd import VirtualVtd

RAM = 0x4000_0000
#: The device's name in the guest: bus 0, device 4.
SID = 0x20
DOMAIN = 1
BUFFER = 0x7000_0000_0000
PAGE = 4096


class Guest:
    """Its kernel: it knows its RAM, and the registers of its IOMMU. Pages are given once, from the start of RAM."""

    def __init__(self, ram: GuestRam, iommu: VirtualVtd) -> None:
        self.ram, self.iommu = ram, iommu
        self.next = RAM
        self.root, self.queue, self.done, self.requests, self.table = (self.page() for _ in range(5))
        self.tail = 0

    def page(self) -> int:
        """A page of zeros."""
        self.next += PAGE
        return self.next - PAGE

    def write(self, register: Register[Any], value: int) -> None:
        """Write a register of the IOMMU."""
        self.iommu.write(register.offset, register.size, int(value))

    def boot(self) -> None:
        """Root, context and PASID table for one device; then turn the IOMMU on."""
        contexts, directory, pasids = self.page(), self.page(), self.page()
        ram = self.ram
        ram.write_u64(pasids + 16, tables.Pasid2.of(FSPTPTR=self.table >> 12))
        ram.write_u64(pasids + 8, tables.Pasid1.of(DID=DOMAIN))
        ram.write_u64(pasids, tables.Pasid0.of(P=1, PGTT=tables.Pgtt.FIRST))
        ram.write_u64(directory, tables.PasidDirectoryEntry.of(P=1, SMPTBLPTR=pasids >> 12))
        entry = tables.ScalableContext0.of(P=1, DTE=1, PRE=1, PASIDDIRPTR=directory >> 12)
        ram.write_u64(contexts + 32 * SID, entry)
        ram.write_u64(self.root, tables.ScalableRootHalf.of(P=1, CTP=contexts >> 12))
        self.write(Registers.RTADDR, Rtaddr.of(TTM=Ttm.SCALABLE, RTA=self.root >> 12))
        self.write(Registers.IQA, Iqa.of(IQA=self.queue >> 12, DW=1))
        self.write(Registers.PQA, Pqa.of(PQA=self.requests >> 12))
        self.write(Registers.GCMD, Gcmd.of(SRTP=1))
        self.write(Registers.GCMD, Gcmd.of(QIE=1))
        self.write(Registers.GCMD, Gcmd.of(QIE=1, TE=1))

    def set_entry(self, iova: int, entry: int) -> None:
        """Write the last entry of the four-level walk for an address; tables are made where they are missing."""
        table = self.table
        for shift in (39, 30, 21):
            at = table + 8 * (iova >> shift & 511)
            if not self.ram.read_u64(at) & 1:
                self.ram.write_u64(at, self.page() | 0b111)
            table = self.ram.read_u64(at) & ~0xFFF
        self.ram.write_u64(table + 8 * (iova >> 12 & 511), entry)

    def submit(self, *descriptors: tuple[int, int]) -> None:
        """Put descriptors in the queue, and wait for them."""
        wait = vtd.Wait0.of(TYPE=vtd.Type.WAIT, SW=1, DATA=1), vtd.Wait1.of(ADDR=self.done >> 2)
        self.ram.write_u32(self.done, 0)
        for low, high in (*descriptors, wait):
            self.ram.write_u64(self.queue + self.tail, low)
            self.ram.write_u64(self.queue + self.tail + 8, high)
            self.tail = (self.tail + 32) % PAGE
        self.write(Registers.IQT, QueuePointer.of(OFFSET=self.tail >> 4))
        assert self.ram.read_u32(self.done) == 1

    def forget(self, iova: int) -> None:
        """Invalidate a page."""
        low = vtd.PasidIotlb0.of(TYPE=vtd.Type.PASID_IOTLB, G=3, DID=DOMAIN)
        self.submit((low, vtd.Range.of(ADDR=iova >> 12)))

    def page_fault(self, data: int) -> None:
        """What its interrupt handler does: give the page that the device asks for."""
        low, high = PageRequest0(self.ram.read_u64(self.requests)), PageRequest1(self.ram.read_u64(self.requests + 8))
        print(f"the guest's page request queue: device {low.RID:#x} wants {high.ADDR << 12:#x}; it is mapped again")
        self.set_entry(high.ADDR << 12, data | 0b111)
        answer = vtd.PageGroupResponse0.of(TYPE=vtd.Type.PAGE_GROUP_RESPONSE, RID=low.RID)
        self.write(Registers.PQH, PagePointer.of(OFFSET=1))
        self.submit((answer, vtd.PageGroupResponse1.of(LPIG=1, PRGI=high.PRGI)))


def copy(device: softiommu.VfioDevice, iova: int, command: int) -> bool:
    """Let the device move its 4 KiB from (3) or to (1) memory; whether it has finished."""
    device.write(0, 0, 8, iova)
    device.write(0, 8, 4, command)
    return not device.read(0, 8, 4) & 1


def main() -> None:
    """The VMM, and what the guest does in it."""
    address = sys.argv[1] if len(sys.argv) > 1 else None
    iommufd = softiommu.open_kernel() if address else softiommu.open("vtd-nested")
    device = iommufd.device(address or "test0")

    offer = vtd_offer(probe(iommufd, device))
    print(f"the host's IOMMU allows this to be offered: {offer.ecap!r}")
    ram = GuestRam(RAM, 2 << 20)
    ioas = iommufd.ioas()
    ram.show(ioas)
    parent = device.hwpt(ioas, HwptAllocFlags.ALLOC_NEST_PARENT | HwptAllocFlags.ALLOC_PASID)
    unit = VirtualVtd(ram, parent, offer, faults=iommufd.fault_queue())
    unit.plug(SID, device)
    device.enable()

    guest = Guest(ram, unit)
    data, other = guest.page(), guest.page()
    ram.write(data, b"hello, guest")
    guest.set_entry(BUFFER, data | 0b111)
    guest.set_entry(BUFFER + PAGE, other | 0b111)
    guest.boot()
    copy(device, BUFFER, 3)
    copy(device, BUFFER + PAGE, 1)
    print(f"the device read at {BUFFER:#x} and wrote {ram.read(other, 12)!r} one page behind it")

    guest.set_entry(BUFFER, 0)
    print(f"unmapped, not invalidated: the device still reads there: {copy(device, BUFFER, 3)}")
    guest.forget(BUFFER)
    print(f"invalidated: the device goes on without asking: {copy(device, BUFFER, 3)}")
    unit.service()
    guest.page_fault(data)
    print(f"the device has finished: {not device.read(0, 8, 4) & 1}")
    unit.close()
    iommufd.close()


if __name__ == "__main__":
    main()
