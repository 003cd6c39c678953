"""A VT-d unit with structures that tests write word by word, and devices that keep what they are told."""

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.vtd import presets, registers, tables
from softiommu.hardware.vtd.events import FaultHigh, FaultLow, Reason
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.registers import Gcmd, Registers
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable

SID, DID = 0x0120, 7
NOWHERE = 1 << 45


class Bench:
    """A unit with everything, its queue, and the structures of one stream, of which each has an address."""

    def __init__(self, unit=presets.FULL, ttm=registers.Ttm.SCALABLE, ram=64 << 20, **options):
        self.memory = PhysicalMemory(ram)
        self.interrupts = []
        self.unit = Unit(self.memory, *unit, interrupt=lambda *message: self.interrupts.append(message), **options)
        self.root, self.contexts, self.directory, self.pasids, self.queue = (self.memory.alloc(4096) for _ in range(5))
        self.first = PageTable(self.memory, formats.VARIANTS["x86-64-4level"])
        self.second = PageTable(self.memory, formats.VARIANTS["vtdss-48"])
        self.tail = 0
        scalable = ttm == registers.Ttm.SCALABLE
        self.step = 32 if scalable else 16
        self.context = self.contexts + (32 * (SID & 0x7F) if scalable else 16 * (SID & 0xFF))
        self.root_entry = self.root + 16 * (SID >> 8)
        self.entry = self.pasids
        self.write(Registers.IQA, self.queue | scalable << 11)
        self.write(Registers.RTADDR, registers.Rtaddr.of(TTM=ttm, RTA=self.root >> 12))
        self.command(SRTP=1)
        self.command(QIE=1)
        self.command(TE=1)
        (self._scalable if scalable else self._legacy)()

    def write(self, register, value):
        self.unit.write(register.offset, register.size, int(value))

    def read(self, register):
        return register.word(self.unit.read(register.offset, register.size))

    def command(self, **bits):
        levels = Gcmd.TE.mask | Gcmd.QIE.mask | Gcmd.IRE.mask | Gcmd.CFI.mask
        self.write(Registers.GCMD, int(self.unit.registers.GSTS) & levels | Gcmd.of(**bits))

    def set(self, at, *words):
        for number, word in enumerate(words):
            self.memory.write_u64(at + 8 * number, int(word))

    def change(self, at, word, **fields):
        """Fields of a word in memory."""
        self.set(at, word(self.memory.read_u64(at)).replace(**fields))

    def _legacy(self):
        self.set(self.root_entry, self.contexts | 1)
        low = tables.ContextLow.of(P=1, SSPTPTR=self.second.root >> 12)
        self.set(self.context, low, tables.ContextHigh.of(AW=2, DID=DID))

    def _scalable(self):
        self.set(self.root_entry, self.contexts | 1)
        self.set(self.context, tables.ScalableContext0.of(P=1, PASIDE=1, PASIDDIRPTR=self.directory >> 12))
        self.set(self.directory, self.pasids | 1)
        self.pasid(tables.Pgtt.FIRST)

    def pasid(self, pgtt, number=0, did=DID, **stage1):
        """A PASID table entry. Accesses to tables are coherent, and second-stage flags are set."""
        how = tables.Pasid0.of(P=1, AW=2, PGTT=pgtt, SSADE=1, SSPTPTR=self.second.root >> 12)
        stage1 = tables.Pasid2.of(FSPTPTR=self.first.root >> 12, **stage1)
        self.set(self.pasids + 64 * number, how, tables.Pasid1.of(DID=did, PWSNP=1), stage1)

    def submit(self, *descriptors):
        """Descriptors, each one or two words, and the doorbell."""
        for descriptor in descriptors:
            low, high = descriptor if isinstance(descriptor, tuple) else (descriptor, 0)
            self.set(self.queue + self.tail, low, high, *([0, 0] if self.step == 32 else []))
            self.tail = (self.tail + self.step) % 4096
        self.write(Registers.IQT, self.tail)

    def record(self, number=0):
        at = 16 * (self.unit.registers.CAP.FRO + number)
        return FaultLow(self.unit.read(at, 8)), FaultHigh(self.unit.read(at + 8, 8))

    def leaf(self, pages):
        """The only leaf of a table."""
        (leaf,) = pages.leaves(0, 1 << 57)
        return leaf


class Device:
    """A function with a device TLB."""

    def __init__(self, answers=True):
        self.answers, self.forgotten, self.responses = answers, [], []

    def invalidate(self, pasid, first, last):
        self.forgotten.append((pasid, first, last))
        return self.answers

    def page_response(self, pasid, group, code):
        self.responses.append((pasid, group, code))


def reason(call, *args, **keys):
    """The reason of the fault, or None."""
    try:
        call(*args, **keys)
    except TranslationFaultError as fault:
        return fault.reason
    return None


def recorded(bench):
    """The reason in the first fault record."""
    _, high = bench.record()
    return Reason(high.FR) if high.F else None
