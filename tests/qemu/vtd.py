"""VT-d on QEMU's q35 machine and our unit, which gets QEMU's capability words."""

from __future__ import annotations

from random import Random

from qemu.e1000 import Nic
from qemu.pci import PortConfig, enable
from qemu.qtest import Qtest, load, store
from qemu.rig import Answer, Case, Deviation, Probe, Record, Rig, Scenario
from qemu.sides import CARD, QUEUES, RAM, Both, Emulator, Model, ModelMemory, Side
from softiommu.hardware.iommu import Translation
from softiommu.hardware.vtd.commands import Context, Iotlb0, PasidCache0, Type
from softiommu.hardware.vtd.events import FaultHigh, FaultLow, Reason
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.registers import Cap, Ecap, Fsts, Gcmd, Iqa, Registers, Rtaddr, Ttm
from softiommu.hardware.vtd.tables import (
    WIDTHS,
    ContextHigh,
    ContextLow,
    Pasid0,
    Pasid1,
    Pasid2,
    PasidDirectoryEntry,
    Pgtt,
    ScalableContext0,
)
from softiommu.pagetable import formats
from softiommu.pagetable.formats import x86_64
from softiommu.pagetable.kinds import READ, WRITE

_BASE, _BAR = 0xFED90000, 0xE0000000
_CARD_SLOT = 2
_SID, _DID = _CARD_SLOT << 3, 5
_QUEUE = QUEUES
_INTERRUPTS = range(0xFEE00000, 0xFEF00000)
_ALL = (1 << 64) - 1
_FLUSH = (
    Context.of(TYPE=Type.CONTEXT, G=1),
    PasidCache0.of(TYPE=Type.PASID_CACHE, G=3),
    Iotlb0.of(TYPE=Type.IOTLB, G=1),
)


def _rights_first(case: Case) -> bool:
    probe, ours, theirs, _ = case
    if ours.record is None or theirs.record is None or ours.record.reason not in _OF_ENTRIES:
        return False
    codes = _NO_WRITE if probe.want == WRITE else _NO_READ
    return any(ours.record._replace(reason=code) == theirs.record for code in codes)


def _reserved_context(case: Case) -> bool:
    _, ours, theirs, _ = case
    return ours == Answer(None) and theirs.record is not None and theirs.record.reason == Reason.CONTEXT_RESERVED


def _pasid_reserved(case: Case) -> bool:
    record = case.ours.record
    return record is not None and record.reason in (Reason.PASID_DIRECTORY_RESERVED, Reason.PASID_ENTRY_RESERVED)


def _pasid_absent(case: Case) -> bool:
    _, ours, theirs, _ = case
    if theirs.record is None or theirs.record.reason != Reason.PASID_ENTRY_INVALID:
        return False
    return ours == Answer(None) or (ours.record is not None and ours.record.reason == Reason.PASID_ENTRY_NOT_PRESENT)


_NO_READ, _NO_WRITE = (Reason.NO_READ, Reason.USER), (Reason.NO_WRITE, Reason.USER, Reason.SCALABLE_NO_WRITE)
_OF_ENTRIES = (
    *(Reason.PAGING_ACCESS, Reason.PAGING_RESERVED),
    *(Reason.FIRST_NOT_PRESENT, Reason.FIRST_RESERVED, Reason.FIRST_ACCESS, Reason.USER),
)

#: QEMU 10.0. The specification has no order of the first; the second it knows only for faults of the root.
DEVIATIONS = (
    Deviation("a right that an entry lacks is found before what else is wrong in it or below it", _rights_first),
    Deviation("reserved bits of PASID directory and table entries are not looked at", _pasid_reserved),
    Deviation("a PASID table entry that is not present, or has FPD, is recorded as an invalid one", _pasid_absent),
    Deviation("a reserved bit in a context entry is recorded in spite of FPD", _reserved_context),
)

#: What QEMU 10.0 calls the reasons of a second stage in scalable mode: as in legacy mode.
_LEGACY_REASONS = {
    Reason.BEYOND_WIDTH: Reason.ADDRESS_BEYOND_WIDTH,
    Reason.SCALABLE_NO_READ: Reason.NO_READ,
    Reason.SCALABLE_NO_WRITE: Reason.NO_WRITE,
    Reason.SECOND_ACCESS: Reason.PAGING_ACCESS,
    Reason.SECOND_TOP_ACCESS: Reason.CONTEXT_INVALID,
    Reason.SECOND_RESERVED: Reason.PAGING_RESERVED,
}
#: And those of root and context entries, whatever the stage.
_LEGACY_STRUCTURES = {
    Reason.SCALABLE_ROOT_NOT_PRESENT: Reason.ROOT_NOT_PRESENT,
    Reason.SCALABLE_ROOT_RESERVED: Reason.ROOT_RESERVED,
    Reason.SCALABLE_ROOT_ACCESS: Reason.ROOT_ACCESS,
    Reason.SCALABLE_CONTEXT_NOT_PRESENT: Reason.CONTEXT_NOT_PRESENT,
    Reason.SCALABLE_CONTEXT_RESERVED: Reason.CONTEXT_RESERVED,
    Reason.SCALABLE_CONTEXT_ACCESS: Reason.CONTEXT_ACCESS,
}


class VtdRig(Rig):
    """A unit in legacy mode."""

    deviations = DEVIATIONS
    ttm = Ttm.LEGACY
    flushes = (_FLUSH[0], _FLUSH[2])
    sid = _SID

    def __init__(self, binary: str, options: str) -> None:
        self.qtest = Qtest(
            binary, "q35", range(RAM), ["-device", f"intel-iommu,{options}", "-device", f"e1000,addr={_CARD_SLOT}"]
        )
        emulator = Emulator(self.qtest, _BASE)
        cap = Cap(emulator.read(Registers.CAP.offset, 8))
        ecap = Ecap(emulator.read(Registers.ECAP.offset, 8))
        self.cap, self.ecap = cap, ecap
        self.memory = ModelMemory(0)
        self.both = Both(emulator, Model(self.memory, Unit(self.memory, cap, ecap, host_bits=cap.MGAW + 1)))
        self.nic = Nic(self.qtest, enable(PortConfig(self.qtest), _SID, _BAR), CARD)
        self._fault = cap.FRO * 16
        self._tail = 0
        self._tables = [self.memory.alloc(4096) for _ in range(4)]
        both = self.both
        both.write(Registers.IQA, Iqa.of(IQA=_QUEUE >> 12))
        both.write(Registers.RTADDR, Rtaddr.of(TTM=self.ttm, RTA=self._tables[0] >> 12))
        both.write(Registers.GCMD, Gcmd.of(SRTP=1))
        both.write(Registers.GCMD, Gcmd.of(QIE=1))
        both.write(Registers.GCMD, Gcmd.of(QIE=1, TE=1))

    def flush(self) -> None:
        """Every cache, by commands."""
        for command in self.flushes:
            self.both.store(_QUEUE + self._tail, command, 0)
            self._tail = (self._tail + 16) % 4096
        self.both.write(Registers.IQT, self._tail)
        for side in self.both.sides:
            assert side.read(Registers.IQH.offset, 8) == self._tail, "a flush is carried out"

    def build(self, random: Random, clean: bool) -> Scenario:
        """A second-stage table behind a context entry."""
        aw = random.choice([aw for aw in WIDTHS if self.cap.SAGAW >> aw & 1])
        scenario = self.stage(random, formats.VARIANTS[WIDTHS[aw]], clean=clean)
        root, context, *_ = self._tables
        self.memory.write_u64(root, context | 1)
        low = ContextLow.of(P=1, TT=random.randrange(2) & self.ecap.DT, SSPTPTR=scenario.root >> 12)
        self.memory.write_u64(context + 16 * _SID, low)
        self.memory.write_u64(context + 16 * _SID + 8, ContextHigh.of(AW=aw, DID=_DID))
        return scenario._replace(about=WIDTHS[aw])

    def tries(self, iova: int, scenario: Scenario) -> bool:
        """QEMU has a device of its own where interrupts are sent to."""
        return iova not in _INTERRUPTS and super().tries(iova, scenario)

    def data_address(self, random: Random) -> int:
        """Now and then where interrupts are sent to, which nothing may be translated to."""
        return random.choice(_INTERRUPTS) & -4096 if random.random() < 0.02 else super().data_address(random)

    def structures(self) -> list[tuple[int, int]]:
        """The root and the context entry."""
        root, context, *_ = self._tables
        return [(at + 8 * n, _ALL) for at in (root, context + 16 * _SID) for n in range(2)]

    def translate(self, probe: Probe) -> Translation:
        """Our unit's answer."""
        unit: Unit = self.both.model.unit
        return unit.translate(_SID, probe.iova, probe.want)

    def drain(self, side: Side) -> list[Record]:
        """The one fault recording register."""
        record = self._record(side.read(self._fault, 8), side.read(self._fault + 8, 8))
        side.write(self._fault + 12, 4, 1 << 31)
        side.write(Registers.FSTS.offset, 4, Fsts.of(PFO=1))
        return [record] if record else []

    @staticmethod
    def _record(low: int, high: int) -> Record | None:
        where, what = FaultLow(low), FaultHigh(high)
        return Record(what.FR, where.FI << 12, READ if what.T else WRITE, what.SID) if what.F else None

    def step(self, probes: list[Probe]) -> list[Record | None]:
        """One access after the other, since there is one register."""
        at = _BASE + self._fault
        commands = []
        for number in range(len(probes)):
            commands += [self.nic.doorbell(number + 1), load(at, 8), load(at + 8, 8), store(at + 12, 4, 1 << 31)]
        answers = self.qtest.ask(commands)
        self.drain(self.both.emulator)
        return [self._record(answers[n + 1], answers[n + 2]) for n in range(0, len(answers), 4)]


class ScalableRig(VtdRig):
    """A unit in scalable mode: PASID 0 of the card translates by the second stage."""

    ttm = Ttm.SCALABLE
    flushes = _FLUSH

    def build(self, random: Random, clean: bool) -> Scenario:
        """A table behind a PASID table entry."""
        root, context, directory, entries = self._tables
        scenario, words = self.entry(random, clean)
        self.memory.write_u64(root, context | 1)
        self.memory.write_u64(context + 32 * _SID, ScalableContext0.of(P=1, PASIDDIRPTR=directory >> 12))
        self.memory.write_u64(directory, PasidDirectoryEntry.of(P=1, SMPTBLPTR=entries >> 12))
        for number, word in enumerate(words):
            self.memory.write_u64(entries + 8 * number, word)
        return scenario

    def entry(self, random: Random, clean: bool) -> tuple[Scenario, tuple[int, int, int]]:
        """A table, and the words of the PASID table entry."""
        aw = random.choice([aw for aw in WIDTHS if self.cap.SAGAW >> aw & 1])
        scenario = self.stage(random, formats.VARIANTS[WIDTHS[aw]], clean=clean)
        low = Pasid0.of(P=1, PGTT=Pgtt.SECOND, AW=aw, SSPTPTR=scenario.root >> 12)
        return scenario._replace(about=WIDTHS[aw]), (low, Pasid1.of(DID=_DID), 0)

    def structures(self) -> list[tuple[int, int]]:
        """Of the context and of the PASID's directory and table QEMU checks little but what is present."""
        root, context, directory, entries = self._tables
        low = Pasid0.P.mask | Pasid0.PGTT.mask
        address = (1 << self.cap.MGAW + 1) - (1 << 12)
        present = [(context + 32 * _SID, 1 | address), (directory, 1 | address), (entries, low)]
        return [(root, _ALL), *present]

    def known(self, record: Record) -> Record:
        """QEMU has the reasons of legacy mode for root, context and second stage."""
        record = self._structure(record)
        if record.reason == Reason.SECOND_NOT_PRESENT:
            return record._replace(reason=Reason.NO_WRITE if record.want == WRITE else Reason.NO_READ)
        return record._replace(reason=_LEGACY_REASONS.get(Reason(record.reason), record.reason))

    @staticmethod
    def _structure(record: Record) -> Record:
        return record._replace(reason=_LEGACY_STRUCTURES.get(Reason(record.reason), record.reason))


class FirstStageRig(ScalableRig):
    """A unit in scalable mode: PASID 0 of the card translates by the first stage."""

    flag_bits = x86_64.A | x86_64.D

    def entry(self, random: Random, clean: bool) -> tuple[Scenario, tuple[int, int, int]]:
        """A table of four levels, and the words of the PASID table entry."""
        scenario = self.stage(random, formats.VARIANTS["x86-64-4level"], clean=clean).canonical(48)
        # AW is the second stage's, but QEMU limits the addresses of the first by it.
        words = (
            Pasid0.of(P=1, PGTT=Pgtt.FIRST, AW=2),
            Pasid1.of(DID=_DID),
            Pasid2.of(NXE=1, FSPTPTR=scenario.root >> 12),
        )
        return scenario, words

    def known(self, record: Record) -> Record:
        """The first stage's reasons are QEMU's, too."""
        return self._structure(record)
