"""A RISC-V IOMMU with its queues on, and directories and tables written as a driver writes them."""

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.riscv import events, tables
from softiommu.hardware.riscv.events import Cause
from softiommu.hardware.riscv.model import RiscvIommu
from softiommu.hardware.riscv.presets import FULL
from softiommu.hardware.riscv.registers import Ddtp, DdtpMode, QueueBase, Registers
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable

SID, GSCID, PSCID = 0x4A321, 9, 0x5_0007
CQCSR, FQCSR, PQCSR = 0x48, 0x4C, 0x50
MODES = {"riscv-sv39": 8, "riscv-sv48": 9, "riscv-sv57": 10, "riscv-sv39x4": 8, "riscv-sv48x4": 9, "riscv-sv57x4": 10}


class Rig:
    """`entries` of each queue."""

    def __init__(self, capabilities=FULL, entries=128, mode=DdtpMode.LEVEL3, **more):
        self.memory = PhysicalMemory(64 << 20)
        self.interrupts = []
        more.setdefault("interrupt", lambda *msi: self.interrupts.append(msi))
        self.iommu = RiscvIommu(self.memory, capabilities, **more)
        self.entries = entries
        self.queues = [self.memory.alloc(32 * entries, 32 * entries) for _ in range(3)]
        for base, csr, queue in zip((0x18, 0x28, 0x38), (CQCSR, FQCSR, PQCSR), self.queues, strict=True):
            self.write(base, 8, QueueBase.of(PPN=queue >> 12, LOG2SZ_1=entries.bit_length() - 2))
            self.write(csr, 4, 3)
        self.root = self.memory.alloc(4096)
        self.write(0x10, 8, Ddtp.of(MODE=mode, PPN=self.root >> 12))

    def write(self, offset, width, value):
        self.iommu.write(offset, width, int(value))

    def read(self, offset, width=4):
        return self.iommu.read(offset, width)

    # Queues

    def submit(self, low, high=0):
        """A command; -> the bits of cqcsr from 8 to 11."""
        tail = self.read(Registers.CQT.offset)
        self.memory.write_u64(self.queues[0] + 16 * tail, int(low))
        self.memory.write_u64(self.queues[0] + 16 * tail + 8, int(high))
        self.write(Registers.CQT.offset, 4, (tail + 1) % self.entries)
        return self.read(CQCSR) & 0xF00

    def faults(self):
        """The fault records that came, as (word 0, iotval, iotval2)."""
        head, tail = self.read(Registers.FQH.offset), self.read(Registers.FQT.offset)
        found = []
        while head != tail:
            words = [self.memory.read_u64(self.queues[1] + 32 * head + 8 * n) for n in range(4)]
            assert words[1] == 0
            found.append((events.Fault0(words[0]), words[2], words[3]))
            head = (head + 1) % self.entries
        self.write(Registers.FQH.offset, 4, head)
        return found

    # Structures

    def device(self, words, sid=SID):
        """Write a device context; -> its address."""
        extended = bool(self.iommu.registers.CAPABILITIES.MSI_FLAT)
        places = tables.EXTENDED_DDI if extended else tables.BASE_DDI
        table = self.root
        for level in range(self.read(0x10, 8) % 16 - 2, 0, -1):
            table = self.linked(table + 8 * tables.directory_index(level, sid, places))
        at = table + (64 if extended else 32) * tables.directory_index(0, sid, places)
        for number, word in enumerate(words):
            self.memory.write_u64(at + 8 * number, int(word))
        return at

    def linked(self, at):
        entry = tables.DirectoryEntry(self.memory.read_u64(at))
        if not entry.V:
            entry = tables.DirectoryEntry.of(V=1, PPN=self.memory.alloc(4096) >> 12)
            self.memory.write_u64(at, entry)
        return entry.PPN << 12

    def processes(self, mode=tables.PdtMode.PD20):
        """An empty process directory; -> the word that leads to it."""
        self.pdt, self.pdt_levels = self.memory.alloc(4096), int(mode)
        return tables.Pdtp.of(PPN=self.pdt >> 12, MODE=mode)

    def process(self, pid, words):
        """Write a process context; -> its address."""
        table = self.pdt
        for level in range(self.pdt_levels - 1, 0, -1):
            table = self.linked(table + 8 * tables.directory_index(level, pid, tables.PDI))
        at = table + 16 * tables.directory_index(0, pid, tables.PDI)
        self.memory.write_u64(at, int(words[0]))
        self.memory.write_u64(at + 8, int(words[1]))
        return at

    def pages(self, name, option=0):
        table = formats.VARIANTS[name]
        made = PageTable(self.memory, table._replace(option=table.option | option), compiled=False)
        made.mode = MODES[name]
        return made

    # Outcomes

    def pa(self, iova, want=1, pasid=None, privileged=False, sid=SID):
        """The address, or the cause of the fault."""
        return outcome(lambda: self.iommu.translate(sid, iova, want, pasid, privileged).pa)


def outcome(call):
    try:
        return call()
    except TranslationFaultError as fault:
        return Cause(fault.reason)


def satp(pages):
    return tables.Iosatp.of(PPN=pages.root >> 12, MODE=pages.mode)


def hgatp(pages, gscid=GSCID):
    return tables.Iohgatp.of(PPN=pages.root >> 12, MODE=pages.mode, GSCID=gscid)


def context(first=None, second=None, pscid=PSCID, msi=(0, 0, 0), **tc):
    """The words of a device context in the extended format; `first` may be any word."""
    fsc = first if isinstance(first, int) else satp(first) if first is not None else 0
    return [
        tables.Tc.of(V=1, **tc),
        hgatp(second) if second is not None else 0,
        tables.DeviceTa.of(PSCID=pscid),
        fsc,
        *msi,
        0,
    ]
