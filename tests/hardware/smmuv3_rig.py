"""An SMMUv3 with queues, and structures written as a driver writes them."""

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.smmuv3.commands import LAYOUTS, Op
from softiommu.hardware.smmuv3.events import Event, Event0, Event1
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.hardware.smmuv3.registers import Cr0, Cr2, Gerror, QueueBase, Registers, StrtabBase, StrtabBaseCfg
from softiommu.hardware.smmuv3.tables import Cd0, Cd1, Cd2, Config, Ste0, Ste1, Ste2, Ste3
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable import formats
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import OK, READ, WRITE

SID, ASID, VMID = 0x23, 5, 9
RW = READ | WRITE
NOWHERE = 1 << 40
TG0 = {12: 0, 16: 1, 14: 2}
#: S2SL0 by granule and level (3 holds pages).
SL0 = {12: {2: 0, 1: 1, 0: 2, 3: 3}, 14: {3: 0, 2: 1, 1: 2, 0: 3}, 16: {3: 0, 2: 1, 1: 2}}
LG2 = 4


class Rig:
    """`records` of the event queue are taken as they come."""

    def __init__(self, identity=FULL, on=True, **keys):
        self.memory = PhysicalMemory(64 << 20)
        self.interrupts, self.wires, self.resumed = [], [], []
        self.smmu = Smmu(
            self.memory,
            identity,
            interrupt=lambda *msi: self.interrupts.append(msi),
            wired=self.wires.append,
            resumed=lambda *how: self.resumed.append(how),
            **keys,
        )
        self.strtab, self.commands, self.events, self.requests, self.cds = (self.memory.alloc(4096) for _ in range(5))
        self.set("STRTAB_BASE", StrtabBase.of(ADDR=self.strtab >> 6))
        self.set("STRTAB_BASE_CFG", StrtabBaseCfg.of(LOG2SIZE=6))
        for name, base in (("CMDQ", self.commands), ("EVENTQ", self.events), ("PRIQ", self.requests)):
            self.set(f"{name}_BASE", QueueBase.of(LOG2SIZE=LG2, ADDR=base >> 5))
        self.set("CR2", Cr2.of(RECINVSID=1, REC_CFG_ATS=1))
        if on:
            self.on()

    def set(self, name, value):
        register = getattr(Registers, name)
        self.smmu.write(register.offset, register.size, int(value))

    def get(self, name):
        register = getattr(Registers, name)
        return register.word(self.smmu.read(register.offset, register.size))

    def on(self, **fields):
        enables = Cr0.of(SMMUEN=1, CMDQEN=1, EVENTQEN=1, PRIQEN=1, ATSCHK=1).replace(**fields)
        self.set("CR0", enables)

    def words(self, at, *words):
        for number, word in enumerate(words):
            self.memory.write_u64(at + 8 * number, int(word))

    # Structures

    def pages(self, name, option=0):
        table = formats.VARIANTS[name]
        return PageTable(self.memory, table._replace(option=table.option | option))

    def ste(self, *words, sid=SID):
        self.words(self.strtab + 64 * sid, *words, *[0] * (8 - len(words)))

    def cd(self, *words, ssid=0):
        self.words(self.cds + 64 * ssid, *words, *[0] * (8 - len(words)))

    def stage1(self, pages, cdmax=0, s1dss=0, ssid=0, ste1=None, sid=SID, low=None, high=None, **fields):
        self.cd(*context(pages, **fields), low or 0, high or 0, ssid=ssid)
        if low is None:
            self.words(self.cds + 64 * ssid + 8, Cd1.of(TTB0=pages.root >> 4))
        first = Ste0.of(V=1, CONFIG=Config.S1, S1CONTEXTPTR=self.cds >> 6, S1CDMAX=cdmax)
        self.ste(first, (ste1 or Ste1(0)).replace(S1DSS=s1dss), Ste2.of(S2VMID=VMID), sid=sid)

    def stage2(self, pages, sid=SID, ste1=0, **fields):
        self.ste(Ste0.of(V=1, CONFIG=Config.S2), ste1, *second(pages, **fields), sid=sid)

    def nested(self, pages1, pages2, ste1=0, cdmax=0, cd=None, **fields):
        """The context descriptors lie at an address that stage 2 shows as it is."""
        self.cd(*context(pages1, **(cd or {})))
        first = Ste0.of(V=1, CONFIG=Config.NEST, S1CONTEXTPTR=self.cds >> 6, S1CDMAX=cdmax)
        self.ste(first, ste1, *second(pages2, **fields))

    # Queues

    def command(self, low, high=0):
        prod = self.get("CMDQ_PROD")
        self.words(self.commands + 16 * (prod & (1 << LG2) - 1), low, high)
        self.set("CMDQ_PROD", (prod + 1) % (2 << LG2))

    def op(self, op, **fields):
        layout = LAYOUTS[op]
        low = layout.low.of(OPCODE=op, **{n: v for n, v in fields.items() if n in layout.low.FIELDS})
        high = layout.high.of(**{n: v for n, v in fields.items() if n not in layout.low.FIELDS})
        self.command(low, high)

    def forget(self):
        self.op(Op.CFGI_STE_RANGE, RANGE=31)
        self.op(Op.TLBI_NSNH_ALL)

    def take_events(self):
        """The records in the queue, as words; the queue is empty then."""
        prod, cons = self.get("EVENTQ_PROD"), self.get("EVENTQ_CONS")
        found, at = [], cons.RD
        while at != prod.WR:
            where = self.events + 32 * (at & (1 << LG2) - 1)
            found.append([self.memory.read_u64(where + 8 * n) for n in range(4)])
            at = (at + 1) % (2 << LG2)
        self.set("EVENTQ_CONS", cons.replace(RD=at, OVACKFLG=prod.OVFLG))
        return found

    def event(self):
        """The only record: its words, decoded."""
        ((first, second_, third, fourth),) = self.take_events()
        return Event0(first), Event1(second_), third, fourth


def context(pages, **fields):
    """The first words of a CD for a table as TTB0."""
    t = pages.table
    ips = 6 if t.output_bits == 52 else 5
    word = Cd0.of(V=1, AA64=1, A=1, R=1, EPD1=1, ASID=ASID, IPS=ips, T0SZ=64 - t.input_bits, TG0=TG0[t.granule_lg2])
    ds = int(t.output_bits == 52 and t.granule_lg2 != 16)
    return word.replace(**fields), Cd1.of(TTB0=pages.root >> 4), Cd2.of(DS=ds)


def second(pages, **fields):
    """Words 2 and 3 of an STE for a stage-2 table."""
    t = pages.table
    ds = int(t.output_bits == 52 and t.granule_lg2 != 16)
    word = Ste2.of(
        S2VMID=VMID,
        S2T0SZ=64 - t.input_bits,
        S2SL0=SL0[t.granule_lg2][3 - t.top],
        S2TG=TG0[t.granule_lg2],
        S2PS=6 if t.output_bits == 52 else 5,
        S2AA64=1,
        S2R=1,
    )
    return word.replace(**fields), Ste3.of(S2TTB=pages.root >> 4, S2DS=ds)


def reach(smmu, iova, want=1, sid=SID, pasid=None, privileged=False):
    """The physical address, or the event."""
    try:
        return smmu.translate(sid, iova, want, pasid, privileged).pa
    except TranslationFaultError as fault:
        return Event(fault.reason)


def mapped(pages, iova, pa, length=0x1000, prot=3):
    assert pages.map(iova, pa, length, prot)[0] == OK


def leaf(pages, iova):
    (found,) = pages.leaves(iova, iova)
    return found


def change(rig, pages, iova, clear=0, add=0):
    found = leaf(pages, iova)
    rig.memory.write_u64(found.at, found.pte & ~clear | add)


def nest(rig, name1="arm64-4k-48-s1", name2="arm64-4k-40-s2", **fields):
    """A guest whose memory is shown as it is where it is, and moved by 32 MiB at 1 GiB."""
    pages1, pages2 = rig.pages(name1), rig.pages(name2)
    mapped(pages2, 0, 0, 32 << 20)
    mapped(pages2, 1 << 30, 32 << 20, 16 << 20)
    rig.nested(pages1, pages2, **fields)
    return pages1, pages2


def error(rig):
    """The active errors, and why the command queue stopped."""
    active = Gerror(rig.get("GERROR") ^ rig.get("GERRORN"))
    return active, rig.get("CMDQ_CONS").ERR


def acknowledge(rig):
    rig.set("GERRORN", rig.get("GERROR"))


def done(rig):
    return rig.get("CMDQ_CONS").RD == rig.get("CMDQ_PROD").WR and not error(rig)[0]


class Device:
    """A device's side: what it heard, and whether it answers."""

    def __init__(self, answers=True):
        self.answers, self.invalidated, self.responses = answers, [], []

    def invalidate(self, pasid, first, last):
        self.invalidated.append((pasid, first, last))
        return self.answers

    def page_response(self, pasid, group, code):
        self.responses.append((pasid, group, code))
