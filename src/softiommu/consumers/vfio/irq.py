"""Interrupts of an open device: VFIO_DEVICE_SET_IRQS, and how the program hears of them (by eventfds).

A device raises one kind at a time: INTx, MSI or MSI-X. Two more are the host's own: an error of the device, and the
request to give it back.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENOTTY, ERANGE
from typing import TYPE_CHECKING

from softiommu.abi.vfio import IrqFlags, IrqInfo, IrqSet, IrqSetFlags as Set, PciIrq
from softiommu.consumers import eventfd
from softiommu.consumers.vfio.lines import Lines
from softiommu.errors import UapiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.consumers.calls import Call
    from softiommu.consumers.eventfd import Eventfd
    from softiommu.consumers.vfio.config import ConfigSpace
    from softiommu.hardware.msi import Interrupt
    from softiommu.hardware.pci import Function

_NUM_IRQS = len(PciIrq)
_DATA_SIZES = {Set.DATA_NONE: 0, Set.DATA_BOOL: 1, Set.DATA_EVENTFD: 4}
_U32 = 2**32 - 1


class Request:
    """One SET_IRQS: what it says, and its data as one value for each interrupt (a flag, or a descriptor)."""

    def __init__(self, cmd: IrqSet, values: list[int]) -> None:
        self.data = Set(cmd.flags) & Set.DATA_TYPE_MASK
        self.action = Set(cmd.flags) & Set.ACTION_TYPE_MASK
        self.start, self.count, self.values = cmd.start, cmd.count, values

    @property
    def single(self) -> bool:
        """Whether it is about interrupt 0 alone."""
        return self.start == 0 and self.count == 1

    @property
    def disables(self) -> bool:
        """Whether it turns the whole kind off."""
        return self.data is Set.DATA_NONE and not self.count

    def wanted(self, index: int) -> bool:
        """Whether interrupt `index` is meant, of a request without descriptors."""
        return self.data is Set.DATA_NONE or bool(self.values[index - self.start])


class Interrupts:
    """The interrupts of one open device."""

    def __init__(self, function: Function, config: ConfigSpace) -> None:
        self._config, self.lines = config, Lines(function, config)
        function.on_interrupt = self._deliver
        self.kind: PciIrq | None = None
        #: How many vectors are enabled.
        self._vectors = 0
        self._triggers: dict[int, Eventfd] = {}
        self._host: dict[PciIrq, Eventfd] = {}
        self._masked = False
        #: The eventfd that unmasks INTx, and what ends the watch over it.
        self._unmasks: Eventfd | None = None
        self._end_watch: Callable[[], None] | None = None

    def close(self) -> None:
        """Nobody hears of the device any more."""
        self.disable()
        self._host.clear()
        self.lines.function.on_interrupt = None

    def restore(self) -> None:
        """A reset has cleared what was set up in the device."""
        if self.kind is not None:
            self.lines.enable(self.kind, self._vectors, self._triggers)

    def disable(self) -> None:
        """No kind is enabled."""
        self._stop_watch()
        if self.kind is not None:
            self.lines.disable(self.kind)
        self.kind, self._vectors, self._config.msi_enabled = None, 0, None
        self._triggers.clear()

    def _enable(self, kind: PciIrq, vectors: int) -> None:
        self.kind, self._vectors = kind, vectors
        if kind is PciIrq.MSI:
            self._config.msi_enabled = (vectors - 1).bit_length()
        self.lines.enable(kind, vectors, self._triggers)

    def _deliver(self, interrupt: Interrupt) -> None:
        """The device raises an interrupt."""
        if self.lines.kind(interrupt) is not self.kind:
            return
        if self.kind is PciIrq.INTX:
            if interrupt.asserted and not self._masked:
                self._mask(True)
                self._signal(0)
        else:
            self._signal(interrupt.vector)

    def _signal(self, vector: int) -> None:
        if vector in self._triggers:
            self._triggers[vector].signal()

    # What there is

    def count(self, index: int) -> int:
        """How many interrupts of a kind the device has."""
        return self.lines.count(PciIrq(index))

    def info(self, call: Call) -> None:
        """VFIO_DEVICE_GET_IRQ_INFO. EINVAL: no such kind; errors are a kind of PCI Express devices only."""
        cmd = call.struct(IrqInfo)
        if cmd.index >= _NUM_IRQS or (cmd.index == PciIrq.ERR and not self.count(PciIrq.ERR)):
            raise UapiError(EINVAL, f"there are no interrupts of kind {cmd.index}")
        flags = IrqFlags.EVENTFD
        if cmd.index == PciIrq.INTX:
            flags |= IrqFlags.MASKABLE | IrqFlags.AUTOMASKED
        elif cmd.index != PciIrq.MSIX or not self.count(PciIrq.MSIX):
            # MSI-X vectors can be added one by one.
            flags |= IrqFlags.NORESIZE
        cmd.flags, cmd.count = int(flags), self.count(cmd.index)
        call.reply(cmd)

    # SET_IRQS

    def set(self, call: Call) -> None:
        """VFIO_DEVICE_SET_IRQS."""
        cmd = call.struct(IrqSet)
        request = Request(cmd, self._values(call, cmd))
        index = PciIrq(cmd.index)
        if request.action == Set.ACTION_TRIGGER:
            if index in (PciIrq.ERR, PciIrq.REQ):
                self._set_host(call, index, request)
            elif index is PciIrq.INTX:
                self._trigger_intx(call, request)
            else:
                self._trigger_messages(call, index, request)
        elif index is PciIrq.INTX and request.action in (Set.ACTION_MASK, Set.ACTION_UNMASK):
            self._mask_intx(call, request)
        else:
            raise UapiError(ENOTTY, f"{index.name} has no action {request.action!r}")

    def _values(self, call: Call, cmd: IrqSet) -> list[int]:
        """The data behind the structure. EINVAL: what it says cannot be; EFAULT."""
        known = Set.DATA_TYPE_MASK | Set.ACTION_TYPE_MASK
        if cmd.index >= _NUM_IRQS or cmd.count >= _U32 - cmd.start or cmd.flags & ~int(known):
            raise UapiError(EINVAL, f"index {cmd.index}, start {cmd.start}, count {cmd.count}, flags {cmd.flags:#x}")
        have = self.count(cmd.index)
        if cmd.start >= have or cmd.start + cmd.count > have:
            raise UapiError(EINVAL, f"there are {have} {PciIrq(cmd.index).name} interrupts")
        width = _DATA_SIZES.get(Set(cmd.flags) & Set.DATA_TYPE_MASK)
        if width is None:
            raise UapiError(EINVAL, f"flags {cmd.flags:#x} name no one type of data")
        if cmd.argsz - IrqSet.SIZE < cmd.count * width:
            raise UapiError(EINVAL, f"argsz {cmd.argsz} has no room for {cmd.count} values")
        if not width:
            return []
        raw = call.read(IrqSet.SIZE, cmd.count * width)
        return [int.from_bytes(raw[at : at + width], "little", signed=width == 4) for at in range(0, len(raw), width)]

    def _set_host(self, call: Call, index: PciIrq, request: Request) -> None:
        """Errors and requests: one eventfd each; data without descriptors tests it."""
        if request.start or request.count > 1:
            raise UapiError(EINVAL, f"there is one {index.name} interrupt")
        now = self._host.get(index)
        if request.data is Set.DATA_NONE and now is not None:
            if request.count:
                now.signal()
            else:
                del self._host[index]
        elif request.data is Set.DATA_NONE or not request.count:
            raise UapiError(EINVAL, f"{index.name} has no eventfd" if request.count else "the count is 0")
        elif request.data is Set.DATA_BOOL:
            if now is not None and request.values[0]:
                now.signal()
        elif request.values[0] == -1:
            self._host.pop(index, None)
        elif request.values[0] >= 0:
            self._host[index] = eventfd.find(call.caller, request.values[0])

    def request(self) -> None:
        """The host asks for the device back."""
        if PciIrq.REQ in self._host:
            self._host[PciIrq.REQ].signal()

    # INTx

    def _trigger_intx(self, call: Call, request: Request) -> None:
        on = self.kind is PciIrq.INTX
        if on and request.disables:
            self.disable()
            return
        if not (on or self.kind is None) or not request.single:
            raise UapiError(EINVAL, "INTx is one interrupt, and of one kind at a time")
        if request.data is Set.DATA_EVENTFD:
            trigger = eventfd.find(call.caller, request.values[0]) if request.values[0] >= 0 else None
            self._set_trigger(0, trigger)
            if not on:
                self._enable(PciIrq.INTX, 1)
                self._mask(True)
                self.command_changed()
        elif not on:
            raise UapiError(EINVAL, "INTx is not enabled")
        elif request.wanted(0) and not self._config.command.INTX_DISABLE:
            self._signal(0)

    def _mask_intx(self, call: Call, request: Request) -> None:
        if self.kind is not PciIrq.INTX or not request.single:
            raise UapiError(EINVAL, "INTx is not enabled, or not meant")
        if request.data is Set.DATA_EVENTFD and request.action == Set.ACTION_UNMASK:
            self._watch_unmask(call, request.values[0])
        elif request.data is Set.DATA_EVENTFD:
            raise UapiError(ENOTTY, "INTx is not masked by an eventfd")
        elif request.wanted(0) and request.action == Set.ACTION_MASK:
            self._mask(True)
        elif request.wanted(0):
            self.served()

    def served(self) -> None:
        """The program has served INTx: it may come again, unless INTx Disable forbids it."""
        if not self._config.command.INTX_DISABLE:
            self._unmask()

    def _watch_unmask(self, call: Call, fd: int) -> None:
        """From now on an eventfd says that INTx is served; -1: no longer. EBUSY: there is one already.

        The kernel forgets an eventfd when the program closes it for good, which we do not hear: here is where we ask.
        """
        if fd < 0:
            self._stop_watch()
            return
        event = eventfd.find(call.caller, fd)
        if call.watch is None:
            raise UapiError(ENOTTY, "nobody here can wait for an eventfd")
        if self._unmasks is not None and call.is_held(self._unmasks.fd):
            raise UapiError(EBUSY, "an eventfd unmasks INTx already")

        def hear() -> None:
            event.take()
            self.served()

        self._stop_watch()
        self._unmasks, self._end_watch = event, call.watch(event.fd, hear)

    def _stop_watch(self) -> None:
        if self._end_watch is not None:
            self._end_watch()
            self._unmasks = self._end_watch = None

    def command_changed(self) -> None:
        """The program wrote the Command register: INTx Disable masks as well."""
        if self.kind is PciIrq.INTX and self._config.command.INTX_DISABLE:
            self._mask(True)
        elif self.kind is PciIrq.INTX:
            self._unmask()

    def _mask(self, masked: bool) -> None:
        self._masked = masked
        self.lines.mask(masked)

    def _unmask(self) -> None:
        """The line may be heard again; one that is up is told at once, and stays masked."""
        if self._masked and self.lines.intx_pending:
            self._signal(0)
        elif self._masked:
            self._mask(False)

    # MSI, MSI-X

    def _trigger_messages(self, call: Call, index: PciIrq, request: Request) -> None:
        on = self.kind is index
        if on and request.disables:
            self.disable()
        elif not (on or self.kind is None):
            raise UapiError(EINVAL, f"{self.kind} is enabled: one kind at a time")
        elif request.data is Set.DATA_EVENTFD:
            if not on and not request.start + request.count:
                raise UapiError(ERANGE, "no vector is to be enabled")
            if not on:
                self._enable(index, request.start + request.count)
            try:
                self._set_block(call, request)
            except UapiError:
                if not on:
                    self.disable()
                raise
        elif not on:
            raise UapiError(EINVAL, f"{index.name} is not enabled")
        else:
            for vector in range(request.start, request.start + request.count):
                if request.wanted(vector):
                    self._signal(vector)

    def _set_block(self, call: Call, request: Request) -> None:
        """One eventfd for each vector, -1 takes it away; when one cannot be had, those before it are taken away."""
        for done, fd in enumerate(request.values):
            try:
                self._set_vector(call, request.start + done, fd)
            except UapiError:
                for vector in range(request.start, request.start + done):
                    self._set_trigger(vector, None)
                raise

    def _set_vector(self, call: Call, vector: int, fd: int) -> None:
        self._set_trigger(vector, None)
        if fd < 0:
            return
        if vector >= self._vectors and self.kind is not PciIrq.MSIX:
            raise UapiError(EINVAL, f"vector {vector} was not enabled: {self._vectors} were")
        self._set_trigger(vector, eventfd.find(call.caller, fd))

    def _set_trigger(self, vector: int, trigger: Eventfd | None) -> None:
        if trigger is None:
            self._triggers.pop(vector, None)
        else:
            self._triggers[vector] = trigger
        if self.kind is not None:
            self.lines.set_vector(self.kind, vector, trigger is not None)
