"""An AMD IOMMU with a device table, rings, and tables that tests write as a driver writes them."""

import pytest

from softiommu.hardware.amd.commands import EVERYWHERE, Opcode, Wait
from softiommu.hardware.amd.events import DeviceEvent, Record
from softiommu.hardware.amd.model import AmdIommu
from softiommu.hardware.amd.presets import FULL
from softiommu.hardware.amd.registers import Control, DeviceTableBase, Registers, RingBase, Status
from softiommu.hardware.amd.tables import Dte, Dte0, Dte1, Dte2, Dte3
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS

SID, DOMAIN = 0x0120, 7
ON = {"IommuEn": 1, "CmdBufEn": 1, "EventLogEn": 1, "PprLogEn": 1, "PPREn": 1, "GTEn": 1}


def flags(low):
    """The flags of an event's word 0 that are set, by name."""
    return {name for name in ("PR", "PE", "RZ", "GN", "US", "NX", "RW", "I", "TR") if getattr(low, name)}


def pages_command(window=EVERYWHERE | 1, domain=DOMAIN, pasid=0, gn=0, pde=1):
    """INVALIDATE_IOMMU_PAGES; `window` is address and S."""
    return Opcode.INVALIDATE_IOMMU_PAGES << 60 | domain << 32 | pasid, window | pde << 1 | gn << 2


def answer(function, *args):
    """What a request gets: its translation, or the code of its event."""
    try:
        return function(*args)
    except TranslationFaultError as fault:
        return fault.reason


class Device:
    """The device's side of ATS and PRI, as a test sees it."""

    def __init__(self):
        self.invalidated, self.responses, self.answers = [], [], True

    def invalidate(self, pasid, first, last):
        self.invalidated.append((pasid, first, last))
        return self.answers

    def page_response(self, pasid, group, code):
        self.responses.append((pasid, group, code))


class Rig:
    """An IOMMU that runs."""

    def __init__(self, efr=FULL.efr, efr2=FULL.efr2, ram=32 << 20, header=FULL.header, **control):
        self.memory = PhysicalMemory(ram)
        self.messages, self.levels = [], []
        self.iommu = AmdIommu(
            self.memory,
            efr,
            efr2,
            interrupt=lambda *message: self.messages.append(message),
            wire=self.levels.append,
            header=header,
        )
        self.table = self.memory.alloc(64 << 10)
        self.commands, self.events, self.requests = (self.memory.alloc(4096) for _ in range(3))
        self.tail = 0
        self.set(Registers.DEVTAB_BASE, DeviceTableBase.of(SIZE=15, BASE=self.table >> 12))
        for register, at in (
            (Registers.CMD_BASE, self.commands),
            (Registers.EVENT_BASE, self.events),
            (Registers.PPR_BASE, self.requests),
        ):
            self.set(register, RingBase.of(LEN=8, BASE=at >> 12))
        self.control(**control)

    def set(self, register, value):
        self.iommu.write(register.offset, register.size, int(value))

    def control(self, **fields):
        self.set(Registers.CONTROL, Control.of(**{**ON, **fields}))

    @property
    def status(self):
        return Status(self.iommu.read(Registers.STATUS.offset, 8))

    def entry(self, q0=None, q1=None, q2=None, q3=None, gcr3=0, sid=SID):
        """Write a device table entry, and say so."""
        dte = Dte(
            Dte0.of(**{"V": 1, "TV": 1, "IR": 1, "IW": 1, **(q0 or {})}),
            Dte1.of(**{"DomainID": DOMAIN, **(q1 or {})}),
            Dte2.of(**(q2 or {})),
            Dte3.of(**(q3 or {})),
        )
        self.memory.write(self.table + 32 * sid, dte.with_gcr3_root(gcr3).to_bytes() if gcr3 else dte.to_bytes())
        self.submit(Opcode.INVALIDATE_DEVTAB_ENTRY << 60 | sid)

    def host(self, levels=4, **fields):
        """A host table, and an entry that uses it."""
        pages = PageTable(self.memory, VARIANTS[f"amdv1-{levels}level"], compiled=False)
        self.entry({"Mode": levels, "HostPageTableRoot": pages.root >> 12, **fields})
        return pages

    def submit(self, low, high=0):
        self.memory.write_u64(self.commands + self.tail, int(low))
        self.memory.write_u64(self.commands + self.tail + 8, int(high))
        self.tail = (self.tail + 16) % 4096
        self.set(Registers.CMD_TAIL, self.tail)

    def completes(self):
        """Whether the command buffer still runs."""
        at = self.memory.alloc(4096)
        self.submit(Wait.of(OPCODE=Opcode.COMPLETION_WAIT, S=1, StoreAddress=at >> 3), 0x1234)
        return self.memory.read_u64(at) == 0x1234

    def take_events(self):
        """The records in the event log, which is empty then."""
        head, tail = (self.iommu.read(register.offset, 8) for register in (Registers.EVENT_HEAD, Registers.EVENT_TAIL))
        found = []
        while head != tail:
            low, high = (self.memory.read_u64(self.events + head + 8 * n) for n in range(2))
            found.append(Record(low, high))
            head = (head + 16) % 4096
        self.set(Registers.EVENT_HEAD, head)
        return found

    def event(self):
        """The one record in the event log: word 0 as an event of a device, and word 1."""
        (record,) = self.take_events()
        return DeviceEvent(record.low), record.high

    def blocked(self, iova, want, pasid=None, privileged=False, sid=SID):
        """Block a request; its event."""
        with pytest.raises(TranslationFaultError) as caught:
            self.iommu.translate(sid, iova, want, pasid, privileged)
        low, high = self.event()
        assert low.CODE == caught.value.reason
        assert low.DeviceID == sid
        return low, high

    def reach(self, iova, want, pasid=None, privileged=False, sid=SID):
        return self.iommu.translate(sid, iova, want, pasid, privileged).pa
