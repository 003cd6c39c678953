"""A VMM and its guest on a virtual SMMUv3: the guest's registers, stream table, contexts, commands and tables."""

import softiommu
from drivers.smmuv3_guest import TABLE, context
from softiommu.abi.iommufd import HwptAllocFlags, ViommuType
from softiommu.drivers.driver import Prot
from softiommu.hardware.smmuv3.commands import Leaf1, Op, Range1, Signal, Stream0, Sync0, Sync1
from softiommu.hardware.smmuv3.events import EVENT_BYTES
from softiommu.hardware.smmuv3.registers import (
    Cons,
    Cr0,
    Gerror,
    IrqCtrl,
    QueueBase,
    Registers,
    Ring,
    StrtabBase,
    StrtabBaseCfg,
)
from softiommu.hardware.smmuv3.tables import CD_BYTES, STE_BYTES, Config, Eats, L1Std, S1Dss, Ste0, Ste1
from softiommu.pagetable.engine import PageTable
from softiommu.vmm.capabilities import probe
from softiommu.vmm.offers import smmuv3_offer
from softiommu.vmm.smmuv3 import VirtualSmmu
from softiommu.vmm.smmuv3_viommu import OnViommu
from vmm.rig import Edu, PciTest, Ram, assert_nothing_left

RW = (Prot.READ | Prot.WRITE).value
EDU, TEST = 0x8, 0x108
BLANK, RESULT, IOVA = 0x1000, 0x2000, 0x10000
SPLIT, SIDS_LG2 = 8, 10
QUEUE_LG2 = 6
CONTEXTS_LG2 = 3
MSI = 0x8000000


class Guest:
    """A guest's driver of the SMMU. Its stream table has two levels."""

    def __init__(self, ram, smmu):
        self.ram, self.smmu = ram, smmu
        self.streams = ram.alloc(4096)
        self.leaves = {}
        self.commands, self.events, self.status = ram.alloc(4096), ram.alloc(4096), ram.alloc(4096)
        self.contexts = {}
        self.prod = self.cons = self.syncs = 0
        self.ring = Ring(QUEUE_LG2)

    def boot(self):
        shape = StrtabBaseCfg.of(LOG2SIZE=SIDS_LG2, SPLIT=SPLIT, FMT=1)
        for register, value in (
            (Registers.STRTAB_BASE, StrtabBase.of(ADDR=self.streams >> 6)),
            (Registers.STRTAB_BASE_CFG, shape),
            (Registers.CMDQ_BASE, QueueBase.of(ADDR=self.commands >> 5, LOG2SIZE=QUEUE_LG2)),
            (Registers.EVENTQ_BASE, QueueBase.of(ADDR=self.events >> 5, LOG2SIZE=QUEUE_LG2)),
            (Registers.EVENTQ_IRQ_CFG0, MSI),
            (Registers.EVENTQ_IRQ_CFG1, 7),
            (Registers.GERROR_IRQ_CFG0, MSI),
            (Registers.GERROR_IRQ_CFG1, 8),
            (Registers.IRQ_CTRL, IrqCtrl.of(GERROR=1, EVENTQ=1)),
            (Registers.CR0, Cr0.of(CMDQEN=1, EVENTQEN=1)),
        ):
            self.write(register, value)
        assert self.submit(forget_streams()) == 0
        self.write(Registers.CR0, Cr0.of(CMDQEN=1, EVENTQEN=1, SMMUEN=1))

    def write(self, register, value):
        self.smmu.write(register.offset, register.size, int(value))

    def read(self, register):
        return register.word(self.smmu.read(register.offset, register.size))

    def submit(self, *commands):
        """Put commands in the queue, with a SYNC behind them; the error that stopped it (0: none)."""
        self.syncs += 1
        sync = Sync0.of(OPCODE=Op.SYNC, CS=Signal.IRQ, MSIDATA=self.syncs), Sync1.of(MSIADDR=self.status >> 2)
        for low, high in (*commands, sync):
            at = self.commands + 16 * self.ring.slot(self.prod)
            self.ram.write_u64(at, int(low))
            self.ram.write_u64(at + 8, int(high))
            self.prod = self.ring.next(self.prod)
        self.write(Registers.CMDQ_PROD, self.prod)
        cons = self.read(Registers.CMDQ_CONS)
        stopped = (self.read(Registers.GERROR) ^ self.read(Registers.GERRORN)) & Gerror.CMDQ_ERR.mask
        assert bool(stopped) == (self.ram.read_u32(self.status) != self.syncs)
        assert stopped or cons.RD == self.prod
        return int(cons.ERR) if stopped else 0

    def go_on(self, *, skip):
        """Acknowledge the error; the command that stopped the queue becomes a harmless one, or stays."""
        if skip:
            at = self.commands + 16 * self.ring.slot(self.read(Registers.CMDQ_CONS).RD)
            self.ram.write_u64(at, int(Sync0.of(OPCODE=Op.SYNC)))
            self.ram.write_u64(at + 8, 0)
        self.write(Registers.GERRORN, self.read(Registers.GERROR))

    def records(self):
        """The events that wait."""
        found = []
        prod = self.read(Registers.EVENTQ_PROD)
        while not self.ring.empty(prod.WR, self.cons):
            at = self.events + EVENT_BYTES * self.ring.slot(self.cons)
            found.append([self.ram.read_u64(at + 8 * number) for number in range(4)])
            self.cons = self.ring.next(self.cons)
        self.write(Registers.EVENTQ_CONS, Cons.of(RD=self.cons, OVACKFLG=prod.OVFLG))
        return found

    # Structures

    def ste_at(self, sid):
        if sid >> SPLIT not in self.leaves:
            leaf = self.ram.alloc(STE_BYTES << SPLIT, STE_BYTES << SPLIT)
            self.leaves[sid >> SPLIT] = leaf
            self.ram.write_u64(self.streams + 8 * (sid >> SPLIT), L1Std.of(SPAN=SPLIT + 1, L2PTR=leaf >> 6))
        return self.leaves[sid >> SPLIT] + STE_BYTES * (sid & (1 << SPLIT) - 1)

    def stream(self, sid, **fields):
        """An STE with stage 1; fields of words 0 and 1 may say otherwise."""
        self.contexts.setdefault(sid, self.ram.alloc(4096))
        how = {"V": 1, "CONFIG": Config.S1, "S1CONTEXTPTR": self.contexts[sid] >> 6, "S1CDMAX": CONTEXTS_LG2}
        attributes = {"S1DSS": S1Dss.SSID0, "EATS": Eats.FULL, "STRW": 0}
        for name, value in fields.items():
            (how if name in Ste0.FIELDS else attributes)[name] = value
        at = self.ste_at(sid)
        self.ram.write_u64(at + 8, Ste1.of(**attributes))
        self.ram.write_u64(at, Ste0.of(**how))

    def use(self, sid, pages, asid, ssid=0, **fields):
        """A context descriptor of a table; None: there is none."""
        words = context(pages, asid, **fields) if pages is not None else [0] * 8
        for number in range(7, -1, -1):
            self.ram.write_u64(self.contexts[sid] + CD_BYTES * ssid + 8 * number, int(words[number]))


def forget_streams():
    return Stream0.of(OPCODE=Op.CFGI_STE_RANGE), Range1.of(RANGE=31)


def forget_stream(sid, leaf=1):
    return Stream0.of(OPCODE=Op.CFGI_STE, SID=sid), Leaf1.of(LEAF=leaf)


class Vm:
    """A machine, a VMM, and a guest with both devices."""

    test_name = "pcitest0"

    def __init__(self, machine="smmuv3"):
        self.iommufd = softiommu.open(machine)
        self.ram, self.notes, self.messages = Ram(), [], []
        self.ioas = self.iommufd.ioas()
        self.ram.show(self.ioas)
        self.test_device, self.edu_device = self.iommufd.device(self.test_name), self.iommufd.device("edu0")
        self.smmu = self.make_unit()
        self.guest = Guest(self.ram, self.smmu)
        for sid, device in ((TEST, self.test_device), (EDU, self.edu_device)):
            self.smmu.plug(sid, device)
        self.test, self.edu = PciTest(self.test_device), Edu(self.edu_device)
        self.blank, self.result = self.ram.page(), self.ram.page()

    def make_unit(self):
        seen = probe(self.iommufd, self.test_device)
        self.parent = self.test_device.hwpt(self.ioas, HwptAllocFlags.ALLOC_NEST_PARENT)
        self.viommu = self.test_device.viommu(ViommuType.ARM_SMMUV3, self.parent)
        self.backing = OnViommu(self.viommu, 16, self.notes.append)
        return VirtualSmmu(self.ram, self.backing, smmuv3_offer(seen), self.heard)

    def heard(self, address, data):
        self.messages.append((address, data))

    def table(self):
        """A table with the two pages of every one."""
        pages = PageTable(self.ram, TABLE._replace(output_bits=48))
        pages.map(BLANK, self.blank, 4096, RW)
        pages.map(RESULT, self.result, 4096, RW)
        return pages

    def read_by_test(self, iova, pasid=None):
        """Eight bytes that the device reads; zeros: this address is blocked; "untouchd": every one is."""
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

    def close(self):
        self.smmu.close()
        assert_nothing_left(self.iommufd)
