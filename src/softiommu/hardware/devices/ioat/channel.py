"""A channel: its state, its chain of descriptors, and what becomes of errors.

DMACOUNT says how many descriptors of the chain there are, modulo 2**16; the channel runs those that it has not run,
when that register is written. A chain may be a ring: it is the count that ends the work. A descriptor that writes
DMACOUNT could go on for ever, so one access runs no more than `BURST`, and the next one of this channel goes on. Most
of a long chain is run in the background, where there is one.

A channel that asks software for missing pages stays where it is until that has answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from softiommu.hardware.bus import DmaError, Port
from softiommu.hardware.devices.ioat.descriptors import DESCRIPTOR_SIZE, Descriptor, FillControl
from softiommu.hardware.devices.ioat.registers import (
    XFERCAP,
    ChainAddress,
    ChannelControl,
    ChannelRegisters,
    ChannelStatus,
    Command,
    Errors,
    State,
    Value16,
)
from softiommu.hardware.paging import PageMissing, PagingPort

#: Most descriptors that run in one access: any count, and a little.
BURST = 1 << 16
#: And before others have their turn.
SLICE = 32

_COUNTS = 1 << 16
_ADDRESSES = 1 << 64
#: Bytes that a fill repeats, and of CHANSTS.
_PATTERN, _STATUS = 8, 8


class ChannelError(Exception):
    """A descriptor that cannot be run: the bit of CHANERR that tells software, and a sentence for people."""

    def __init__(self, errors: Errors, why: str) -> None:
        super().__init__(why)
        self.errors = errors


class Job(NamedTuple):
    """A descriptor that can be run, and the bytes that it stores: none if it is a null descriptor."""

    descriptor: Descriptor
    data: bytes


class Notice(NamedTuple):
    """What software is to be told: by CHANSTS in memory, if any, and then by an interrupt."""

    status: ChannelStatus | None
    interrupt: bool


class Channel:
    """One channel. `interrupt` tells the engine that it has one, `refuse` people why it halts; `carry_on` is that of
    the function."""

    def __init__(
        self,
        port: Port | PagingPort,
        interrupt: Callable[[], None],
        refuse: Callable[[str], None],
        carry_on: Callable[[Callable[[], bool]], None],
    ) -> None:
        self._port, self._interrupt, self._refuse, self._carry_on = port, interrupt, refuse, carry_on
        self.registers = ChannelRegisters(self)
        self._state = State.HALTED
        #: The address of the last descriptor that was run, of the next one, and how many of the chain were.
        self._completed = self._next = self._done = 0
        #: Whether none of the chain was.
        self._fresh = True
        #: The descriptor that is being run, and what was not told yet.
        self._job: Job | None = None
        self._notices: deque[Notice] = deque()
        #: An interrupt that INT_DISABLE holds back.
        self._held = False
        #: Which chain this is: a descriptor's own DMA may end it.
        self._chain = 0
        self._working = False
        #: How many descriptors the last access may still run, here or in the background.
        self._left = 0

    @property
    def _waiting(self) -> int:
        """How many descriptors of the chain are still to be run."""
        return (int(self.registers.DMACOUNT) - self._done) % _COUNTS

    # Registers

    def reset(self) -> None:
        """As after power-on."""
        self.registers.reset()
        self._restart(State.HALTED, 0)
        self._notices.clear()
        self._held = False

    def on_read_CHANSTS(self) -> ChannelStatus:
        """The state, and how far the channel is."""
        return ChannelStatus.of(STATE=self._state, COMPLETED=self._completed >> 6)

    def on_read_CHANCTRL(self) -> int:
        """Who reads IN_USE as 0 has the channel: for others it is in use."""
        found = self.registers.CHANCTRL
        self.registers.CHANCTRL = found.replace(IN_USE=1)
        return found

    def on_write_CHANCTRL(self, old: ChannelControl, new: ChannelControl) -> None:
        """Give the channel back, and let interrupts come: one that waited comes now."""
        self.registers.CHANCTRL = new.replace(IN_USE=old.IN_USE & new.IN_USE)
        if self._held and not new.INT_DISABLE:
            self._held = False
            self._signal()

    def on_write_CHANCMD(self, old: Command, new: Command) -> None:
        """Carry a command out. Those of version 1, and more than one at a time, are errors."""
        self.registers.CHANCMD = Command(0)
        if new == Command.of(RESET=1):
            self._reset()
        elif new == Command.of(SUSPEND=1):
            if self._state is not State.HALTED:
                self._state = State.SUSPENDED
        elif new == Command.of(RESUME=1):
            self._resume()
        elif new:
            self._halt(Errors.of(COMMAND=1), f"{new!r} is no command")
            self.work()

    def _reset(self) -> None:
        """Errors stay until software says that it has seen them."""
        errors, mask = self.registers.CHANERR, self.registers.CHANERRMSK
        self.reset()
        self.registers.CHANERR, self.registers.CHANERRMSK = errors, mask

    def _resume(self) -> None:
        if self._state is State.SUSPENDED:
            self._state = State.ARMED if self._fresh else State.IDLE
            self._start()

    def on_write_CHAINADDR(self, old: ChainAddress, new: ChainAddress) -> None:
        """A new chain. A channel whose errors were not seen stays halted."""
        self._restart(State.HALTED if self.registers.CHANERR else State.ARMED, int(new))

    def _restart(self, state: State, first: int) -> None:
        self.registers.DMACOUNT = Value16(0)
        self._state, self._next = state, first
        self._completed = self._done = 0
        self._fresh, self._job = True, None
        self._chain += 1

    def on_write_DMACOUNT(self, old: Value16, new: Value16) -> None:
        """More descriptors."""
        self._start()

    # Work

    def _start(self) -> None:
        if self._state in (State.ARMED, State.IDLE) and self._waiting:
            self._state = State.ACTIVE
        self.work()

    def work(self) -> None:
        """Run what waits, as much as one access may."""
        if self._working:
            return  # a descriptor wrote a register: the loop below sees it
        in_background, self._left = self._left > 0, BURST
        if not in_background:
            self._carry_on(self._go_on)

    def _go_on(self) -> bool:
        """Run a slice of what waits; whether there is more to run."""
        self._working = True
        try:
            self._tell()
            for _ in range(min(SLICE, self._left)):
                if self._state is not State.ACTIVE:
                    break
                self._left -= 1
                self._step()
                self._tell()
        except PageMissing:
            self._left = 0  # the answer calls again
        finally:
            self._working = False
        if self._state is not State.ACTIVE:
            self._left = 0
        return self._left > 0

    def _step(self) -> None:
        at, chain = self._next, self._chain
        try:
            job = self._job = self._job or self._load(self._fetch(at))
            if job.data:
                self._write(job.descriptor.destination, job.data, Errors.of(WRITE_DATA=1))
        except ChannelError as error:
            if chain == self._chain:
                self._halt(error.errors, f"the descriptor at {at:#x}: {error}")
            return
        if chain == self._chain:
            self._complete(at, job.descriptor)

    def _fetch(self, at: int) -> Descriptor:
        """A descriptor, which must be one that can be run."""
        chain = Errors.of(CHAIN_ADDRESS=1) if self._fresh else None
        if at % DESCRIPTOR_SIZE:
            raise ChannelError(chain or Errors.of(NEXT_ALIGNMENT=1), f"it is at no multiple of {DESCRIPTOR_SIZE}")
        descriptor = Descriptor.from_bytes(self._read(at, DESCRIPTOR_SIZE, chain or Errors.of(NEXT_ADDRESS=1)))
        if not descriptor.valid:
            raise ChannelError(Errors.of(CONTROL=1), f"there is no such operation: {descriptor.control!r}")
        if not 1 <= descriptor.size <= 1 << XFERCAP:  # of null descriptors, too: drivers give them one byte
            raise ChannelError(Errors.of(LENGTH=1), f"{descriptor.size:#x} bytes: 1..{1 << XFERCAP:#x} are possible")
        return descriptor

    def _load(self, descriptor: Descriptor) -> Job:
        """What a descriptor stores. Nothing is stored unless all of it is there."""
        size, control = descriptor.size, descriptor.control
        if isinstance(control, FillControl):
            pattern = descriptor.source.to_bytes(_PATTERN, "little")
            data = (pattern * -(-size // _PATTERN))[:size]
        elif control.NULL:
            return Job(descriptor, b"")
        elif descriptor.source + size > _ADDRESSES:
            raise ChannelError(Errors.of(SOURCE_ADDRESS=1), "the source goes past 2**64")
        else:
            data = self._read(descriptor.source, size, Errors.of(READ_DATA=1))
        if descriptor.destination + size > _ADDRESSES:
            raise ChannelError(Errors.of(DESTINATION_ADDRESS=1), "the destination goes past 2**64")
        return Job(descriptor, data)

    def _read(self, iova: int, size: int, errors: Errors) -> bytes:
        """Bytes of memory. PageMissing; ChannelError with `errors`: they cannot be read."""
        try:
            return self._port.read(iova, size)
        except PageMissing:
            raise
        except DmaError as error:
            raise ChannelError(errors, str(error)) from error

    def _write(self, iova: int, data: bytes, errors: Errors) -> None:
        """Store bytes. PageMissing; ChannelError with `errors`: they cannot be stored."""
        try:
            self._port.write(iova, data)
        except PageMissing:
            raise
        except DmaError as error:
            raise ChannelError(errors, str(error)) from error

    def _complete(self, at: int, descriptor: Descriptor) -> None:
        """A descriptor was run: count it, and tell who wants to know."""
        self._completed, self._next, self._fresh, self._job = at, descriptor.next, False, None
        self._done = (self._done + 1) % _COUNTS
        if self._state is State.ACTIVE and not self._waiting:
            self._state = State.IDLE
        control = descriptor.control
        if control.COMPLETION_WRITE or control.INTERRUPT:
            status = self.on_read_CHANSTS() if control.COMPLETION_WRITE else None
            self._notices.append(Notice(status, bool(control.INTERRUPT)))

    def _halt(self, errors: Errors, why: str) -> None:
        """Stop at an error, and tell as software asked to be told. CHANERRMSK keeps interrupts away, not the halt.

        One that was halted has nothing more to tell, so that a driver cannot make it tell without end.
        """
        registers, halted = self.registers, self._state is State.HALTED
        self._state, self._job = State.HALTED, None
        self._refuse(f"halts, {errors!r}: {why}")
        registers.CHANERR = Errors(registers.CHANERR | errors)
        if halted:
            return
        status = self.on_read_CHANSTS() if registers.CHANCTRL.ERR_COMPLETION_EN else None
        interrupt = registers.CHANCTRL.ERR_INT_EN and errors & ~registers.CHANERRMSK
        self._notices.append(Notice(status, bool(interrupt)))

    def _tell(self) -> None:
        """Tell what was not told yet. PageMissing: it is told later."""
        while self._notices:
            notice = self._notices.popleft()
            try:
                if self._show(notice.status) and notice.interrupt:
                    self._signal()
            except PageMissing:
                self._notices.appendleft(notice)
                raise

    def _show(self, status: ChannelStatus | None) -> bool:
        """Store CHANSTS where software looks for it; False: that halts the channel. PageMissing."""
        if status is None:
            return True
        try:
            at, data = int(self.registers.CHANCMP), status.to_bytes(_STATUS, "little")
            self._write(at, data, Errors.of(COMPLETION_ADDRESS=1))
        except ChannelError as error:
            halted = self._state is State.HALTED
            self._halt(error.errors, f"a completion cannot be written: {error}")
            return halted
        return True

    def _signal(self) -> None:
        """Interrupt, and hold further ones back until software lets them come."""
        if self.registers.CHANCTRL.INT_DISABLE:
            self._held = True
            return
        self.registers.CHANCTRL = self.registers.CHANCTRL.replace(INT_DISABLE=1)
        self._interrupt()
