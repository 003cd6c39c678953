"""A virtual SMMUv3: what a guest sees of a vIOMMU of iommufd: register page, queues, interrupts.

An STE becomes a nested HWPT when a command names it; the other commands go to the vIOMMU as they are, in batches.
Events come back from the vIOMMU with the guest's stream ids.

A stream for which the guest's table has no entry, or an illegal one, is aborted without an event: no vIOMMU tells of
transactions that meet such.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from errno import ETIMEDOUT
from functools import partial
from struct import unpack
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi.iommufd import (
    HwptArmSmmuv3,
    HwptDataType,
    InvalidateDataType,
    VeventArmSmmuv3,
    VeventqType,
    ViommuArmSmmuv3Invalidate,
)
from softiommu.hardware.cache import Shape
from softiommu.hardware.iommu import Request
from softiommu.hardware.smmuv3.configuration import Configuration
from softiommu.hardware.smmuv3.events import EVENT_BYTES
from softiommu.hardware.smmuv3.faults import SmmuFaultError
from softiommu.hardware.smmuv3.records import RecordQueue
from softiommu.hardware.smmuv3.registers import CmdqProd, CommandError, Cr0, Gbpa, Gerror
from softiommu.hardware.smmuv3.rules import RegisterRules
from softiommu.hardware.smmuv3.signals import Signals, Wire
from softiommu.hardware.smmuv3.streams import read_stream
from softiommu.hardware.smmuv3.tables import Config, Ste0, Ste1
from softiommu.vmm.passed import PassedDevice
from softiommu.vmm.smmuv3_commands import Commands

if TYPE_CHECKING:
    from softiommu.api import Hwpt, Vdevice, VfioDevice, Viommu
    from softiommu.hardware.smmuv3.presets import Identity
    from softiommu.memory.physical import PhysicalMemory
    from softiommu.vmm.passed import Note

_LOG = logging.getLogger(__name__)
#: What the kernel takes of a guest's STE (struct iommu_hwpt_arm_smmuv3), beside the bits that choose stage 1.
_STAGE1 = sum(field.mask for field in (Ste1.S1DSS, Ste1.S1CIR, Ste1.S1COR, Ste1.S1CSH, Ste1.S1STALLD))
_DIRECTORIES = Shape(4, 4)


class Ste(NamedTuple):
    """What a guest's entry says of a stream, as the kernel takes it."""

    word0: int
    word1: int = 0


_ABORT = Ste(int(Ste0.of(V=1, CONFIG=Config.ABORT)))
_BYPASS = Ste(int(Ste0.of(V=1, CONFIG=Config.BYPASS)))


class VirtualSmmu(RegisterRules):
    """An SMMU with `identity`'s ID registers, over a vIOMMU whose parent shows `memory` at the guest's addresses.

    The guest's accesses are `read` and `write`. Messages go to `memory`, or where that has no RAM to
    `interrupt(address, data)`; `wired` is told of an output that is asserted, `note` of what the host refuses. Events
    come to the guest when the VMM calls `service`; `depth` of them may wait until then.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        viommu: Viommu,
        identity: Identity,
        interrupt: Callable[[int, int], None] | None = None,
        *,
        wired: Callable[[Wire], None] | None = None,
        depth: int = 256,
        note: Note = _LOG.warning,
    ) -> None:
        identity.check()
        super().__init__(identity)
        self._viommu, self._note = viommu, note
        self.passed: dict[int, PassedDevice[Ste]] = {}
        self._names: dict[int, Vdevice] = {}
        self.signals = Signals(memory, self.registers, interrupt, wired)
        self._records = RecordQueue(
            memory, self.registers, self.signals, Wire.EVENTQ, EVENT_BYTES, identity.idr1.EVENTQS
        )
        self._table = Configuration(memory, identity, self.registers, _DIRECTORIES, _DIRECTORIES)
        self._commands = Commands(self, memory)
        #: The events that wait; its descriptor is what the VMM polls.
        self.events = viommu.event_queue(VeventqType.ARM_SMMUV3, depth, VeventArmSmmuv3.SIZE)

    # Devices

    def plug(self, sid: int, device: VfioDevice) -> None:
        """Pass a device to the guest, which knows it by `sid`. OSError: the name or the device is taken."""
        self._names[sid] = self._viommu.vdevice(device, sid)
        self.passed[sid] = PassedDevice(sid, device, self._note)
        self._read(self.passed[sid])

    def unplug(self, sid: int) -> None:
        """Take a device away: its DMA is blocked."""
        self.passed.pop(sid).close()
        self._names.pop(sid).destroy()

    def close(self) -> None:
        """Take all devices away, and let go of the event queue. The vIOMMU and its parent are the VMM's own."""
        for sid in list(self.passed):
            self.unplug(sid)
        self.events.close()

    def service(self) -> None:
        """Bring the events that wait to the guest. To be called when `events` is ready to be read."""
        while self.events.ready:
            for event in self.events.read():
                if not self._records.enabled:
                    continue
                if event.data is None or self._records.full:
                    self._records.overflow()
                else:
                    self._records.push(*unpack("<4Q", event.data))

    # Streams

    def streams_changed(self, first: int, last: int, leaf: bool) -> list[int]:
        """The guest says that STEs changed: these are read again. The devices whose they are."""
        self._table.forget_streams(first, last, leaf)
        chosen = [sid for sid in self.passed if first <= sid <= last]
        for sid in chosen:
            self._read(self.passed[sid])
        return chosen

    def _read(self, passed: PassedDevice[Ste]) -> None:
        ste = self._ste(passed.sid)
        passed.attach(None, ste, partial(self._make, passed, ste))

    def _make(self, passed: PassedDevice[Ste], ste: Ste) -> tuple[Hwpt, bool]:
        data = HwptDataType.ARM_SMMUV3, HwptArmSmmuv3(*ste)
        return passed.device.hwpt(self._viommu, 0, data), True

    def _ste(self, sid: int) -> Ste:
        """What becomes of a stream: by its STE, or while SMMUEN is 0, by GBPA."""
        if not self.registers.CR0ACK.SMMUEN:
            return _ABORT if self.registers.GBPA.ABORT else _BYPASS
        try:
            words = self._table.entry(Request(sid, 0, 0))
        except SmmuFaultError:
            return _ABORT
        if read_stream(words, self.identity, self.registers.CR2) is None:
            return _ABORT
        how = Ste0(words[0])
        if how.CONFIG != Config.S1:
            return _BYPASS if how.CONFIG == Config.BYPASS else _ABORT
        if not self.identity.idr1.SSIDSIZE:
            how = how.replace(S1CDMAX=0)
        if not how.S1CDMAX:
            how = how.replace(S1FMT=0)
        taken = _STAGE1 | (Ste1.EATS.mask if self.identity.idr0.ATS else 0)
        return Ste(int(how), words[1] & taken)

    # Commands

    def forward(self, commands: list[tuple[int, int]]) -> tuple[int, CommandError]:
        """Hand commands to the host: how many were carried out, and what was wrong with the next."""
        entries = [ViommuArmSmmuv3Invalidate(*words) for words in commands]
        kind = InvalidateDataType.VIOMMU_INVALIDATE_DATA_ARM_SMMUV3
        try:
            self._viommu.invalidate(kind, list(entries))
        except OSError as error:
            self._note(f"the host refuses a command of the guest: {error}")
            done: int = getattr(error, "handled", 0)
            return done, CommandError.ATC_INV_SYNC if error.errno == ETIMEDOUT else CommandError.ILL
        return len(commands), CommandError.NONE

    # Registers

    def read(self, offset: int, width: int) -> int:
        """The guest reads a register (4 or 8 bytes)."""
        return self.registers.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """The guest writes a register (4 or 8 bytes)."""
        self.registers.write(offset, width, value)

    def on_write_CR0(self, old: Cr0, new: Cr0) -> None:
        """It takes effect at once; bits of absent features stay 0."""
        idr0 = self.identity.idr0
        kept = new.replace(PRIQEN=0, ATSCHK=new.ATSCHK & idr0.ATS, VMW=0)
        self.registers.CR0 = self.registers.CR0ACK = kept
        if old.SMMUEN != kept.SMMUEN:
            self._read_all()
        self._commands.run()

    def on_write_GBPA(self, old: Gbpa, new: Gbpa) -> None:
        """It decides while translation is off."""
        super().on_write_GBPA(old, new)
        if not self.registers.CR0ACK.SMMUEN:
            self._read_all()

    def _read_all(self) -> None:
        for passed in self.passed.values():
            self._read(passed)

    def on_write_CMDQ_PROD(self, old: CmdqProd, new: CmdqProd) -> None:
        """The doorbell of the command queue."""
        self._commands.run()

    def on_write_GERRORN(self, old: Gerror, new: Gerror) -> None:
        """An error that is acknowledged lets its queue go on."""
        self._commands.run()
