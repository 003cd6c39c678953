"""The ATS/PRI test device 1234:11e9: it copies one buffer of 4 KiB to or from memory, and asks for pages that miss.

ADDRESS, COMMAND and the buffer are as its test programs know them. With a PASID capability there is one more
register, PASID, which tags the requests. One that may be stalled has neither ATS nor PRI: the IOMMU holds its requests.
"""

from __future__ import annotations

from softiommu.hardware.ats import DeviceTlb, Refusal
from softiommu.hardware.bus import DmaError, Port
from softiommu.hardware.iommu import AtsIommu, ResponseCode, StallingIommu, TranslationFaultError
from softiommu.hardware.pci import Bar, Features, Function, Identity, Mapping
from softiommu.pagetable.kinds import READ, WRITE
from softiommu.registers import RegisterFile, reg, rw
from softiommu.words import Word, bit, bits

IDENTITY = Identity(0x1234, 0x11E9, 0x00FF00, 2, 0x1AF4, 0x1100)
BAR_SIZE = 4096
BUFFER_SIZE = 4096
#: Page requests that may be open at a time.
PAGE_REQUESTS = 2048

#: A transfer that was answered so often, and still finds nothing, is given up.
_ATTEMPTS = 16


class Address(Word):
    """Where the transfer is."""

    IOVA = bits(63, 0)


class Command(Word, width=32):
    """RUN starts a transfer, and is set while it lasts. TO_DEVICE: from memory into the buffer."""

    RUN = bit(0)
    TO_DEVICE = bit(1)


class PasidTag(Word, width=32):
    """Which PASID requests bear, if any."""

    PASID = bits(19, 0)
    VALID = bit(31)


class Registers(RegisterFile):
    """What BAR 0 shows."""

    STARTERS = frozenset({"COMMAND"})

    ADDRESS = reg(0x00, Address, rw)
    COMMAND = reg(0x08, Command, rw)
    PASID = reg(0x10, PasidTag, rw)


class PciTest:
    """The device. `ats` is the IOMMU in front of it, if that serves ATS; or `stalls`, if that holds its requests."""

    def __init__(
        self, port: Port, ats: AtsIommu | None = None, pasid_bits: int = 0, stalls: StallingIommu | None = None
    ) -> None:
        self._port = port
        self.registers = Registers(self)
        self.buffer = bytearray(BUFFER_SIZE)
        self._attempts = 0
        self._answer: ResponseCode | None = None
        self._waiting = False
        features = Features(
            ats=ats is not None,
            pri=PAGE_REQUESTS if ats else 0,
            pasid_bits=pasid_bits,
            stalls=stalls is not None,
        )
        bars = {0: Bar(BAR_SIZE, self.registers, is_64=True, mapping=Mapping.LEVEL)}
        self.function = Function(port, IDENTITY, bars, features, self.reset)
        self.tlb = DeviceTlb(self.function, ats, self._answered) if ats is not None else None
        if stalls is not None:
            stalls.listen(port.sid, self._resumed)

    def reset(self) -> None:
        """Registers and buffer as after power-on; a transfer that waits is forgotten."""
        self.registers.reset()
        self.buffer[:] = bytes(BUFFER_SIZE)
        self._waiting = False

    def on_write_COMMAND(self, old: Command, new: Command) -> None:
        """Start a transfer. While one lasts the register does not change."""
        if old.RUN:
            self.registers.COMMAND = old
        elif new.RUN:
            self._attempts, self._answer = 0, ResponseCode.SUCCESS
            self._go_on()

    def _answered(self, code: ResponseCode) -> None:
        """Software answered: go on, or give up. It may do so while it is still being asked."""
        self._answer = code
        if self._waiting:
            self._waiting = False
            self._go_on()

    def _resumed(self, again: bool) -> None:
        """A request that the IOMMU held is to be sent again, or is aborted."""
        self._answered(ResponseCode.SUCCESS if again else ResponseCode.INVALID)

    def _go_on(self) -> None:
        """Repeat while the answer is that the page is there now."""
        while self._answer == ResponseCode.SUCCESS:
            self._answer = None
            error = self._transfer()
            if error is not None and self._may_wait(error) and self._answer is None:
                self._waiting = True
                return
        self.registers.COMMAND = self.registers.COMMAND.replace(RUN=0)
        self.function.changed()

    def _transfer(self) -> DmaError | None:
        """Move the buffer; None: it is moved."""
        iova = int(self.registers.ADDRESS)
        try:
            if self.registers.COMMAND.TO_DEVICE:
                self.buffer[:] = self._port.read(iova, BUFFER_SIZE, self._pasid)
            else:
                self._port.write(iova, bytes(self.buffer), self._pasid)
        except DmaError as error:
            return error
        return None

    def _may_wait(self, error: DmaError) -> bool:
        """Whether there will be an answer: the request is held, or the page is not there and was asked for."""
        cause = error.__cause__
        if not isinstance(cause, TranslationFaultError):
            return False
        return cause.waits or (cause.reason is Refusal.NOTHING_THERE and self._ask(error.iova))

    def _ask(self, iova: int) -> bool:
        """Ask for the page of an address; False: that is not possible, or of no use."""
        self._attempts += 1
        if self.tlb is None or self._attempts > _ATTEMPTS:
            return False
        want = READ if self.registers.COMMAND.TO_DEVICE else WRITE
        return self.tlb.request_page(iova, want, self._pasid)

    @property
    def _pasid(self) -> int | None:
        tag = self.registers.PASID
        return tag.PASID if tag.VALID and self.function.pasid.PASID_CONTROL.ENABLE else None
