"""A virtio block device: a disk whose requests lie in one split virtqueue. Virtio 1.2, 5.2.

It reaches memory through its port only, so it offers ACCESS_PLATFORM, and a driver that does not take that is refused
(6.3). What its driver puts where it cannot be reached is an I/O error of the request, if the status byte can be
written; a queue that cannot be followed breaks the device until it is reset (2.1.2).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from softiommu.hardware.bus import DmaError
from softiommu.hardware.pci import Bar, Features as PciFeatures, Function, Identity
from softiommu.hardware.virtio.common import (
    CONFIG,
    NOTIFY_STRIDE,
    REGION,
    CommonRegisters,
    Isr,
    Number,
    Status,
    capabilities,
    notify,
)
from softiommu.hardware.virtio.queue import BrokenQueueError
from softiommu.hardware.virtio.transport import Transport
from softiommu.registers import array, reg, ro
from softiommu.words import Word, bit, bits

if TYPE_CHECKING:
    from softiommu.hardware.bus import Port
    from softiommu.hardware.devices.nvme.namespace import Backing
    from softiommu.hardware.virtio.queue import Chain

#: The device id of a modern block device (4.1.2.1), and virtio's own number of the kind (5).
IDENTITY = Identity(0x1AF4, 0x1042, 0x010000, 1, 0x1AF4, 0x1100)
DEVICE_ID = 2
SECTOR_LG2 = 9
QUEUE_ENTRIES = 256
#: Requests that are carried out before others have their turn.
_SLICE = 16
_HEADER, _ID_BYTES, _PIECE = 16, 20, 1 << 20


class Features(Word):
    """Feature bits of a block device (5.2.3), and those of any device that this one has (6)."""

    BLK_SIZE = bit(6)
    FLUSH = bit(9)
    INDIRECT_DESC = bit(28)
    VERSION_1 = bit(32)
    ACCESS_PLATFORM = bit(33)


OFFERED = Features.of(BLK_SIZE=1, FLUSH=1, INDIRECT_DESC=1, VERSION_1=1, ACCESS_PLATFORM=1)


class Kind(IntEnum):
    """Request types (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class Result(IntEnum):
    """Status of a request (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class Capacity(Word):
    """How many sectors of 512 bytes there are."""

    SECTORS = bits(63, 0)


class BlockSize(Word, width=32):
    """The block size that suits the disk."""

    BYTES = bits(31, 0)


class Registers(CommonRegisters):
    """BAR 0: the structures of the transport, and the configuration (5.2.4)."""

    CAPACITY = reg(CONFIG + 0x00, Capacity, ro)
    BLK_SIZE = reg(CONFIG + 0x14, BlockSize, ro)

    NOTIFY = array(notify(), count=1, stride=NOTIFY_STRIDE)


#: Bytes of the device's configuration: up to the last field that a feature of ours makes valid.
CONFIG_SIZE = 0x18


class VirtioBlk(Transport):
    """The device. A doorbell runs as many requests as the queue has entries; the rest waits for the next one."""

    registers: Registers

    def __init__(self, port: Port, backing: Backing, name: str = "softiommu") -> None:
        super().__init__(port, OFFERED, (1, QUEUE_ENTRIES), None, self._set_pin)
        self._backing, self._name = backing, name.encode()[:_ID_BYTES]
        self._is_running = False
        #: Requests that the last doorbell may still run, here or in the background.
        self._left = 0
        self.registers = Registers(self)
        bars = {0: Bar(REGION, self.registers, is_64=True)}
        features = PciFeatures(vendor=capabilities(0, CONFIG_SIZE, len(self.queues)))
        self.function = Function(port, IDENTITY, bars, features, self.reset)
        self.reset()

    def reset(self) -> None:
        """As after power-on; the disk keeps its bytes."""
        self._reset_transport()
        self.registers.CAPACITY = Capacity(self.sectors)
        self.registers.BLK_SIZE = BlockSize(1 << SECTOR_LG2)

    def _reset_device(self) -> None:
        self.reset()

    def _set_pin(self, level: bool) -> None:
        self.function.set_intx(level)

    @property
    def sectors(self) -> int:
        """How many sectors there are."""
        return self._backing.size >> SECTOR_LG2

    def on_write_DEVICE_STATUS(self, old: Status, new: Status) -> None:
        """Reset, or one step further: features are OK if the driver uses addresses as the platform translates them."""
        super().on_write_DEVICE_STATUS(old, new)
        if self.registers.DEVICE_STATUS.FEATURES_OK and not Features(self.negotiated).ACCESS_PLATFORM:
            self.registers.DEVICE_STATUS = new.replace(FEATURES_OK=0)

    def on_write_NOTIFY(self, number: int, old: Number, new: Number) -> None:
        """There are new requests. A doorbell that a request rings finds the device at work."""
        if self._is_running or not self._runs(self.queues[number]):
            return
        in_background, self._left = self._left > 0, self.queues[number].size
        if not in_background:
            self.function.carry_on(self._go_on)

    def _go_on(self) -> bool:
        """Carry some requests out; whether there may be more."""
        self._is_running, wanted = True, False
        try:
            wanted = self._drain()
        except (BrokenQueueError, DmaError) as error:
            self.function.on_refusal(f"the device needs a reset (DEVICE_NEEDS_RESET): {error}")
            self._left = 0
            self._break()
        finally:
            self._is_running = False
        if wanted:
            self._tell(self.queues[0].vector, Isr.of(QUEUE=1))
        return self._left > 0

    def _drain(self) -> bool:
        """Carry requests out; whether the driver wants to hear of it. BrokenQueueError; DmaError."""
        queue, wanted = self.queues[0], False
        for _ in range(min(_SLICE, self._left)):
            chain = queue.take() if self._runs(queue) else None
            if chain is None:
                self._left = 0
                break
            self._left -= 1
            written = self._carry_out(chain)
            if not self._runs(queue):
                self._left = 0
                return False  # what it wrote went to the registers, and reset the device
            wanted |= queue.give(chain, written)
        return wanted

    # Requests

    def _carry_out(self, chain: Chain) -> int:
        """Carry a request out; the bytes written. Without a header, or room for the status, it cannot be answered.

        DmaError: the status cannot be written.
        """
        if chain.readable < _HEADER or not chain.writable:
            raise BrokenQueueError(f"a request of {chain.readable} readable and {chain.writable} writable bytes")
        room = chain.writable - 1
        try:
            header = chain.read(_HEADER)
            kind, sector = int.from_bytes(header[:4], "little"), int.from_bytes(header[8:], "little")
            result, written = self._do(chain, kind, sector)
        except (DmaError, OSError) as error:
            self.function.on_refusal(f"a request fails: {error}")
            result, written = Result.IOERR, 0
        chain.write(room, bytes([result]))
        return written + 1

    def _do(self, chain: Chain, kind: int, sector: int) -> tuple[Result, int]:
        """One request: its status, and the bytes written before the status. DmaError; OSError: the disk fails."""
        room, data = chain.writable - 1, chain.readable - _HEADER
        if kind == Kind.IN:
            return (Result.OK, self._read(chain, sector, room)) if self._has(sector, room) else (Result.IOERR, 0)
        if kind == Kind.OUT and self._has(sector, data):
            self._write(chain, sector, data)
            return Result.OK, 0
        if kind == Kind.FLUSH:
            self._backing.flush()
            return Result.OK, 0
        if kind == Kind.GET_ID and room >= _ID_BYTES:
            chain.write(0, self._name.ljust(_ID_BYTES, b"\0"))
            return Result.OK, _ID_BYTES
        return Result.UNSUPP if kind not in tuple(Kind) else Result.IOERR, 0

    def _has(self, sector: int, length: int) -> bool:
        """Whether these are whole sectors of the disk."""
        whole, rest = divmod(length, 1 << SECTOR_LG2)
        inside = not rest and sector + whole <= self.sectors
        if not inside:
            self.function.on_refusal(f"a request for {length:#x} bytes at sector {sector}, of {self.sectors}")
        return inside

    def _read(self, chain: Chain, sector: int, length: int) -> int:
        for done in range(0, length, _PIECE):
            size = min(_PIECE, length - done)
            chain.write(done, self._backing.read((sector << SECTOR_LG2) + done, size))
        return length

    def _write(self, chain: Chain, sector: int, length: int) -> None:
        for done in range(0, length, _PIECE):
            size = min(_PIECE, length - done)
            self._backing.write((sector << SECTOR_LG2) + done, chain.read(size, _HEADER + done))
