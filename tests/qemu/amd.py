"""The AMD IOMMU on QEMU's q35 machine, and our model with QEMU's features: v1 tables of one to six levels."""

from __future__ import annotations

import re
import struct
from random import Random

from qemu.e1000 import Nic
from qemu.pci import PortConfig, enable
from qemu.qtest import Qtest
from qemu.rig import Answer, Case, Deviation, Probe, Record, Rig, Scenario
from qemu.sides import CARD, QUEUES, RAM, Both, Emulator, Model, ModelMemory, Side
from softiommu.hardware.amd.commands import Opcode, Plain
from softiommu.hardware.amd.events import RECORD_SIZE, Code, DeviceEvent
from softiommu.hardware.amd.model import AmdIommu
from softiommu.hardware.amd.registers import Control, DeviceTableBase, Efr, Registers, RingBase
from softiommu.hardware.amd.tables import DTE_SIZE, HOST_TABLES, Dte0, Dte1
from softiommu.hardware.iommu import Translation
from softiommu.pagetable import formats
from softiommu.pagetable.formats.amdv1 import RESERVED_LINK, Pte
from softiommu.pagetable.kinds import Table

_BASE, _BAR = 0xFED80000, 0xE0000000
_CARD_SLOT = 2
_SID, _DOMAIN = _CARD_SLOT << 3, 5
_COMMANDS, _EVENTS = QUEUES, QUEUES + (1 << 20)
#: lg2 of the entries of the command buffer and of the event log.
_COMMANDS_LG2, _EVENTS_LG2 = 8, 15
_SIZED = 7
#: QEMU 10.0 has the events, but a mistake in how it looks at the overflow bit keeps all of them from the log. So its
#: trace is read.
_TRACES = {
    "amdvi_page_fault": Code.IO_PAGE_FAULT,
    "amdvi_get_pte_hwerror": Code.PAGE_TAB_HARDWARE_ERROR,
}
_TRACED = re.compile(rf"^({'|'.join(_TRACES)}) .*addr(?:ess)? (0x[0-9a-f]+)", re.MULTILINE)

#: The bits of the address in an event.
_ADDRESS = {Code.IO_PAGE_FAULT: -1, Code.PAGE_TAB_HARDWARE_ERROR: -16}


def _rights_first(case: Case) -> bool:
    probe, ours, theirs, _ = case
    fault = Record(int(Code.IO_PAGE_FAULT), probe.iova, 0, _SID)
    return ours.record is not None and ours.record.reason == Code.PAGE_TAB_HARDWARE_ERROR and theirs.record == fault


def _leaf(case: Case) -> bool:
    _, ours, theirs, _ = case
    return ours.record is not None and ours.record.reason == Code.IO_PAGE_FAULT and theirs == Answer(None)


#: QEMU 10.0.
DEVIATIONS = (
    Deviation("a right that a link lacks is found before its table is read", _rights_first),
    Deviation("a leaf that is missing or lacks a right blocks without an event", _leaf),
)


class AmdRig(Rig):
    """A device table entry of the card, with host tables."""

    deviations = DEVIATIONS
    sid = _SID
    #: QEMU puts the device's number into the bits of a page's number, and does not tell one from the other.
    without = _SID << 48
    #: QEMU follows a link of any level anywhere, and round and round.
    data_as_tables = False
    tables_as_tables = False

    def __init__(self, binary: str) -> None:
        traces = [word for name in _TRACES for word in ("-trace", name)]
        devices = (*traces, "-device", "amd-iommu,intremap=off,pt=off", "-device", f"e1000,addr={_CARD_SLOT}")
        self.qtest = Qtest(binary, "q35", range(RAM), devices)
        emulator = Emulator(self.qtest, _BASE)
        self.memory = ModelMemory(0)
        efr = Efr(emulator.read(Registers.EFR.offset, 8))
        self.both = Both(emulator, Model(self.memory, AmdIommu(self.memory, efr)))
        self.nic = Nic(self.qtest, enable(PortConfig(self.qtest), _SID, _BAR), CARD)
        self._tail = 0
        self._devices = self.memory.alloc(4096)
        both = self.both
        both.write(Registers.DEVTAB_BASE, DeviceTableBase.of(BASE=self._devices >> 12))
        both.write(Registers.CMD_BASE, RingBase.of(BASE=_COMMANDS >> 12, LEN=_COMMANDS_LG2))
        both.write(Registers.EVENT_BASE, RingBase.of(BASE=_EVENTS >> 12, LEN=_EVENTS_LG2))
        both.write(Registers.CONTROL, Control.of(IommuEn=1, EventLogEn=1, CmdBufEn=1))

    def flush(self) -> None:
        """Every cache, by a command."""
        self.both.store(_COMMANDS + self._tail, Plain.of(OPCODE=Opcode.INVALIDATE_IOMMU_ALL), 0)
        size = 16 << _COMMANDS_LG2
        self._tail = (self._tail + 16) % size
        self.both.write(Registers.CMD_TAIL, self._tail)
        for side in self.both.sides:
            # QEMU shows the end of the buffer for its beginning.
            assert side.read(Registers.CMD_HEAD.offset, 8) % size == self._tail, "a flush is carried out"

    # Tables

    def build(self, random: Random, clean: bool) -> Scenario:
        """A table of one to six levels; it must reach the card's area, so not of one."""
        levels = random.randrange(2, 7)
        scenario = self.stage(random, formats.VARIANTS[HOST_TABLES[levels]], clean=clean)
        low = Dte0.of(V=1, TV=1, Mode=levels, HostPageTableRoot=scenario.root >> 12, IR=1, IW=1)
        at = self._devices + DTE_SIZE * _SID
        for number, word in enumerate((low, Dte1.of(DomainID=_DOMAIN), 0, 0)):
            self.memory.write_u64(at + 8 * number, word)
        return scenario._replace(about=f"{levels} levels", limit=min(12 + 9 * levels, 64))

    def structures(self) -> list[tuple[int, int]]:
        """The device table entry."""
        at = self._devices + DTE_SIZE * _SID
        return [(at, (1 << 64) - 1), (at + 8, (1 << 64) - 1)]

    def tame(self, table: Table, level: int, entry: int, nested: bool) -> int:
        """QEMU looks neither at reserved bits nor at a leaf's PR, and goes to any level that a link names."""
        entry &= ~RESERVED_LINK
        if not entry & Pte.PR.mask:
            return 0
        pte = Pte(entry & (1 << 64) - 1)
        if pte.NEXT_LEVEL in (0, _SIZED):
            return int(pte.replace(NEXT_LEVEL=0)) if level <= table.leaf_top else 0
        return int(pte.replace(NEXT_LEVEL=level)) if level else int(pte.replace(NEXT_LEVEL=0))

    # Accesses

    def translate(self, probe: Probe) -> Translation:
        """Our model's answer."""
        unit: AmdIommu = self.both.model.unit
        return unit.translate(_SID, probe.iova, probe.want)

    def drain(self, side: Side) -> list[Record]:
        """What the event log holds; of QEMU, what it traced."""
        if side is self.both.emulator:
            events = _TRACED.findall(self.qtest.news())
            return [Record(int(_TRACES[name]), int(at, 16) & _ADDRESS[_TRACES[name]], 0, _SID) for name, at in events]
        head, tail = side.read(Registers.EVENT_HEAD.offset, 8), side.read(Registers.EVENT_TAIL.offset, 8)
        found = []
        while head != tail:
            low, high = struct.unpack("<2Q", side.load(_EVENTS + head, RECORD_SIZE))
            event = DeviceEvent(low)
            found.append(Record(int(event.CODE), high, 0, event.DeviceID))
            head = (head + RECORD_SIZE) % (RECORD_SIZE << _EVENTS_LG2)
        side.write(Registers.EVENT_HEAD.offset, 8, head)
        return found

    def step(self, probes: list[Probe]) -> list[Record | None]:
        """One access after the other: the trace does not say whose an event is."""
        found: list[Record | None] = []
        for number in range(len(probes)):
            self.qtest.ask([self.nic.doorbell(number + 1)])
            records = self.drain(self.both.emulator)
            found.append(records[0] if records else None)
        return found
