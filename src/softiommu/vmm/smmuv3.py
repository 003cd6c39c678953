"""A virtual SMMUv3: what a guest sees: register page, queues, interrupts, and its stream table.

Behind it is a vIOMMU of iommufd (`OnViommu`), or any IOMMU of a host that nests in software (`InSoftware`). An entry of
the stream table is read when a command names it.

A stream for which the guest's table has no entry, or an illegal one, is aborted without an event: no host tells of
transactions that meet such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from softiommu.hardware.cache import Shape
from softiommu.hardware.iommu import Request
from softiommu.hardware.smmuv3.configuration import Configuration
from softiommu.hardware.smmuv3.events import EVENT_BYTES
from softiommu.hardware.smmuv3.faults import SmmuFaultError
from softiommu.hardware.smmuv3.records import RecordQueue
from softiommu.hardware.smmuv3.registers import CmdqProd, CommandError, Cr0, Gbpa, Gerror
from softiommu.hardware.smmuv3.rules import RegisterRules
from softiommu.hardware.smmuv3.signals import Signals, Wire
from softiommu.hardware.smmuv3.streams import Stream, read_stream
from softiommu.hardware.smmuv3.tables import Config, Ste0, Ste1
from softiommu.vmm.smmuv3_commands import Commands

if TYPE_CHECKING:
    from softiommu.api import VfioDevice
    from softiommu.hardware.smmuv3.presets import Identity
    from softiommu.memory.physical import PhysicalMemory

#: What the kernel takes of a guest's STE (struct iommu_hwpt_arm_smmuv3), beside the bits that choose stage 1.
_STAGE1 = sum(field.mask for field in (Ste1.S1DSS, Ste1.S1CIR, Ste1.S1COR, Ste1.S1CSH, Ste1.S1STALLD))
_DIRECTORIES = Shape(4, 4)


class Ste(NamedTuple):
    """What a guest's entry says of a stream: as the kernel takes it, and decoded (None: no stage 1)."""

    word0: int
    word1: int = 0
    stream: Stream | None = None

    @property
    def config(self) -> Config:
        """What is done with the stream: abort, bypass, stage 1."""
        return Ste0(self.word0).CONFIG


_ABORT = Ste(int(Ste0.of(V=1, CONFIG=Config.ABORT)))
_BYPASS = Ste(int(Ste0.of(V=1, CONFIG=Config.BYPASS)))


class Backing(Protocol):
    """The host's IOMMU, as the front end uses it."""

    @property
    def passed(self) -> Mapping[int, object]:
        """The guest's devices, by the guest's names."""
        ...

    def plug(self, sid: int, device: VfioDevice, contexts: Configuration) -> None:
        """A device comes. `contexts` reads the guest's context descriptors. OSError."""
        ...

    def unplug(self, sid: int) -> None:
        """A device goes."""
        ...

    def use(self, sid: int, ste: Ste) -> None:
        """A device's entry is this now, or is still."""
        ...

    def forward(self, commands: list[tuple[int, int]]) -> tuple[int, CommandError]:
        """Carry commands out: how many were, and what was wrong with the next."""
        ...

    def events(self) -> Iterator[Sequence[int] | None]:
        """The event records that wait; None: some were lost."""
        ...

    def close(self) -> None:
        """Let go of what the host has of it."""
        ...


class VirtualSmmu(RegisterRules):
    """An SMMU with `identity`'s ID registers. `memory` is the guest's RAM by the guest's addresses.

    The guest's accesses are `read` and `write`. Messages go to `memory`, or where that has no RAM to
    `interrupt(address, data)`; `wired` is told of an output that is asserted. Events come to the guest when the VMM
    calls `service`.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        backing: Backing,
        identity: Identity,
        interrupt: Callable[[int, int], None] | None = None,
        wired: Callable[[Wire], None] | None = None,
    ) -> None:
        identity.check()
        super().__init__(identity)
        self._backing = backing
        self.signals = Signals(memory, self.registers, interrupt, wired)
        self._records = RecordQueue(
            memory, self.registers, self.signals, Wire.EVENTQ, EVENT_BYTES, identity.idr1.EVENTQS
        )
        self._table = Configuration(memory, identity, self.registers, _DIRECTORIES, _DIRECTORIES)
        self._commands = Commands(self, memory)

    # Devices

    @property
    def passed(self) -> Mapping[int, object]:
        """The guest's devices, by the guest's names."""
        return self._backing.passed

    def plug(self, sid: int, device: VfioDevice) -> None:
        """Pass a device to the guest, which knows it by `sid`. OSError: the name or the device is taken."""
        self._backing.plug(sid, device, self._table)
        self._backing.use(sid, self._ste(sid))

    def unplug(self, sid: int) -> None:
        """Take a device away: its DMA is blocked."""
        self._backing.unplug(sid)

    def close(self) -> None:
        """Take all devices away. The parent, and the vIOMMU on it, are the VMM's own."""
        for sid in list(self.passed):
            self.unplug(sid)
        self._backing.close()

    def service(self) -> None:
        """Bring the events that wait to the guest. To be called when the host has some."""
        for record in self._backing.events():
            if not self._records.enabled:
                continue
            if record is None or self._records.full:
                self._records.overflow()
            else:
                self._records.push(*record)

    # Streams

    def streams_changed(self, first: int, last: int, leaf: bool) -> list[int]:
        """The guest says that STEs changed: these are read again. The devices whose they are."""
        self._table.forget_streams(first, last, leaf)
        chosen = [sid for sid in self.passed if first <= sid <= last]
        for sid in chosen:
            self._backing.use(sid, self._ste(sid))
        return chosen

    def _ste(self, sid: int) -> Ste:
        """What becomes of a stream: by its STE, or while SMMUEN is 0, by GBPA."""
        if not self.registers.CR0ACK.SMMUEN:
            return _ABORT if self.registers.GBPA.ABORT else _BYPASS
        try:
            words = self._table.entry(Request(sid, 0, 0))
        except SmmuFaultError:
            return _ABORT
        stream = read_stream(words, self.identity, self.registers.CR2)
        if stream is None:
            return _ABORT
        how = Ste0(words[0])
        if how.CONFIG != Config.S1:
            return _BYPASS if how.CONFIG == Config.BYPASS else _ABORT
        if not self.identity.idr1.SSIDSIZE:
            how = how.replace(S1CDMAX=0)
        if not how.S1CDMAX:
            how = how.replace(S1FMT=0)
        taken = _STAGE1 | (Ste1.EATS.mask if self.identity.idr0.ATS else 0)
        # Hardware does not look at reserved bits; the kernel refuses them.
        return Ste(int(how) & ~how.RESERVED, words[1] & taken, stream)

    # Commands

    def forward(self, commands: list[tuple[int, int]]) -> tuple[int, CommandError]:
        """Hand commands to the host: how many were carried out, and what was wrong with the next."""
        return self._backing.forward(commands)

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
        for sid in self.passed:
            self._backing.use(sid, self._ste(sid))

    def on_write_CMDQ_PROD(self, old: CmdqProd, new: CmdqProd) -> None:
        """The doorbell of the command queue."""
        self._commands.run()

    def on_write_GERRORN(self, old: Gerror, new: Gerror) -> None:
        """An error that is acknowledged lets its queue go on."""
        self._commands.run()
