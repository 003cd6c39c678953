"""QEMU's e1000 network card in PHY loopback: thousands of reads and writes at chosen addresses per doorbell.

A packet is gathered from 4-byte fragments, each at an address to read, and lands in a buffer that is known to be
mapped: so its words tell where each read went. A packet of one word, repeated, is received into an address to write.

Intel 8254x software developer's manual, 3.2.3 (receive descriptors), 3.3.3 (transmit descriptors), 13.4 (registers).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from qemu.qtest import Qtest, store
from softiommu.words import Word, bit, bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MDIC, _RCTL, _TCTL = 0x20, 0x100, 0x400
_RECEIVE, _TRANSMIT = 0x2800, 0x3800
_BASE_LOW, _BASE_HIGH, _LENGTH, _HEAD, _TAIL = 0x00, 0x04, 0x08, 0x10, 0x18
#: Write PHY register 0: loopback, full duplex.
_PHY_LOOPBACK = 1 << 26 | 1 << 21 | 1 << 14 | 1 << 8


class _ReceiveControl(Word, width=32):
    EN = bit(1)
    UPE = bit(3)
    MPE = bit(4)
    LPE = bit(5)
    BAM = bit(15)
    SECRC = bit(26)


class _Transmit(Word):
    """The second word of a transmit descriptor."""

    LENGTH = bits(15, 0)
    EOP = bit(24)
    RS = bit(27)
    DD = bit(32)


#: Receive buffers have 2 KiB; a packet of so many fragments fits with its checksum.
_BUFFER, FRAGMENTS = 2048, 500
#: What a write stores: the smallest packet, one word over and over.
WRITE_BYTES = 60
MAX_READS, MAX_WRITES = 16384, 4096

#: The card's own memory: rings, landing buffers, payloads.
AREA = 2 << 20
_RX_RING, _LANDING, _PAYLOADS, LOOK = 0x80000, 0xC0000, 0x100000, 0x180000
_RING_BYTES = 0x80000
#: QEMU holds packets back for a second after the receiver was turned on.
_SETTLE_SECONDS = 1.1
#: In landing buffers before a packet comes.
UNTOUCHED = 0xEEEEEEEE


class Nic:
    """The card, by its registers' address; its area of memory at physical address `pa`."""

    def __init__(self, qtest: Qtest, bar: int, pa: int) -> None:
        self.qtest, self.bar = qtest, bar
        start = pa - qtest.ram_base
        self._words = np.frombuffer(qtest.ram, np.uint32, AREA // 4, start)
        self._transmit = np.frombuffer(qtest.ram, np.uint64, _RING_BYTES // 8, start).reshape(-1, 2)
        self._receive = np.frombuffer(qtest.ram, np.uint64, _RING_BYTES // 16, start + _RX_RING).reshape(-1, 2)
        self._iova = 0
        self._set(_MDIC, _PHY_LOOPBACK)
        self._set(_TCTL, 1 << 1)
        self._set(_RCTL, _ReceiveControl.of(EN=1, UPE=1, MPE=1, LPE=1, BAM=1, SECRC=1))
        time.sleep(_SETTLE_SECONDS)

    def _set(self, register: int, value: int) -> None:
        self.qtest.write(self.bar + register, 4, int(value))

    def move(self, iova: int) -> None:
        """The card reaches its area at `iova` from now on."""
        self._iova = iova

    def _rings(self, received: int) -> None:
        for ring, offset in ((_TRANSMIT, 0), (_RECEIVE, _RX_RING)):
            at = self._iova + offset
            registers = {_BASE_LOW: at & 0xFFFFFFFF, _BASE_HIGH: at >> 32, _LENGTH: _RING_BYTES // 2, _HEAD: 0}
            self.qtest.ask([store(self.bar + ring + r, 4, value) for r, value in registers.items()])
        self._set(_TRANSMIT + _TAIL, 0)
        self._set(_RECEIVE + _TAIL, received)

    def load_reads(self, iovas: NDArray[np.uint64]) -> None:
        """Prepare a 4-byte read of each address."""
        count = len(iovas)
        packets = -(-count // FRAGMENTS)
        self._transmit[:count, 0] = iovas
        self._transmit[:count, 1] = _Transmit.of(LENGTH=4)
        self._transmit[FRAGMENTS - 1 : count : FRAGMENTS, 1] |= np.uint64(_Transmit.EOP.mask)
        self._transmit[count - 1, 1] |= np.uint64(_Transmit.EOP.mask)
        self._receive[:packets, 0] = self._iova + _LANDING + _BUFFER * np.arange(packets, dtype=np.uint64)
        self._receive[:packets, 1] = 0
        self._words[_LANDING // 4 : (_LANDING + _BUFFER * packets) // 4] = UNTOUCHED
        self._rings(packets)

    def landed(self, count: int) -> NDArray[np.uint32]:
        """The words that the reads got."""
        packets = -(-count // FRAGMENTS)
        buffers = self._words[_LANDING // 4 : (_LANDING + _BUFFER * packets) // 4].reshape(packets, -1)
        return np.array(buffers[:, :FRAGMENTS].reshape(-1)[:count])

    def load_writes(self, iovas: NDArray[np.uint64], words: NDArray[np.uint32]) -> None:
        """Prepare a write to each address: WRITE_BYTES of its word."""
        count = len(iovas)
        payloads = self._words[_PAYLOADS // 4 : _PAYLOADS // 4 + 16 * count].reshape(count, 16)
        payloads[:] = words[:, None]
        self._transmit[:count, 0] = self._iova + _PAYLOADS + 64 * np.arange(count, dtype=np.uint64)
        self._transmit[:count, 1] = _Transmit.of(LENGTH=WRITE_BYTES, EOP=1)
        self._receive[:count, 0] = iovas
        self._receive[:count, 1] = 0
        self._rings(count)

    def look(self, iova: int) -> bool:
        """Fetch one descriptor, which lies at LOOK, by the address `iova`; whether the card could answer it there."""
        words = self._words[LOOK // 4 : LOOK // 4 + 4].view(np.uint64)
        words[:] = 0, _Transmit.of(RS=1)
        at = {_BASE_LOW: iova & 0xFFFFFFFF, _BASE_HIGH: iova >> 32, _LENGTH: 4096, _HEAD: 0}
        commands = [store(self.bar + _TRANSMIT + register, 4, value) for register, value in at.items()]
        self.qtest.ask([*commands, self.doorbell(0), self.doorbell(1)])
        return bool(_Transmit(int(words[1])).DD)

    def doorbell(self, upto: int) -> str:
        """The command that lets the card do what is prepared, up to the access of this number."""
        return store(self.bar + _TRANSMIT + _TAIL, 4, upto)

    def read(self, iovas: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Read a word at each address."""
        self.load_reads(iovas)
        self.qtest.ask([self.doorbell(len(iovas))])
        return self.landed(len(iovas))

    def write(self, iovas: NDArray[np.uint64], words: NDArray[np.uint32]) -> None:
        """Write WRITE_BYTES of its word to each address."""
        self.load_writes(iovas, words)
        self.qtest.ask([self.doorbell(len(iovas))])
