"""SMMUv3 on QEMU's virt machine with both stages, and our model with QEMU's ID registers."""

from __future__ import annotations

import struct
from random import Random

from qemu.e1000 import Nic
from qemu.pci import MemoryConfig, enable
from qemu.qtest import Qtest
from qemu.rig import Answer, Case, Deviation, Probe, Record, Rig, Scenario, Way, walks
from qemu.sides import CARD, QUEUES, RAM, Both, Emulator, Model, ModelMemory, Side
from softiommu.hardware.iommu import Translation
from softiommu.hardware.smmuv3 import geometry
from softiommu.hardware.smmuv3.commands import Bare, Op, Range1, Sync0
from softiommu.hardware.smmuv3.events import EVENT_BYTES, Class, Event, Event0, Event1, Event3
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import Identity
from softiommu.hardware.smmuv3.registers import (
    Cr0,
    Cr2,
    Idr0,
    Idr1,
    Idr3,
    Idr5,
    QueueBase,
    Registers,
    Ring,
    StrtabBase,
    StrtabBaseCfg,
)
from softiommu.hardware.smmuv3.tables import (
    TG0,
    TG1,
    Cd0,
    Cd1,
    Cd2,
    Cd3,
    Config,
    L1Std,
    Ste0,
    Ste1,
    Ste2,
    Ste3,
)
from softiommu.pagetable import formats
from softiommu.pagetable.formats.arm64 import Pte
from softiommu.pagetable.kinds import LEAF, READ, WRITE, Table
from softiommu.pagetable.walk import signed
from softiommu.words import Word

_RAM, _CONFIG, _BASE, _BAR = 0x40000000, 0x3F000000, 0x09050000, 0x10000000
_CARD_SLOT = 2
_SID, _VMID, _ASID = _CARD_SLOT << 3, 3, 9
_COMMANDS, _EVENTS = _RAM + QUEUES, _RAM + QUEUES + (1 << 20)
_COMMAND_RING, _EVENT_RING = Ring(8), Ring(14)
_IPS_44, _OAS = 4, 44
_ALL = (1 << 64) - 1
_BAD_ADDRESS = _ALL & ~((1 << _OAS) - (1 << 12))
_BAD_TABLE = _BAD_ADDRESS | 0xFFFF
#: What QEMU does not look at, or looks at otherwise, in structures: addresses beyond the output size or within a table;
#: features that it has not (substreams, ATS, flags); whether stage 2 starts too early. And what ends it: reserved
#: granules and sizes, and tables of AArch32.
_UNCHECKED: dict[type[Word], int] = {
    L1Std: _BAD_ADDRESS & ~L1Std.SPAN.mask,
    Ste0: Ste0.S1CONTEXTPTR.mask & _BAD_ADDRESS | Ste0.S1CDMAX.mask,
    Ste1: Ste1.EATS.mask | Ste1.S1STALLD.mask,
    Ste2: _ALL & ~(Ste2.S2VMID.mask | Ste2.S2AFFD.mask | Ste2.S2S.mask | Ste2.S2R.mask | Ste2.S2ENDI.mask),
    Ste3: Ste3.S2TTB.mask & _BAD_TABLE,
    Cd0: Cd0.IPS.mask,
    Cd1: Cd1.TTB0.mask & _BAD_TABLE,
    Cd2: Cd2.TTB1.mask & _BAD_TABLE,
}
_FLUSH = (
    (Bare.of(OPCODE=Op.CFGI_STE_RANGE), Range1.of(RANGE=31)),
    (Bare.of(OPCODE=Op.TLBI_NSNH_ALL), 0),
    (Sync0.of(OPCODE=Op.SYNC), 0),
)
_QUEUES_ON = Cr0.of(CMDQEN=1, EVENTQEN=1)
#: So many rounds with a linear stream table, then those with one of two levels.
_LINEAR = 20
_TTB_LOW = 4


def _size_last(case: Case) -> bool:
    _, ours, theirs, _ = case
    if ours.record is None or theirs.record is None or ours.record.reason != Event.F_ADDR_SIZE:
        return False
    if theirs.record.reason == Event.F_WALK_EABT:
        return theirs.record.iova == ours.record.iova
    if theirs.record.reason == Event.F_ADDR_SIZE:
        return theirs.record.iova == ours.record.iova and theirs.record.detail[1] == Class.TT
    return any(ours.record._replace(reason=reason) == theirs.record for reason in (Event.F_PERMISSION, Event.F_ACCESS))


def _table_limits(case: Case) -> bool:
    probe, ours, theirs, _ = case
    if probe.want != WRITE or ours.record is None or theirs.record is None:
        return False
    return theirs.record == ours.record._replace(reason=Event.F_PERMISSION, detail=(0, Class.IN, 0))


def _stage2_of_a_table(case: Case) -> bool:
    _, ours, theirs, _ = case
    if ours.record is None or theirs.record is None or ours.record.detail[:2] != (1, Class.TT):
        return False
    # The address is the table's, not the entry's.
    ipa, table = ours.record.detail[2], theirs.record.detail[2]
    return ipa >> 16 == table >> 16 and theirs.record == ours.record._replace(detail=(0, Class.TT, table))


def _beyond_span(case: Case) -> bool:
    record = case.ours.record
    return record is not None and record.reason == Event.C_BAD_STREAMID


def _no_block(case: Case) -> bool:
    return any(
        step.level > table.leaf_top and step.entry & (Pte.VALID.mask | Pte.TYPE.mask) == Pte.VALID.mask
        for table, _, steps in walks(case.scenario, case.probe.iova)
        for step in steps
    )


def _other_run(case: Case) -> bool:
    return any(way.steps and _is_elsewhere(way) for way in walks(case.scenario, case.probe.iova))


def _is_elsewhere(way: Way) -> bool:
    """Whether the last entry says to be of a run of leaves, but of another place in it than where it was found."""
    last = way.steps[-1]
    kind, _, run_lg2, _ = formats.load(way.table, last.level, signed(last.entry))
    span_lg2 = way.table.granule_lg2 + way.table.bits * last.level
    return kind == LEAF and (way.iova ^ last.entry) >> span_lg2 & (1 << run_lg2 - span_lg2) - 1 != 0


def _too_wide(case: Case) -> bool:
    probe, ours, theirs, _ = case
    if ours.record is None or ours.record.reason != Event.F_ADDR_SIZE or ours.record.detail != (0, Class.IN, 0):
        return False
    return probe.iova >> _OAS != 0 and theirs == Answer(None)


#: QEMU 10.0.
DEVIATIONS = (
    Deviation("the size of an address is looked at last, and not at all in links", _size_last),
    Deviation("stage 2 that hides a table of stage 1 is recorded as stage 1", _stage2_of_a_table),
    Deviation("tables of the second level have twice the streams that Span says", _beyond_span),
    Deviation("a block at a level where the granule has none is one", _no_block),
    Deviation("an entry of a run of leaves that is found in another place of it has its own address", _other_run),
    Deviation("a link that forbids writes ends the walk of one", _table_limits),
    Deviation("an address too wide for stage 2, without stage 1, is not recorded", _too_wide),
)


class Smmuv3Rig(Rig):
    """Stream tables of one and two levels; stage 1 by either table base, stage 2, and both; all granules."""

    deviations = DEVIATIONS
    sid = _SID
    #: Because of `tame`.
    data_as_tables = False

    def __init__(self, binary: str) -> None:
        devices = ("-cpu", "cortex-a57", "-global", "arm-smmuv3.stage=nested", "-device", f"e1000,addr={_CARD_SLOT}")
        machine = "virt,iommu=smmuv3,gic-version=3,highmem=off"
        self.qtest = Qtest(binary, machine, range(_RAM, _RAM + RAM), devices)
        emulator = Emulator(self.qtest, _BASE)
        self.memory = ModelMemory(_RAM)
        words = [emulator.read(register.offset, 4) for register in (Registers.IDR0, Registers.IDR1, Registers.IDR3)]
        idr5 = Idr5(emulator.read(Registers.IDR5.offset, 4))
        identity = Identity(Idr0(words[0]), Idr1(words[1]), Idr3(words[2]), idr5)
        self.both = Both(emulator, Model(self.memory, Smmu(self.memory, identity)))
        self.nic = Nic(self.qtest, enable(MemoryConfig(self.qtest, _CONFIG), _SID, _BAR), _RAM + CARD)
        self._commands, self._linear = 0, _LINEAR
        self._structures: list[tuple[int, int]] = []
        self._owned: list[int] = []
        both = self.both
        both.write(Registers.CMDQ_BASE, QueueBase.of(LOG2SIZE=_COMMAND_RING.lg2, ADDR=_COMMANDS >> 5))
        both.write(Registers.EVENTQ_BASE, QueueBase.of(LOG2SIZE=_EVENT_RING.lg2, ADDR=_EVENTS >> 5))
        both.write(Registers.CR2, Cr2.of(RECINVSID=1))
        both.write(Registers.CR0, _QUEUES_ON)

    def flush(self) -> None:
        """Every cache, by commands."""
        for command in _FLUSH:
            self.both.store(_COMMANDS + 16 * _COMMAND_RING.slot(self._commands), *command)
            self._commands = _COMMAND_RING.next(self._commands)
        self.both.write(Registers.CMDQ_PROD, self._commands)
        for side in self.both.sides:
            assert side.read(Registers.CMDQ_CONS.offset, 4) == self._commands, "a flush is carried out"

    # Tables

    def build(self, random: Random, clean: bool) -> Scenario:
        """One or two stages behind an STE."""
        config = random.choice((Config.S1, Config.S2, Config.NEST))
        scenario, contexts = None, 0
        words: list[Word] = [Ste0.of(V=1, CONFIG=config), Ste1.of(SHCFG=1), Ste2.of(S2AA64=1), Ste3(0)]
        if config != Config.S1:
            scenario, words[2], words[3] = self._second(random, clean, config == Config.NEST)
        if config != Config.S2:
            contexts = self._page()
            scenario = self._first(random, clean, scenario, contexts)
            words[0] = words[0].replace(S1CONTEXTPTR=contexts + scenario.spaces[-1].shift >> 6)
        assert scenario is not None, "there is a stage"
        self._stream_table(words)
        about = f"{config.name} {[space.pages.table[2:] for space in scenario.spaces]}"
        return scenario._replace(about=about)

    def _page(self) -> int:
        page = self.memory.alloc(4096)
        self._owned.append(page)
        return page

    def _first(self, random: Random, clean: bool, outer: Scenario | None, contexts: int) -> Scenario:
        """A stage-1 table, by TTB0 or TTB1 of a context descriptor."""
        granule, width = random.choice((12, 14, 16)), random.randrange(25, 49)
        upper = random.randrange(2)
        codes = {lg2: code for code, lg2 in (TG1 if upper else TG0).items()}
        scenario = self.stage(random, geometry.stage1(granule, width, _OAS, 0), outer, clean)
        # QEMU takes TBI0 for TBI1, too.
        ignored = random.randrange(2)
        names = {"TBI0": ignored, "TBI1": ignored}
        names |= {f"T{upper}SZ": 64 - width, f"TG{upper}": codes[granule]}
        names |= {f"EPD{1 - upper}": 1}
        low = Cd0.of(V=1, IPS=_IPS_44, AA64=1, R=1, A=1, ASID=_ASID, AFFD=random.randrange(2), **names)
        bases = [Cd1(0), Cd2(0)]
        bases[upper] = bases[upper].replace(
            **{f"TTB{upper}": scenario.root >> _TTB_LOW, f"HAD{upper}": random.randrange(2)}
        )
        self._store(contexts, low, *bases, Cd3(0))
        if upper:
            scenario = scenario.raised((1 << 64) - (1 << width))
        if ignored:
            aims = [aim._replace(iova=aim.iova ^ random.getrandbits(8) << 56) for aim in scenario.aims]
            scenario = scenario._replace(aims=aims)
        return scenario

    def _second(self, random: Random, clean: bool, nested: bool) -> tuple[Scenario, Ste2, Ste3]:
        """A stage-2 table that starts at a level of its own."""
        while True:
            granule, width = random.choice((12, 14, 16)), random.randrange(33 if nested else 25, _OAS + 1)
            sl0 = random.randrange(3)
            table = geometry.stage2(granule, width, _OAS, 0, sl0, 0)
            # QEMU looks for tables side by side in places of another granule.
            if table is not None and table.top_bits <= table.bits:
                break
        scenario = self.stage(random, table, clean=clean, nested=nested)
        code = {lg2: code for code, lg2 in TG0.items()}[granule]
        low = Ste2.of(S2VMID=_VMID, S2T0SZ=64 - width, S2SL0=sl0, S2TG=code, S2PS=_IPS_44, S2AA64=1, S2R=1)
        return scenario, low.replace(S2AFFD=random.randrange(2)), Ste3.of(S2TTB=scenario.root >> _TTB_LOW)

    def _stream_table(self, words: list[Word]) -> None:
        table = self._page()
        self._structures = []
        self._store(table + 64 * _SID, *words)
        config = StrtabBaseCfg.of(LOG2SIZE=6)
        # QEMU that has had a table of two levels takes all later ones for such.
        self._linear -= 1
        if self._linear < 0:
            leaves, table = table, self._page()
            self._store(table, L1Std.of(SPAN=7, L2PTR=leaves >> 6))
            config = StrtabBaseCfg.of(LOG2SIZE=8, SPLIT=6, FMT=1)
        both = self.both
        both.write(Registers.CR0, _QUEUES_ON)
        both.write(Registers.STRTAB_BASE, StrtabBase.of(ADDR=table >> 6))
        both.write(Registers.STRTAB_BASE_CFG, config)
        both.write(Registers.CR0, _QUEUES_ON.replace(SMMUEN=1))

    def _store(self, at: int, *words: Word) -> None:
        for number, word in enumerate(words):
            self.memory.write_u64(at + 8 * number, word)
            self._structures.append((at + 8 * number, _ALL & ~_UNCHECKED.get(type(word), 0)))

    def release(self) -> None:
        """Give the stream table and the context descriptor back."""
        while self._owned:
            self.memory.free(self._owned.pop())

    def structures(self) -> list[tuple[int, int]]:
        """Stream table entries and context descriptors."""
        return self._structures

    # Accesses

    def known(self, record: Record) -> Record:
        """QEMU puts the address of a CD that it cannot fetch elsewhere."""
        return record._replace(iova=0, detail=(0, 0, 0)) if record.reason == Event.F_CD_FETCH else record

    def tame(self, table: Table, level: int, entry: int, nested: bool) -> int:
        """Where only some entries of a run say that it is one, anything may be cached. To QEMU any level has blocks."""
        if level > table.leaf_top and not entry & Pte.TYPE.mask:
            return 0
        return entry & ~Pte.CONTIG.mask

    def translate(self, probe: Probe) -> Translation:
        """Our model's answer. To QEMU every access is a privileged one."""
        unit: Smmu = self.both.model.unit
        return unit.translate(_SID, probe.iova, probe.want, privileged=True)

    def drain(self, side: Side) -> list[Record]:
        """What the event queue holds."""
        prod, cons = side.read(Registers.EVENTQ_PROD.offset, 4), side.read(Registers.EVENTQ_CONS.offset, 4)
        found = []
        while not _EVENT_RING.empty(prod, cons):
            at = _EVENTS + EVENT_BYTES * _EVENT_RING.slot(cons)
            found.append(self.known(self._record(*struct.unpack("<4Q", side.load(at, EVENT_BYTES)))))
            cons = _EVENT_RING.next(cons)
        side.write(Registers.EVENTQ_CONS.offset, 4, cons | prod & 1 << 31)
        return found

    @staticmethod
    def _record(word0: int, word1: int, address: int, word3: int) -> Record:
        event, how = Event0(word0), Event1(word1)
        place = (how.S2, int(how.CLASS), Event3(word3).ADDR << 3 & -4096)
        return Record(int(event.TYPE), address, READ if how.RNW else WRITE, event.SID, place)

    def step(self, probes: list[Probe]) -> list[Record | None]:
        """All at once: the queue is long."""
        self.qtest.ask([self.nic.doorbell(len(probes))])
        return self.share(probes, self.drain(self.both.emulator))
