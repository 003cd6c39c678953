"""A virtio-iommu with a hand-made driver: rings in memory, one request at a time."""

from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.virtio.commands import Attach, Code, Detach, Map, Probe, Tail, Type, Unmap, size_of, to_bytes
from softiommu.hardware.virtio.common import Status
from softiommu.hardware.virtio.events import Fault, Reason
from softiommu.hardware.virtio.model import VirtioIommu
from softiommu.hardware.virtio.presets import FULL
from softiommu.hardware.virtio.registers import Features, Registers
from softiommu.hardware.virtio.tables import Descriptor
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ

RAM = 16 << 20
DESC, AVAIL, USED = 0x1000, 0x2000, 0x3000
EVENT_DESC, EVENT_AVAIL, EVENT_USED = 0x4000, 0x5000, 0x6000
REQUEST, ANSWER, EVENT = 0x8000, 0x9000, 0xA000
READY = Status.of(ACKNOWLEDGE=1, DRIVER=1, FEATURES_OK=1, DRIVER_OK=1)
SIZE = 8
FAULT = size_of(Fault)


class Rig:
    def __init__(self, offer=FULL, accept=None, start=True, **callbacks):
        self.memory = PhysicalMemory(RAM)
        self.unit = VirtioIommu(self.memory, offer, **callbacks)
        self.offer = offer
        self.counts = [0, 0]
        if start:
            self.negotiate(offer.features if accept is None else accept)
            self.queue(0, DESC, AVAIL, USED)
            self.queue(1, EVENT_DESC, EVENT_AVAIL, EVENT_USED)
            self.status(READY)

    def write(self, register, value):
        self.unit.write(register.offset, register.size, value)

    def read(self, register):
        return self.unit.read(register.offset, register.size)

    def status(self, status):
        self.write(Registers.DEVICE_STATUS, status)

    def negotiate(self, features):
        self.counts = [0, 0]
        self.status(Status(0))
        self.status(Status.of(ACKNOWLEDGE=1, DRIVER=1))
        for half in (0, 1):
            self.write(Registers.DRIVER_FEATURE_SELECT, half)
            self.write(Registers.DRIVER_FEATURE, features >> 32 * half & 0xFFFFFFFF)
        self.status(Status.of(ACKNOWLEDGE=1, DRIVER=1, FEATURES_OK=1))
        return Status(self.read(Registers.DEVICE_STATUS)).FEATURES_OK

    def queue(self, number, desc, avail, used):
        self.write(Registers.QUEUE_SELECT, number)
        self.write(Registers.QUEUE_SIZE, SIZE)
        self.write(Registers.QUEUE_DESC, desc)
        self.write(Registers.QUEUE_DRIVER, avail)
        self.write(Registers.QUEUE_DEVICE, used)
        self.write(Registers.QUEUE_ENABLE, 1)
        for at in (avail, used):
            self.memory.write(at, bytes(4))

    def describe(self, table, index, **fields):
        self.memory.write(table + 16 * index, int(Descriptor.of(**fields)).to_bytes(16, "little"))

    def offer_head(self, number, avail, head):
        self.memory.write(avail + 4 + 2 * (self.counts[number] % SIZE), head.to_bytes(2, "little"))
        self.counts[number] = self.counts[number] + 1 & 0xFFFF
        self.memory.write(avail + 2, self.counts[number].to_bytes(2, "little"))

    def notify(self, number=0):
        self.unit.write(Registers.NOTIFY.at(number), 2, number)

    def used(self, used=USED):
        """How many chains came back, and the length of the last."""
        count = int.from_bytes(self.memory.read(used + 2, 2), "little")
        last = self.memory.read(used + 4 + 8 * ((count - 1) % SIZE), 8)
        return count, int.from_bytes(last[4:], "little")

    def raw(self, data, room):
        """Send bytes as a request with `room` bytes for the answer; (bytes written, the answer)."""
        self.memory.write(REQUEST, data)
        self.memory.write(ANSWER, b"\xee" * room)
        self.describe(DESC, 0, ADDR=REQUEST, LEN=len(data), NEXT=1, NEXT_INDEX=1)
        self.describe(DESC, 1, ADDR=ANSWER, LEN=room, WRITE=1)
        self.offer_head(0, AVAIL, 0)
        self.notify()
        return self.used()[1], self.memory.read(ANSWER, room)

    def send(self, request):
        written, answer = self.raw(to_bytes(request), size_of(Tail))
        assert written == size_of(Tail)
        return Code(Tail(int.from_bytes(answer, "little")).STATUS)

    def attach(self, domain, endpoint, **fields):
        return self.send(Attach.of(TYPE=Type.ATTACH, DOMAIN=domain, ENDPOINT=endpoint, **fields))

    def detach(self, domain, endpoint):
        return self.send(Detach.of(TYPE=Type.DETACH, DOMAIN=domain, ENDPOINT=endpoint))

    def map(self, domain, first, last, pa, **fields):
        rights = fields or {"READ": 1, "WRITE": 1}
        return self.send(Map.of(TYPE=Type.MAP, DOMAIN=domain, VIRT_START=first, VIRT_END=last, PHYS_START=pa, **rights))

    def unmap(self, domain, first, last, **fields):
        return self.send(Unmap.of(TYPE=Type.UNMAP, DOMAIN=domain, VIRT_START=first, VIRT_END=last, **fields))

    def probe(self, endpoint, room=None):
        request = to_bytes(Probe.of(TYPE=Type.PROBE, ENDPOINT=endpoint))
        return self.raw(request, self.offer.probe_size + 4 if room is None else room)

    def give_event_buffer(self, length=FAULT):
        self.describe(EVENT_DESC, 0, ADDR=EVENT, LEN=length, WRITE=1)
        self.offer_head(1, EVENT_AVAIL, 0)
        self.notify(1)

    def event(self):
        return Fault(int.from_bytes(self.memory.read(EVENT, FAULT), "little"))

    def reach(self, sid, iova, want=READ, pasid=None):
        try:
            return self.unit.translate(sid, iova, want, pasid).pa
        except TranslationFaultError as fault:
            return Reason(fault.reason)


def without(**fields):
    """The features of FULL, but for some."""
    return Features(FULL.features & ~Features.of(**fields))
