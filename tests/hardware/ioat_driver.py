"""A small driver of an I/OAT engine: it lays out a ring of descriptors, and runs it."""

import struct

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.ioat.engine import Ioat
from softiommu.memory.physical import PhysicalMemory

CHANCNT, XFERCAP, GENCTRL, INTRCTRL, ATTNSTATUS, CBVER, CAPABILITY = 0x00, 0x01, 0x02, 0x03, 0x04, 0x08, 0x10
CHANCTRL, CHANCMD, DMACOUNT, CHANSTS, CHAINADDR, CHANCMP, CHANERR, CHANERRMSK = (
    *(0x80, 0x84, 0x86, 0x88, 0x90, 0x98, 0xA8, 0xAC),
)
ACTIVE, IDLE, SUSPENDED, HALTED, ARMED = range(5)
SUSPEND, RESUME, RESET = 0x04, 0x10, 0x20
COPY, FILL = 0, 1 << 24
INTERRUPT, COMPLETE, FENCE, NULL = 1, 8, 16, 32
REARM, ERROR_COMPLETION, ERROR_INTERRUPT = 1, 4, 16
MASTER, STATUS, INT, VECTORS = 1, 2, 4, 8

RING, DONE, DATA = 0x10000, 0x8000, 0x100000


def descriptor(size, control, source, destination, following):
    """The bytes of one."""
    return struct.pack("<IIQQQ", size, control, source, destination, following).ljust(64, b"\0")


class IoatDriver:
    """One channel. Addresses are the device's: `shift` above those of memory."""

    def __init__(self, ioat=None, memory=None, channel=0, shift=0, slots=64):
        self.memory = memory or PhysicalMemory(16 << 20)
        self.ioat = ioat or Ioat(Port(self.memory, 0x48))
        self.function, self.channel, self.shift, self.slots = self.ioat.function, channel, shift, slots
        self.ring, self.done, self.count = RING + channel * 0x2000, DONE + channel * 64, 0
        self.heard = []
        self.function.on_interrupt = self.heard.append
        self.refused = []
        self.function.on_refusal = self.refused.append
        self.function.write_config(4, 2, 6)

    def read(self, offset, width=4):
        """Read a register: from 0x80 on, of this channel."""
        return self.function.read_bar(0, offset + (0x80 * self.channel if offset >= 0x80 else 0), width)

    def write(self, offset, value, width=4):
        """Write a register."""
        self.function.write_bar(0, offset + (0x80 * self.channel if offset >= 0x80 else 0), width, value)

    @property
    def state(self):
        """The channel's state."""
        return self.read(CHANSTS, 8) & 7

    def start(self, control=ERROR_COMPLETION):
        """Reset the channel, and give it the ring."""
        self.write(CHANERR, self.read(CHANERR))
        self.write(CHANCMD, RESET, 1)
        self.write(CHANCTRL, control, 2)
        self.write(CHANCMP, self.done + self.shift, 8)
        self.chain(self.ring)
        return self

    def chain(self, at):
        """Give it a chain, as Linux does: in two halves."""
        self.count = 0
        self.write(CHAINADDR, at + self.shift & 0xFFFFFFFF)
        self.write(CHAINADDR + 4, at + self.shift >> 32)

    def slot(self, number):
        """Where a descriptor of the ring lies, for the driver."""
        return self.ring + number % self.slots * 64

    def put(self, source, destination, size, control=COPY | COMPLETE, following=None):
        """Lay out the next descriptor of the ring, without telling the device."""
        after = self.slot(self.count + 1) + self.shift if following is None else following
        self.memory.write(self.slot(self.count), descriptor(size, control, source, destination, after))
        self.count = (self.count + 1) % 65536

    def ring_doorbell(self):
        """Tell it how many there are."""
        self.write(DMACOUNT, self.count, 2)

    def run(self, *what, **keys):
        """Lay out one and run it; the state then."""
        self.put(*what, **keys)
        self.ring_doorbell()
        return self.state

    @property
    def told(self):
        """What the last completion wrote: a descriptor's address, and the state."""
        word = self.memory.read_u64(self.done)
        return word & ~63, word & 63
