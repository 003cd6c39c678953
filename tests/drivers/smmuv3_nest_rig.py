"""An SMMUv3 with its driver, and a guest on it: as the manager would set both up."""

import errno

import pytest

from drivers.smmuv3_guest import RAM, RAM_SIZE, Guest, context
from softiommu.abi.iommufd import HwptDataType, InvalidateDataType, VeventArmSmmuv3
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.drivers.smmuv3.driver import SmmuDriver
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ

RW = Prot.READ | Prot.WRITE
SID, VSID, OTHER = 0x20, 0x7, 0x28
HOST_RAM = 1 << 30
EDU = Function("edu", (SID,), ats=True)
COMMANDS = InvalidateDataType.VIOMMU_INVALIDATE_DATA_ARM_SMMUV3
STE = HwptDataType.ARM_SMMUV3


class Bytes:
    """A program whose memory is what it gives."""

    def __init__(self, raw):
        self.raw = raw

    def read(self, va, length):
        return self.raw[va - 4096 : va - 4096 + length]

    @classmethod
    def struct(cls, struct, data_type, length=None):
        raw = struct.to_bytes()
        length = len(raw) if length is None else length
        return UserData(cls(raw.ljust(length, b"\0")), 4096, length, data_type)

    @classmethod
    def array(cls, commands, data_type=COMMANDS, length=16):
        raw = b"".join(
            (low.to_bytes(8, "little") + high.to_bytes(8, "little")).ljust(length, b"\0")[:length]
            for low, high in commands
        )
        return UserArray(cls(raw), 4096, data_type, length, len(commands))


class Host:
    """The manager, as a vIOMMU needs it: events are kept while somebody listens."""

    flags = 0

    def __init__(self):
        self.events, self.listens = [], True

    def report_event(self, type, data):
        if not self.listens:
            raise UapiError(errno.EOPNOTSUPP, "nobody listens")
        self.events.append((type, VeventArmSmmuv3.from_bytes(data)))


class Endpoint:
    """A device TLB that is told what to forget."""

    def __init__(self):
        self.invalidated, self.answers = [], True

    def invalidate(self, pasid, first, last):
        self.invalidated.append((pasid, first, last))
        return self.answers


class Rig:
    """An SMMU, its driver, a guest whose RAM the parent shows, and a device with a name in the guest."""

    def __init__(self, identity=FULL, function=EDU, named=True):
        self.memory = PhysicalMemory(32 << 20)
        self.unit = Smmu(self.memory, identity, wired=lambda wire: self.log.extend(self.driver.faults.take()))
        self.log = []
        self.driver = SmmuDriver(self.memory, self.unit)
        self.device = self.driver.device(function)
        self.guest = Guest()
        self.memory.map_window(HOST_RAM, self.guest.memory.file, 0, RAM_SIZE)
        self.parent = self.device.alloc_paging(DomainFlags.NEST_PARENT, None)
        self.parent.map(RAM, HOST_RAM, RAM_SIZE, RW)
        self.host = Host()
        self.viommu = self.device.alloc_viommu(1, self.parent, self.host, None)
        if named:
            self.viommu.add_vdevice(self.device, VSID)

    def nested(self, given=None, **fields):
        given = given or self.guest.ste(**fields)
        return self.viommu.alloc_nested(self.device, 0, Bytes.struct(given, STE))

    def entry(self, sid=SID):
        return [self.memory.read_u64(self.driver.routes._streams[sid].at + 8 * n) for n in range(8)]

    def reach(self, iova, want=READ, pasid=None, sid=SID):
        try:
            return self.unit.translate(sid, iova, want, pasid).pa
        except TranslationFaultError as fault:
            return Event(fault.reason)

    def invalidate(self, *commands, **keys):
        handled = Handled()
        try:
            self.viommu.invalidate(Bytes.array(commands, **keys), handled)
        except UapiError as error:
            return error.errno, handled.count
        return 0, handled.count

    def mapped(self, ssid=0, asid=5, iova=0x1000, target=RAM + 0x100000):
        """A stage 1 of the guest's with one page."""
        pages = self.guest.pages()
        pages.map(iova, target, 0x1000, RW.value)
        self.guest.set_context(ssid, context(pages, asid))
        return pages


def errno_of(call, *arguments):
    with pytest.raises(UapiError) as caught:
        call(*arguments)
    return caught.value.errno
