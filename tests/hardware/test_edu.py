"""edu: its registers as documented, its interrupts, and its DMA where it is and where it is not allowed."""

import pytest

from softiommu.clock import MS, ManualClock
from softiommu.hardware.bus import Port
from softiommu.hardware.devices.edu import Edu
from softiommu.hardware.iommu import Request, Translation, TranslationFaultError
from softiommu.hardware.msi import Kind
from softiommu.hardware.pci_config import CapabilityId
from softiommu.hardware.vtd.events import Reason
from softiommu.memory.physical import PhysicalMemory

COMMAND = 0x04
INVERSE, FACTORIAL, STATUS, IRQ, RAISE, ACK = 0x04, 0x08, 0x20, 0x24, 0x60, 0x64
SOURCE, DESTINATION, COUNT, DMA = 0x80, 0x88, 0x90, 0x98
BUFFER = 0x40000
ONES = 0xFFFFFFFF


class Rig:
    def __init__(self, iommu=None, clock=None, **keys):
        self.memory = PhysicalMemory(16 << 20)
        self.edu = Edu(Port(self.memory, 0x20, iommu), clock, **keys)
        self.function = self.edu.function
        self.heard = []
        self.function.on_interrupt = self.heard.append
        self.function.write_config(COMMAND, 2, 0x6)

    def read(self, offset, width=4):
        return self.function.read_bar(0, offset, width)

    def write(self, offset, value, width=4):
        self.function.write_bar(0, offset, width, value)

    def copy(self, source, destination, count, command):
        self.write(SOURCE, source, 8)
        self.write(DESTINATION, destination, 8)
        self.write(COUNT, count, 8)
        self.write(DMA, command, 8)


@pytest.fixture
def rig():
    return Rig()


def test_it_is_found_as_qemu_s_device(rig):
    assert rig.function.read_config(0, 4) == 0x11E81234
    assert rig.function.read_config(8, 4) == 0x00FF0010
    rig.function.write_config(0x10, 4, ONES)
    assert rig.function.read_config(0x10, 4) == 0xFFF00000
    assert rig.read(0) == 0x010000ED


def test_liveness_and_factorials(rig):
    rig.write(INVERSE, 0x12345678)
    assert rig.read(INVERSE) == 0xEDCBA987
    for number, expected in ((0, 1), (5, 120), (13, 1932053504), (33, 1 << 31), (34, 0), (ONES, 0)):
        rig.write(FACTORIAL, number)
        assert (rig.read(FACTORIAL), rig.read(STATUS)) == (expected, 0)


@pytest.mark.parametrize(
    ("offset", "width"), [(4, 8), (4, 2), (0x84, 4), (0x80, 2), (0x10, 4), (RAISE, 4), (BUFFER, 4)]
)
def test_what_is_not_allowed_reads_as_ones(rig, offset, width):
    rig.write(offset, 0, width)
    assert rig.read(offset, width) == (1 << 8 * width) - 1


def test_four_bytes_written_to_a_wide_register_clear_the_rest(rig):
    rig.write(SOURCE, 0x1122334455667788, 8)
    assert rig.read(SOURCE) == 0x55667788
    rig.write(SOURCE, 7)
    assert rig.read(SOURCE, 8) == 7


def test_without_memory_enable_nobody_answers(rig):
    rig.function.write_config(COMMAND, 2, 0)
    assert rig.read(0) == ONES


def test_the_line_follows_the_interrupt_status(rig):
    rig.write(STATUS, 0x80)
    rig.write(FACTORIAL, 3)
    rig.write(RAISE, 0x200)
    assert rig.read(IRQ) == 0x201
    assert [(i.kind, i.asserted) for i in rig.heard] == [(Kind.INTX, True)]
    rig.write(ACK, 1)
    assert rig.function.intx
    rig.write(ACK, 0x200)
    assert [i.asserted for i in rig.heard] == [True, False]


def test_with_msi_each_interrupt_is_a_message(rig):
    at = rig.function.find_capability(CapabilityId.MSI)
    rig.function.write_config(at + 4, 4, 0xFEE01000)
    rig.function.write_config(at + 12, 2, 0x4041)
    rig.function.write_config(at + 2, 2, 1)
    rig.write(RAISE, 2)
    rig.write(RAISE, 2)
    assert [(i.kind, i.vector, i.address, i.data) for i in rig.heard] == [(Kind.MSI, 0, 0xFEE01000, 0x4041)] * 2


def test_dma_goes_both_ways_through_the_buffer(rig):
    data = bytes(range(256)) * 8
    rig.memory.write(0x5008, data)
    rig.copy(0x5008, BUFFER + 64, len(data), 1)
    assert rig.read(DMA, 8) == 0
    assert rig.edu.buffer[64 : 64 + len(data)] == data
    rig.copy(BUFFER + 64, 0x9001, len(data), 7)
    assert rig.memory.read(0x9001, len(data)) == data
    assert rig.read(IRQ) == 0x100


@pytest.mark.parametrize(("inside", "count"), [(BUFFER + 1, 4096), (BUFFER - 1, 4), (0, 4), (BUFFER, 1 << 63)])
def test_a_transfer_that_leaves_the_buffer_is_not_made(rig, inside, count):
    rig.memory.write(0x5000, b"x" * 8192)
    rig.copy(0x5000, inside, count, 1)
    rig.copy(inside, 0x5000, count, 3)
    assert rig.read(DMA, 8) == 2
    assert rig.memory.read(0x5000, 8192) == b"x" * 8192
    assert not any(rig.edu.buffer)


def test_addresses_are_cut_to_the_dma_mask():
    for mask, expected in (((1 << 28) - 1, b"low!"), ((1 << 64) - 1, bytes(4))):
        rig = Rig(dma_mask=mask)
        rig.memory.write(0x5000, b"low!")
        rig.copy(1 << 40 | 0x5000, BUFFER, 4, 1)
        assert rig.edu.buffer[:4] == expected


def test_without_bus_mastering_a_read_leaves_zeros_and_a_write_does_nothing(rig):
    rig.edu.buffer[:] = b"b" * 4096
    rig.memory.write(0x5000, b"m" * 16)
    rig.function.write_config(COMMAND, 2, 0x2)
    rig.copy(BUFFER, 0x5000, 16, 3)
    assert rig.memory.read(0x5000, 16) == b"m" * 16
    rig.copy(0x5000, BUFFER + 8, 16, 1)
    assert rig.edu.buffer[:32] == b"b" * 8 + bytes(16) + b"b" * 8


class OnePage:
    """An IOMMU that lets one page through."""

    def translate(self, sid, iova, want, pasid=None, privileged=False):
        if iova >> 12 != 0x10:
            raise TranslationFaultError(Reason.NO_READ, Request(sid, iova, want))
        return Translation(iova - 0x8000, 12, 3)


def test_each_page_of_a_transfer_goes_through_or_fails_by_itself():
    rig = Rig(OnePage(), dma_mask=(1 << 64) - 1)
    rig.memory.write(0x8000, b"m" * 8192)
    rig.edu.buffer[:] = b"b" * 4096
    rig.copy(BUFFER, 0x10FF0, 64, 3)
    assert rig.memory.read(0x8FE0, 64) == b"m" * 16 + b"b" * 16 + b"m" * 32
    rig.copy(BUFFER, 0xFFF0, 64, 3)
    assert rig.memory.read(0x7FE0, 128) == bytes(32) + b"b" * 48 + b"m" * 48
    rig.copy(0x10FE0, BUFFER, 64, 1)
    assert rig.edu.buffer[:80] == b"m" * 16 + b"b" * 16 + bytes(32) + b"b" * 16
    rig.copy(0xFFF0, BUFFER + 1000, 64, 1)
    assert rig.edu.buffer[1000:1080] == bytes(16) + b"b" * 48 + b"b" * 16
    assert rig.read(DMA, 8) == 0


def test_a_transfer_past_the_last_address_goes_on_at_the_first():
    rig = Rig(dma_mask=(1 << 64) - 1)
    rig.memory.write(0, b"first")
    rig.edu.buffer[:16] = b"b" * 16
    rig.copy((1 << 64) - 4, BUFFER, 8, 1)
    assert rig.edu.buffer[:16] == bytes(4) + b"firs" + b"b" * 8


def test_with_a_clock_a_transfer_takes_its_time():
    clock = ManualClock()
    rig = Rig(clock=clock)
    rig.memory.write(0x5000, b"data")
    rig.copy(0x5000, BUFFER, 4, 5)
    assert rig.read(DMA, 8) == 5
    rig.copy(0x6000, BUFFER + 8, 8, 3)
    assert (rig.read(SOURCE, 8), rig.read(DESTINATION, 8), rig.read(COUNT, 8)) == (0x5000, BUFFER, 4)
    clock.advance(99 * MS)
    assert rig.read(DMA, 8) == 5
    clock.advance(MS)
    assert (rig.read(DMA, 8), rig.read(IRQ)) == (4, 0x100)
    assert rig.edu.buffer[:4] == b"data"


def test_reset_forgets_everything(rig):
    rig.edu.buffer[0] = 1
    rig.write(INVERSE, 0)
    rig.write(RAISE, 1)
    rig.function.reset()
    assert rig.heard[-1].asserted is False
    assert not rig.function.port.bus_master
    assert rig.function.read_config(COMMAND, 2) == 0
    rig.function.write_config(COMMAND, 2, 2)
    assert (rig.read(INVERSE), rig.read(IRQ), rig.edu.buffer[0]) == (0, 0, 0)


def test_as_a_conventional_device_it_has_no_reset_of_its_own():
    function = Rig(express=False).function
    assert not function.can_reset
    assert function.config_size == 256
    assert function.read_config(256, 4) == ONES
