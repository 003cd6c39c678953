"""The RISC-V IOMMU on QEMU's virt machine, and our model with QEMU's capabilities."""

from __future__ import annotations

import struct
from random import Random

from qemu.e1000 import Nic
from qemu.pci import MemoryConfig, enable
from qemu.qtest import Qtest
from qemu.rig import Case, Deviation, Probe, Record, Rig, Scenario
from qemu.sides import CARD, QUEUES, RAM, Both, Emulator, Model, ModelMemory, Side
from softiommu.hardware.iommu import Translation
from softiommu.hardware.riscv.commands import Command, Iodir0, Iofence0, Iotinval0
from softiommu.hardware.riscv.events import FAULT_BYTES, Cause, Fault0, Ttyp
from softiommu.hardware.riscv.model import RiscvIommu
from softiommu.hardware.riscv.registers import Capabilities, Cqcsr, Ddtp, DdtpMode, QueueBase, RecordCsr, Registers
from softiommu.hardware.riscv.tables import (
    DDT_LEVELS,
    FIRST_STAGE,
    PDT_LEVELS,
    SECOND_STAGE,
    DeviceTa,
    DirectoryEntry,
    FirstMode,
    Iohgatp,
    Iosatp,
    Msiptp,
    PdtMode,
    Pdtp,
    ProcessTa,
    Tc,
)
from softiommu.pagetable import formats
from softiommu.pagetable.formats.riscv import RWX, A, D, Pte, R, U, W
from softiommu.pagetable.kinds import READ, WRITE, Table
from softiommu.words import Word

_RAM, _CONFIG, _BASE, _BAR = 0x80000000, 0x30000000, 0x40000000, 0x40100000
_IOMMU_SLOT, _CARD_SLOT = 1, 2
_SID, _GSCID, _PSCID = _CARD_SLOT << 3, 3, 9
_COMMANDS, _FAULTS = _RAM + QUEUES, _RAM + QUEUES + (1 << 20)
#: lg2 of the entries of the queues.
_COMMANDS_LG2, _FAULTS_LG2 = 8, 14
_DC_WORDS = 8
_ALL = (1 << 64) - 1

_FLUSH = (
    Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT),
    Iotinval0.of(COMMAND=Command.IOTINVAL_GVMA),
    Iotinval0.of(COMMAND=Command.IOTINVAL_VMA, GV=1, GSCID=_GSCID),
    Iotinval0.of(COMMAND=Command.IOTINVAL_VMA),
    Iofence0.of(COMMAND=Command.IOFENCE_C, PR=1, PW=1),
)

_PROCESS_DIRECTORIES = {PdtMode.PD8: "PD8", PdtMode.PD17: "PD17", PdtMode.PD20: "PD20"}

#: Reserved in an entry, or software's.
_UNUSED = 0x7F << 54
_GUEST = (Cause.READ_GUEST_PAGE_FAULT, Cause.WRITE_GUEST_PAGE_FAULT)


def _as_a_write(case: Case) -> bool:
    probe, ours, theirs, _ = case
    if ours.record is None or theirs.record is None or probe.want != READ:
        return False
    return ours.record._replace(reason=ours.record.reason + 2) == theirs.record


#: QEMU 10.0.
DEVIATIONS = (
    Deviation("behind a first stage that allows writes, a read is blocked by the second as a write is", _as_a_write),
)


class RiscvRig(Rig):
    """Device directories of one to three levels, process directories, and tables of either stage or both."""

    deviations = DEVIATIONS
    sid = _SID
    #: QEMU has no Svnapot, and keeps 44 bits of a page's number in its IOTLB.
    unknown_sizes = 1 << 16
    width = 56
    data_as_tables = False

    def __init__(self, binary: str) -> None:
        devices = ("-device", f"riscv-iommu-pci,addr={_IOMMU_SLOT}", "-device", f"e1000,addr={_CARD_SLOT}")
        self.qtest = Qtest(binary, "virt,aia=none", range(_RAM, _RAM + RAM), devices)
        config = MemoryConfig(self.qtest, _CONFIG)
        enable(config, _IOMMU_SLOT << 3, _BASE)
        emulator = Emulator(self.qtest, _BASE)
        self.memory = ModelMemory(_RAM)
        offered = Capabilities(emulator.read(Registers.CAPABILITIES.offset, 8))
        capabilities = offered.replace(SV32=0, SV32X4=0)
        self.both = Both(emulator, Model(self.memory, RiscvIommu(self.memory, capabilities)))
        self.nic = Nic(self.qtest, enable(config, _SID, _BAR), _RAM + CARD)
        self._tail = 0
        self._structures: list[tuple[int, int]] = []
        self._owned: list[int] = []
        self._nested = False
        self.capabilities = capabilities
        self._start()

    def _start(self) -> None:
        both = self.both
        both.write(Registers.CQB, QueueBase.of(LOG2SZ_1=_COMMANDS_LG2 - 1, PPN=_COMMANDS >> 12))
        both.write(Registers.FQB, QueueBase.of(LOG2SZ_1=_FAULTS_LG2 - 1, PPN=_FAULTS >> 12))
        both.write(Registers.CQCSR, Cqcsr.of(CQEN=1))
        both.write(Registers.FQCSR, RecordCsr.of(EN=1))

    def flush(self) -> None:
        """Every cache, by commands."""
        for command in _FLUSH:
            self.both.store(_COMMANDS + 16 * self._tail, command, 0)
            self._tail = (self._tail + 1) % (1 << _COMMANDS_LG2)
        self.both.write(Registers.CQT, self._tail)
        for side in self.both.sides:
            assert side.read(Registers.CQH.offset, 4) == self._tail, "a flush is carried out"

    # Tables

    def build(self, random: Random, clean: bool) -> Scenario:
        """One or two stages behind a device context, or behind a process context that is the default."""
        first, second = random.choice((None, *FIRST_STAGE)), random.choice((None, *SECOND_STAGE))
        if first is None and second is None:
            first = FirstMode.SV39
        hgatp, satp, scenario = Iohgatp(0), Iosatp(0), None
        if second is not None:
            outer = formats.VARIANTS[SECOND_STAGE[second]]
            scenario = self.stage(random, outer, clean=clean, nested=first is not None)
            hgatp = Iohgatp.of(MODE=second, GSCID=_GSCID, PPN=scenario.root >> 12)
        if first is not None:
            table = formats.VARIANTS[FIRST_STAGE[first]]
            scenario = self.stage(random, table, scenario, clean).canonical(table.input_bits)
            satp = Iosatp.of(MODE=first, PPN=scenario.root >> 12)
        assert scenario is not None, "there is a stage"
        self._nested = bool(satp) and bool(hgatp)
        self._contexts(random, satp, hgatp)
        return scenario._replace(about=f"{first!r} {second!r}")

    def _contexts(self, random: Random, satp: Iosatp, hgatp: Iohgatp) -> None:
        """A device directory of one to three levels, and sometimes a process directory."""
        tables = [self.memory.alloc(4096) for _ in range(6)]  # zeroed
        self._owned += tables
        fsc: Word
        tc, fsc = Tc.of(V=1), satp
        device, self._structures = tables[0] + 8 * _DC_WORDS * _SID, []
        # QEMU does not translate addresses of a process directory by the second stage.
        if satp and not hgatp and random.random() < 0.5:
            mode = random.choice([mode for mode, feature in _PROCESS_DIRECTORIES.items() if self._has(feature)])
            tc = Tc.of(V=1, PDTV=1, DPE=1)
            fsc = Pdtp.of(MODE=mode, PPN=self._directory(tables[3:], PDT_LEVELS[mode]) >> 12)
            self._store(tables[3], ProcessTa.of(V=1, PSCID=_PSCID), satp)
        self._store(device, tc, hgatp, DeviceTa.of(PSCID=_PSCID), fsc, Msiptp(0))
        mode = random.choice(tuple(DDT_LEVELS))
        root = self._directory(tables, DDT_LEVELS[mode])
        # From one number of levels to another there is no direct way.
        self.both.write(Registers.DDTP, Ddtp.of(MODE=DdtpMode.OFF))
        self.both.write(Registers.DDTP, Ddtp.of(MODE=mode, PPN=root >> 12))

    def _has(self, feature: str) -> bool:
        return bool(getattr(self.capabilities, feature))

    def _directory(self, tables: list[int], levels: int) -> int:
        """Link the first entries of tables, the last first; -> the root."""
        for level in range(1, levels):
            self._store(tables[level], DirectoryEntry.of(V=1, PPN=tables[level - 1] >> 12))
        return tables[levels - 1]

    def _store(self, at: int, *words: Word) -> None:
        for number, word in enumerate(words):
            self.memory.write_u64(at + 8 * number, word)
            # Of the rest of the contexts QEMU checks little.
            if isinstance(word, DirectoryEntry | Tc | ProcessTa):
                mask = _ALL if isinstance(word, DirectoryEntry) else Tc.V.mask
                self._structures.append((at + 8 * number, mask))

    def release(self) -> None:
        """Give the directories back."""
        while self._owned:
            self.memory.free(self._owned.pop())

    def structures(self) -> list[tuple[int, int]]:
        """Directory entries and contexts."""
        return self._structures

    # Accesses

    def tame(self, table: Table, level: int, entry: int, nested: bool) -> int:
        """QEMU has no Svpbmt and looks neither at reserved bits, nor at U, nor at A and D of links, nor at A where D is
        set. A second stage must allow it all that the first allows, whatever is asked."""
        entry &= ~(Pte.of(PBMT=3, N=1) | _UNUSED)
        if not entry & RWX:
            return entry & ~(A | D | U)
        return entry | U | (A if entry & D else 0) | (W | A | D if nested and entry & R else 0)

    def rights(self, nested: bool) -> tuple[int, ...]:
        """As in `tame`."""
        return (READ | WRITE,) if nested else super().rights(nested)

    def target(self, word: int) -> int:
        """The address that a word of a structure has."""
        return DirectoryEntry(word).PPN << 12

    def known(self, record: Record) -> Record:
        """QEMU says that it was a write of any access that tables block, no address where structures do, and the
        guest's address only where a first stage gives it."""
        if record.detail[0] & 1 or not self._nested:
            record = record._replace(detail=(0,))
        if record.reason < Cause.ALL_INBOUND_DISALLOWED:
            return record._replace(want=WRITE)
        return record._replace(iova=0)

    def translate(self, probe: Probe) -> Translation:
        """Our model's answer."""
        unit: RiscvIommu = self.both.model.unit
        return unit.translate(_SID, probe.iova, probe.want)

    def drain(self, side: Side) -> list[Record]:
        """What the fault queue holds."""
        head, tail = side.read(Registers.FQH.offset, 4), side.read(Registers.FQT.offset, 4)
        found = []
        while head != tail:
            words = struct.unpack("<4Q", side.load(_FAULTS + FAULT_BYTES * head, FAULT_BYTES))
            fault = Fault0(words[0])
            want = {Ttyp.UNTRANSLATED_READ: READ, Ttyp.UNTRANSLATED_WRITE: WRITE}.get(fault.TTYP, 0)
            guest = words[3] if fault.CAUSE in _GUEST else 0
            found.append(Record(int(fault.CAUSE), words[2], want, fault.DID, (guest,)))
            head = (head + 1) % (1 << _FAULTS_LG2)
        side.write(Registers.FQH.offset, 4, tail)
        return found

    def step(self, probes: list[Probe]) -> list[Record | None]:
        """All at once: the queue is long."""
        self.qtest.ask([self.nic.doorbell(len(probes))])
        return self.share(probes, self.drain(self.both.emulator))
