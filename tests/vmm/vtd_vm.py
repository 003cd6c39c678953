"""A VMM and its guest on a virtual VT-d: the guest's registers, structures, queue and tables."""

import softiommu
from softiommu.abi.iommufd import HwptAllocFlags
from softiommu.drivers.driver import Prot
from softiommu.hardware.vtd.commands import Context, Iotlb0, PasidCache0, PasidIotlb0, Range, Type, Wait0, Wait1
from softiommu.hardware.vtd.registers import EventControl, Fsts, Gcmd, Iqa, Pqa, Registers, Rtaddr, Ttm
from softiommu.hardware.vtd.tables import (
    ContextHigh,
    ContextLow,
    Pasid0,
    Pasid1,
    Pasid2,
    PasidDirectoryEntry,
    Pgtt,
    RootEntry,
    ScalableContext0,
    ScalableContext1,
    ScalableRootHalf,
)
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.vmm.capabilities import probe
from softiommu.vmm.offers import vtd_offer
from softiommu.vmm.vtd import VirtualVtd
from vmm.rig import Edu, PciTest, Ram, assert_nothing_left

RW = (Prot.READ | Prot.WRITE).value
EDU, TEST = 0x10, 0x20
#: In every table: a page of zeros to read first, and one for what a device read.
BLANK, RESULT = 0x1000, 0x2000
IOVA = 0x10000
QUEUE_BYTES = 4096


class Guest:
    """A guest's driver of the unit."""

    def __init__(self, ram, unit):
        self.ram, self.unit = ram, unit
        self.root, self.contexts = ram.alloc(4096), ram.alloc(4096)
        self.queue, self.status, self.requests = ram.alloc(QUEUE_BYTES), ram.alloc(4096), ram.alloc(4096)
        self.directories = {}
        self.tail = self.waits = 0
        ram.write_u64(self.root, ScalableRootHalf.of(P=1, CTP=self.contexts >> 12))

    def boot(self, mode=Ttm.SCALABLE):
        """Set the unit up, and turn translation on."""
        self.write(Registers.RTADDR, Rtaddr.of(TTM=mode, RTA=self.root >> 12))
        self.command(SRTP=1)
        self.write(Registers.IQA, Iqa.of(IQA=self.queue >> 12, DW=1))
        self.write(Registers.PQA, Pqa.of(PQA=self.requests >> 12))
        for control in (Registers.FECTL, Registers.IECTL, Registers.PECTL):
            self.write(control, EventControl(0))
        self.command(QIE=1)
        self.command(TE=1)

    def write(self, register, value):
        self.unit.write(register.offset, register.size, int(value))

    def read(self, register):
        return register.word(self.unit.read(register.offset, register.size))

    def command(self, **bits):
        """Give a command; levels that are on stay on."""
        status = self.read(Registers.GSTS) & ~(Gcmd.SRTP.mask | Gcmd.SIRTP.mask)
        self.write(Registers.GCMD, Gcmd(status).replace(**bits))

    def submit(self, *descriptors):
        """Put descriptors in the queue, with a wait behind them; whether it was reached."""
        self.waits += 1
        wait = Wait0.of(TYPE=Type.WAIT, SW=1, DATA=self.waits), Wait1.of(ADDR=self.status >> 2)
        for low, high in (*descriptors, wait):
            for number, word in enumerate((low, high, 0, 0)):
                self.ram.write_u64(self.queue + self.tail + 8 * number, int(word))
            self.tail = (self.tail + 32) % QUEUE_BYTES
        self.write(Registers.IQT, self.tail)
        return self.ram.read_u32(self.status) == self.waits

    # Structures

    def context(self, sid, **fields):
        """A context entry with an empty directory of 8,192 PASIDs."""
        self.directories.setdefault(sid, self.ram.alloc(4096))
        at = self.contexts + 32 * (sid & 0x7F)
        entry = ScalableContext0.of(P=1, PASIDE=1, PDTS=0, PASIDDIRPTR=self.directories[sid] >> 12)
        self.ram.write_u64(at + 8, ScalableContext1(0))
        self.ram.write_u64(at, entry.replace(**fields))

    def entry_at(self, sid, pasid=None):
        """Where a PASID's entry is."""
        at = self.directories[sid] + 8 * ((pasid or 0) >> 6)
        leaf = PasidDirectoryEntry(self.ram.read_u64(at))
        if not leaf.P:
            leaf = PasidDirectoryEntry.of(P=1, SMPTBLPTR=self.ram.alloc(4096) >> 12)
            self.ram.write_u64(at, leaf)
        return (leaf.SMPTBLPTR << 12) + 64 * ((pasid or 0) & 63)

    def first(self, sid, pages, did, pasid=None, **fields):
        """A PASID entry with a first-stage table."""
        at = self.entry_at(sid, pasid)
        self.ram.write_u64(at + 16, Pasid2.of(FSPTPTR=pages.root >> 12, **fields))
        self.ram.write_u64(at + 8, Pasid1.of(DID=did))
        self.ram.write_u64(at, Pasid0.of(P=1, PGTT=Pgtt.FIRST))

    def pass_through(self, sid, did, pasid=None):
        at = self.entry_at(sid, pasid)
        self.ram.write_u64(at + 8, Pasid1.of(DID=did))
        self.ram.write_u64(at, Pasid0.of(P=1, PGTT=Pgtt.PASS_THROUGH))

    def absent(self, sid, pasid=None):
        self.ram.write_u64(self.entry_at(sid, pasid), 0)

    def second(self, sid, pages, did, aw):
        """A PASID entry with a second-stage table."""
        at = self.entry_at(sid)
        self.ram.write_u64(at + 8, Pasid1.of(DID=did))
        self.ram.write_u64(at, Pasid0.of(P=1, PGTT=Pgtt.SECOND, AW=aw, SSPTPTR=pages.root >> 12))

    def legacy(self, sid, pages, did, aw, **fields):
        """A context entry of legacy mode, in a table of its own."""
        table = self.ram.alloc(4096)
        self.ram.write_u64(self.root, RootEntry.of(P=1, CTP=table >> 12))
        self.ram.write_u64(table + 16 * sid + 8, ContextHigh.of(AW=aw, DID=did))
        self.ram.write_u64(table + 16 * sid, ContextLow.of(P=1, SSPTPTR=pages.root >> 12, **fields))

    def table(self, variant="x86-64-4level"):
        return PageTable(self.ram, VARIANTS[variant])


def forget_context(sid=None):
    return Context.of(TYPE=Type.CONTEXT, G=1 if sid is None else 3, SID=sid or 0), 0


def forget_pasid(did, pasid=None):
    return PasidCache0.of(TYPE=Type.PASID_CACHE, G=1, DID=did, PASID=pasid or 0), 0


def forget_pages(did, pasid=None, iova=None, am=0, leaf=0):
    low = PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=2, DID=did, PASID=pasid or 0)
    return (low, 0) if iova is None else (low.replace(G=3), Range.of(ADDR=iova >> 12, AM=am, IH=leaf))


def forget_domain(did, iova=None):
    low = Iotlb0.of(TYPE=Type.IOTLB, G=2, DID=did)
    return (low, 0) if iova is None else (low.replace(G=3), Range.of(ADDR=iova >> 12))


class Vm:
    """A machine, a VMM, and a guest with both devices."""

    def __init__(self, machine="vtd-nested"):
        self.iommufd = softiommu.open(machine)
        self.ram, self.notes, self.interrupts = Ram(), [], []
        self.ioas = self.iommufd.ioas()
        self.ram.show(self.ioas)
        self.test_device, self.edu_device = self.iommufd.device("test0"), self.iommufd.device("edu0")
        self.unit = self.make_unit()
        self.guest = Guest(self.ram, self.unit)
        for sid, device in ((TEST, self.test_device), (EDU, self.edu_device)):
            self.unit.plug(sid, device)
        self.test, self.edu = PciTest(self.test_device), Edu(self.edu_device)
        self.blank, self.result = self.ram.page(), self.ram.page()

    def make_unit(self):
        seen = probe(self.iommufd, self.test_device)
        flags = HwptAllocFlags.ALLOC_NEST_PARENT | HwptAllocFlags.ALLOC_PASID
        self.parent = self.test_device.hwpt(self.ioas, flags)
        self.faults = self.iommufd.fault_queue()
        return VirtualVtd(
            self.ram,
            self.parent,
            vtd_offer(seen),
            lambda address, data: self.interrupts.append((address, data)),
            faults=self.faults,
            note=self.notes.append,
        )

    def table(self, variant="x86-64-4level"):
        """A table with the two pages of every one."""
        pages = self.guest.table(variant)
        pages.map(BLANK, self.blank, 4096, RW)
        pages.map(RESULT, self.result, 4096, RW)
        return pages

    def read_by_test(self, iova, pasid=None):
        """Eight bytes that the device reads; zeros: it is blocked."""
        self.ram.write(self.result, b"untouchd")
        for at, command in ((BLANK, 3), (iova, 3), (RESULT, 1)):
            self.test.run(at, command, pasid)
            assert not self.test.busy
        return self.ram.read(self.result, 8)

    def read_by_edu(self, iova):
        self.ram.write(self.result, b"untouchd")
        self.edu.copy(BLANK, RESULT)
        self.edu.copy(iova, RESULT)
        return self.ram.read(self.result, 8)

    def status(self):
        return self.guest.read(Registers.FSTS) & ~Fsts.FRI.mask

    def close(self):
        self.unit.close()
        assert_nothing_left(self.iommufd)
