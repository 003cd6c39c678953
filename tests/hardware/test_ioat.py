"""I/OAT: a small driver lays out chains; they run as told, stop at what is wrong, and interrupts come when let."""

import pytest
from ioat_driver import (
    ACTIVE,
    ARMED,
    ATTNSTATUS,
    CAPABILITY,
    CBVER,
    CHAINADDR,
    CHANCMD,
    CHANCMP,
    CHANCNT,
    CHANCTRL,
    CHANERR,
    CHANERRMSK,
    CHANSTS,
    COMPLETE,
    COPY,
    DATA,
    DMACOUNT,
    ERROR_COMPLETION,
    ERROR_INTERRUPT,
    FENCE,
    FILL,
    HALTED,
    IDLE,
    INT,
    INTERRUPT,
    INTRCTRL,
    MASTER,
    NULL,
    REARM,
    RESET,
    RESUME,
    RING,
    STATUS,
    SUSPEND,
    SUSPENDED,
    VECTORS,
    XFERCAP,
    IoatDriver,
    descriptor,
)

from softiommu.errors import ModelError
from softiommu.hardware.bus import Port
from softiommu.hardware.devices.ioat import channel
from softiommu.hardware.devices.ioat.engine import Ioat
from softiommu.hardware.msi import Kind
from softiommu.hardware.pci_config import CapabilityId
from softiommu.memory.physical import Mmio, PhysicalMemory

A, B, C = DATA, DATA + 0x2000, DATA + 0x4000
WHOLE = 1 << 64


@pytest.fixture
def driver():
    return IoatDriver().start()


def pattern(length, seed=1):
    return bytes((seed * 7 + n * 13 + (n >> 8)) & 255 for n in range(length))


# Registers


def test_it_is_found_as_the_chip_is(driver):
    config = driver.function.read_config
    assert (config(0, 4), config(8, 4)) == (0x20218086, 0x08800004)
    assert (driver.read(CHANCNT, 1), driver.read(XFERCAP, 1), driver.read(CBVER, 1)) == (1, 12, 0x32)
    assert driver.read(CAPABILITY) == 1 << 6
    assert driver.read(0x100, 8) == driver.read(0x40) == 0
    driver.function.write_config(0x10, 4, 0xFFFFFFFF)
    assert config(0x10, 4) == 0xFFFFC004


@pytest.mark.parametrize("channels", [0, 9])
def test_there_are_one_to_eight_channels(channels):
    with pytest.raises(ModelError, match="channels"):
        Ioat(Port(PhysicalMemory(1 << 20), 0), channels)


def test_who_reads_in_use_as_0_has_the_channel(driver):
    assert [driver.read(CHANCTRL, 2) & 0x100 for _ in range(3)] == [0, 0x100, 0x100]
    driver.write(CHANCTRL, 0x100, 2)
    assert driver.read(CHANCTRL, 2) & 0x100
    driver.write(CHANCTRL, 0, 2)
    assert [driver.read(CHANCTRL, 2) for _ in range(2)] == [0, 0x100]


# Work


@pytest.mark.parametrize("size", [1, 7, 2000, 4096])
def test_it_copies(driver, size):
    driver.memory.write(A + 3, pattern(size))
    assert driver.run(A + 3, B + 5, size) == IDLE
    assert driver.memory.read(B + 4, size + 2) == b"\0" + pattern(size) + b"\0"
    assert driver.told == (RING, IDLE)
    assert driver.read(CHANSTS, 8) == RING | IDLE
    assert driver.read(CHANERR) == 0


@pytest.mark.parametrize("size", [1, 8, 13, 4096])
def test_it_fills_with_eight_bytes_over_and_over(driver, size):
    word = 0x8877665544332211
    assert driver.run(word, B + 3, size, FILL | COMPLETE) == IDLE
    expected = (word.to_bytes(8, "little") * 512)[:size]
    assert driver.memory.read(B + 2, size + 2) == b"\0" + expected + b"\0"


def test_a_null_descriptor_moves_nothing_and_completes(driver):
    driver.memory.write(A, b"a" * 64)
    assert driver.run(A, B, 1, NULL | COMPLETE) == IDLE
    assert driver.memory.read(B, 64) == bytes(64)
    assert driver.told == (RING, IDLE)


def test_a_chain_runs_in_order_and_tells_where_it_is(driver):
    driver.memory.write(A, pattern(100))
    driver.put(A, B, 100, COPY | FENCE)
    driver.put(B, C, 100, COPY | COMPLETE)
    driver.put(0, B, 100, FILL)
    assert driver.memory.read(C, 100) == bytes(100)
    driver.ring_doorbell()
    assert driver.memory.read(C, 100) == pattern(100)
    assert driver.memory.read(B, 100) == bytes(100)
    assert driver.told == (driver.slot(1), ACTIVE)
    assert driver.read(CHANSTS, 8) == driver.slot(2) | IDLE


def test_a_ring_goes_round_and_so_does_the_count(driver):
    driver.slots = 4
    for number in range(4):
        driver.memory.write(driver.slot(number), descriptor(1, NULL, 0, 0, driver.slot(number + 1)))
    for count in (3, 40000, 65535, 5):
        driver.write(DMACOUNT, count, 2)
        assert driver.read(CHANSTS, 8) == driver.slot(count - 1) | IDLE
    assert driver.ioat.channels[0].registers.DMACOUNT == 5


def test_one_count_may_be_of_as_many_as_there_can_be_and_each_completes(driver):
    driver.memory.write(driver.slot(0), descriptor(1, NULL | COMPLETE | INTERRUPT, 0, 0, driver.slot(0)))
    driver.write(DMACOUNT, 65535, 2)
    assert driver.ioat.channels[0].on_read_CHANSTS() == RING | IDLE
    assert driver.told == (RING, IDLE)


def test_a_count_that_does_not_change_runs_nothing(driver):
    driver.run(A, B, 64)
    driver.memory.write_u64(driver.done, 0)
    driver.ring_doorbell()
    assert driver.told == (0, 0)


def test_the_descriptor_behind_the_last_is_not_looked_at(driver):
    assert driver.run(A, B, 64, following=13) == IDLE
    assert driver.read(CHANERR) == 0


# States


def test_a_channel_is_halted_until_it_has_a_chain():
    driver = IoatDriver()
    assert driver.state == HALTED
    driver.write(DMACOUNT, 1, 2)
    driver.write(CHANCMD, SUSPEND, 1)
    assert driver.state == HALTED
    driver.write(CHAINADDR, RING, 8)
    assert driver.read(CHANSTS, 8) == ARMED
    assert driver.read(DMACOUNT, 2) == 0


def test_a_reset_forgets_the_chain_and_keeps_errors(driver):
    driver.run(A, B, 0)
    driver.write(CHANERRMSK, 1)
    driver.write(CHANCMD, RESET, 1)
    assert driver.read(CHANCMD, 1) == 0
    assert driver.read(CHANSTS, 8) == HALTED
    assert [driver.read(at, 8) for at in (CHAINADDR, CHANCMP)] == [0, 0]
    assert (driver.read(CHANERR), driver.read(CHANERRMSK)) == (1 << 11, 1)


def test_a_suspended_channel_takes_more_and_goes_on_when_resumed(driver):
    driver.write(CHANCMD, SUSPEND, 1)
    assert driver.state == SUSPENDED
    driver.write(CHANCMD, RESUME, 1)
    assert driver.state == ARMED
    driver.run(A, B, 64)
    driver.write(CHANCMD, SUSPEND, 1)
    assert driver.read(CHANSTS, 8) == RING | SUSPENDED
    driver.memory.write(A, b"more")
    assert driver.run(A, C, 4) == SUSPENDED
    assert driver.memory.read(C, 4) == bytes(4)
    driver.write(CHANCMD, RESUME, 1)
    assert driver.read(CHANSTS, 8) == driver.slot(1) | IDLE
    assert driver.memory.read(C, 4) == b"more"
    driver.write(CHANCMD, RESUME, 1)
    assert driver.state == IDLE


def test_a_new_chain_starts_a_suspended_channel_from_its_first_descriptor(driver):
    driver.run(A, B, 64)
    driver.write(CHANCMD, SUSPEND, 1)
    driver.chain(driver.ring)
    assert driver.read(CHANSTS, 8) == ARMED
    driver.memory.write(A, b"again")
    assert driver.run(A, B, 5) == IDLE
    assert driver.memory.read(B, 5) == b"again"


@pytest.mark.parametrize("command", [1, 2, 8, SUSPEND | RESET, 0xFF])
def test_a_command_that_there_is_not_halts(driver, command):
    driver.write(CHANCMD, command, 1)
    assert (driver.state, driver.read(CHANERR)) == (HALTED, 1 << 5)
    assert driver.told == (0, HALTED)


# Errors

LAST = WHOLE - 16


@pytest.mark.parametrize(
    ("what", "bit"),
    [
        ((LAST, B, 17, COPY), 0),
        ((A, LAST, 17, COPY), 1),
        ((0, LAST, 17, FILL), 1),
        ((1 << 40, B, 64, COPY), 8),
        ((A, 1 << 40, 64, COPY), 9),
        ((0, 1 << 40, 64, FILL), 9),
        ((A, B, 64, 0x87 << 24), 10),
        ((A, B, 64, 1 << 11), 10),
        ((A, B, 64, FILL | NULL), 10),
        ((A, B, 0, COPY), 11),
        ((A, B, 0, NULL), 11),
        ((A, B, 4097, COPY), 11),
        ((A, B, 0xFFFFFFFF, FILL), 11),
    ],
)
def test_what_cannot_be_run_halts_and_is_told(driver, what, bit):
    driver.put(A, C, 8, COPY)
    driver.put(*what)
    driver.put(A, C, 8, COPY | COMPLETE)
    driver.memory.write(A, b"a" * 4096)
    driver.ring_doorbell()
    assert driver.read(CHANERR) == 1 << bit
    assert driver.read(CHANSTS, 8) == RING | HALTED
    assert driver.told == (RING, HALTED)
    assert driver.memory.read(C, 8) == b"a" * 8
    assert driver.memory.read(B, 4096) == bytes(4096)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (
            (A, B, 4097, COPY),
            "<Errors 0x800 LENGTH=1>: the descriptor at 0x10000: 0x1001 bytes: 1..0x1000 are possible",
        ),
        ((1 << 40, B, 1, COPY), "<Errors 0x100 READ_DATA=1>: the descriptor at 0x10000: DMA at iova 0x10000000000: "),
        (
            (A, B, 1, 0x87 << 24),
            "<Errors 0x400 CONTROL=1>: the descriptor at 0x10000: there is no such operation: <Copy",
        ),
    ],
)
def test_people_hear_why(driver, what, why):
    driver.run(*what)
    (told,) = driver.refused
    assert told.startswith(f"channel 0 halts, {why}")


@pytest.mark.parametrize(("at", "bit"), [(RING + 1, 4), (RING + 32, 4), (1 << 40, 4)])
def test_a_chain_that_is_not_there_is_an_error_of_its_address(driver, at, bit):
    driver.chain(at)
    assert driver.state == ARMED
    driver.write(DMACOUNT, 1, 2)
    assert (driver.state, driver.read(CHANERR), driver.told) == (HALTED, 1 << bit, (0, HALTED))


@pytest.mark.parametrize(("following", "bit"), [(RING + 65, 3), (1 << 40, 2), (WHOLE - 64, 2)])
def test_a_next_descriptor_that_is_not_there_is_an_error_once_it_is_needed(driver, following, bit):
    assert driver.run(A, B, 64, following=following) == IDLE
    assert driver.run(A, B, 64) == HALTED
    assert driver.read(CHANERR) == 1 << bit
    assert driver.told == (RING, HALTED)


def test_a_completion_that_cannot_be_written_halts(driver):
    driver.write(CHANCMP, 1 << 40, 8)
    assert driver.run(A, B, 64) == HALTED
    assert driver.read(CHANERR) == 1 << 12
    assert driver.read(CHANSTS, 8) & ~63 == RING
    driver.start().write(CHANCMP, 1 << 40, 8)
    assert driver.run(A, B, 0) == HALTED
    assert driver.read(CHANERR) == 1 << 12 | 1 << 11


def test_an_error_is_told_in_memory_only_where_that_is_asked_for(driver):
    driver.start(0)
    assert driver.run(A, B, 0) == HALTED
    assert driver.told == (0, 0)


def test_a_halted_channel_tells_once(driver):
    driver.run(A, B, 0)
    driver.memory.write_u64(driver.done, 0)
    driver.write(CHANCMD, 1, 1)
    assert (driver.read(CHANERR), driver.told) == (1 << 11 | 1 << 5, (0, 0))


def test_a_halted_channel_has_no_chain_until_its_errors_were_seen(driver):
    driver.run(A, B, 0)
    driver.chain(driver.ring)
    assert driver.run(A, B, 64) == HALTED
    driver.write(CHANERR, 1)
    driver.chain(driver.ring)
    assert driver.state == HALTED
    driver.write(CHANERR, 1 << 11)
    assert (driver.read(CHANERR), driver.state) == (0, HALTED)
    driver.chain(driver.ring)
    assert driver.run(A, B, 64) == IDLE


def test_it_recovers_in_the_order_in_which_dpdk_does_that(driver):
    driver.run(A, B, 0)
    driver.write(CHANERR, driver.read(CHANERR))
    driver.write(CHANCMD, RESET, 1)
    driver.write(CHAINADDR, driver.slot(1), 8)
    driver.write(CHANCTRL, ERROR_COMPLETION, 2)
    driver.write(CHANCMP, driver.done, 8)
    assert driver.read(CHANSTS, 8) == ARMED
    driver.memory.write(driver.slot(1), descriptor(64, COMPLETE, A, B, 0))
    driver.write(DMACOUNT, 1, 2)
    assert driver.told == (driver.slot(1), IDLE)


def test_without_bus_mastering_nothing_is_reached(driver):
    driver.function.write_config(4, 2, 2)
    assert driver.run(A, B, 64) == HALTED
    assert driver.read(CHANERR) == 1 << 4 | 1 << 12


# Interrupts


def vectors(driver, count=1):
    """Turn MSI-X on, with a message of its own for each vector."""
    at = driver.function.find_capability(CapabilityId.MSIX)
    for number in range(count):
        for offset, value in ((0, 0xFEE00000), (8, 0x40 + number), (12, 0)):
            driver.function.write_bar(0, 0x2000 + 16 * number + offset, 4, value)
    driver.function.write_config(at + 2, 2, 1 << 15)


def test_with_vector_control_each_channel_has_its_message():
    ioat = Ioat(Port(memory := PhysicalMemory(16 << 20), 0x48), 3)
    first, last = (IoatDriver(ioat, memory, number).start() for number in (0, 2))
    vectors(first, 3)
    last.write(INTRCTRL, VECTORS, 1)
    last.run(A, B, 64, INTERRUPT)
    first.run(A, B, 64, INTERRUPT)
    assert [(i.kind, i.vector, i.data) for i in last.heard] == [(Kind.MSIX, 2, 0x42), (Kind.MSIX, 0, 0x40)]
    assert first.read(ATTNSTATUS) == 0


def test_an_interrupt_is_the_last_until_it_is_let_come_again(driver):
    vectors(driver)
    driver.write(INTRCTRL, MASTER | VECTORS, 1)
    for _ in range(3):
        driver.run(A, B, 64, INTERRUPT)
    assert driver.read(CHANCTRL, 2) & REARM
    assert len(driver.heard) == 1
    driver.write(CHANCTRL, REARM, 2)
    assert len(driver.heard) == 2
    driver.write(CHANCTRL, REARM, 2)
    assert not driver.read(CHANCTRL, 2) & REARM
    assert len(driver.heard) == 2


def test_the_line_is_asserted_until_somebody_looks(driver):
    driver.write(INTRCTRL, MASTER, 1)
    driver.run(A, B, 64, INTERRUPT)
    assert [(i.kind, i.asserted) for i in driver.heard] == [(Kind.INTX, True)]
    assert driver.read(INTRCTRL, 1) == MASTER | STATUS | INT
    assert [i.asserted for i in driver.heard] == [True, False]
    assert driver.read(INTRCTRL, 1) == STATUS
    assert [driver.read(ATTNSTATUS) for _ in range(2)] == [1, 0]
    driver.write(INTRCTRL, MASTER, 1)
    assert driver.read(INTRCTRL, 1) == MASTER
    driver.write(INTRCTRL, MASTER, 1)
    driver.write(CHANCTRL, REARM, 2)
    driver.run(A, B, 64, INTERRUPT)
    assert [i.asserted for i in driver.heard] == [True, False, True]


def test_who_does_not_read_whose_interrupt_it_is_hears_again(driver):
    at = driver.function.find_capability(CapabilityId.MSI)
    driver.function.write_config(at + 2, 2, 1)
    driver.write(INTRCTRL, MASTER, 1)
    driver.run(A, B, 64, INTERRUPT)
    assert [(i.kind, i.vector) for i in driver.heard] == [(Kind.MSI, 0)]
    driver.read(INTRCTRL, 1)
    driver.write(INTRCTRL, MASTER, 1)
    assert len(driver.heard) == 2
    driver.read(ATTNSTATUS)
    driver.write(INTRCTRL, MASTER, 1)
    assert len(driver.heard) == 2


def test_without_master_enable_the_shared_interrupt_waits(driver):
    vectors(driver)
    driver.run(A, B, 64, INTERRUPT)
    assert (driver.heard, driver.read(INTRCTRL, 1)) == ([], STATUS)
    driver.write(INTRCTRL, MASTER, 1)
    assert [(i.kind, i.vector) for i in driver.heard] == [(Kind.MSIX, 0)]


def test_errors_interrupt_unless_they_are_masked():
    for control, mask, expected in ((0, 0, 0), (ERROR_INTERRUPT, 0, 1), (ERROR_INTERRUPT, 1 << 11, 0)):
        driver = IoatDriver().start(control)
        vectors(driver)
        driver.write(INTRCTRL, VECTORS, 1)
        driver.write(CHANERRMSK, mask)
        assert driver.run(A, B, 0) == HALTED
        assert len(driver.heard) == expected


# Several channels, and reset


def test_channels_have_nothing_in_common():
    ioat = Ioat(Port(memory := PhysicalMemory(16 << 20), 0x48), 2)
    first, second = (IoatDriver(ioat, memory, number).start() for number in range(2))
    memory.write(A, b"both")
    assert (first.run(A, B, 0), second.run(A, C, 4)) == (HALTED, IDLE)
    assert (first.read(CHANERR), second.read(CHANERR)) == (1 << 11, 0)
    assert (first.told, second.told) == ((0, HALTED), (second.ring, IDLE))
    assert memory.read(C, 4) == b"both"
    assert first.read(0x180, 8) == 0


def test_a_function_level_reset_forgets_everything(driver):
    driver.write(INTRCTRL, MASTER, 1)
    driver.write(CHANERRMSK, 1)
    driver.run(A, B, 64, INTERRUPT)
    driver.run(A, B, 0)
    driver.function.reset()
    assert driver.heard[-1].asserted is False
    driver.function.write_config(4, 2, 6)
    assert driver.read(CHANSTS, 8) == HALTED
    assert [driver.read(at) for at in (CHANERR, CHANERRMSK, CHAINADDR, CHANCMP, ATTNSTATUS)] == [0] * 5
    assert (driver.read(CHANCTRL, 2), driver.read(INTRCTRL, 1), driver.read(CHANCNT, 1)) == (0, 0, 1)
    assert driver.start().run(A, B, 64) == IDLE


# A channel whose DMA reaches its own registers

WINDOW = 1 << 40


@pytest.fixture
def mirrored(driver):
    """A device whose BAR lies in memory, too."""

    def write(offset, data):
        for width in (8, 4, 2, 1):
            if len(data) == width:
                driver.function.write_bar(0, offset, width, int.from_bytes(data, "little"))

    driver.memory.map_window(WINDOW, Mmio(write), 0, 0x4000)
    return driver


def test_a_descriptor_that_resets_its_channel_does_not_complete(mirrored):
    mirrored.memory.write(A, bytes([RESET]))
    mirrored.put(A, WINDOW + CHANCMD, 1)
    mirrored.put(A, B, 64)
    mirrored.ring_doorbell()
    assert (mirrored.read(CHANSTS, 8), mirrored.told) == (HALTED, (0, 0))


def test_a_descriptor_that_gives_its_channel_a_chain_ends_the_one_it_is_in(mirrored):
    mirrored.memory.write_u64(A, RING + 0x800)
    mirrored.put(A, WINDOW + CHAINADDR, 8)
    mirrored.put(A, B, 64)
    mirrored.ring_doorbell()
    assert (mirrored.read(CHANSTS, 8), mirrored.told) == (ARMED, (0, 0))


def test_a_descriptor_that_suspends_its_channel_is_the_last(mirrored):
    mirrored.memory.write(A, bytes([SUSPEND]))
    mirrored.put(A, WINDOW + CHANCMD, 1)
    mirrored.put(A, B, 64)
    mirrored.ring_doorbell()
    assert mirrored.read(CHANSTS, 8) == RING | SUSPENDED
    mirrored.write(CHANCMD, RESUME, 1)
    assert mirrored.read(CHANSTS, 8) == mirrored.slot(1) | IDLE


def test_a_chain_that_never_ends_does_not_keep_the_program_waiting(mirrored, monkeypatch):
    monkeypatch.setattr(channel, "BURST", 1000)
    # The first always leaves an even count behind an odd number of descriptors, the second the other way round.
    for number, count in enumerate((0x8000, 1)):
        mirrored.memory.write_u32(A + 4 * number, count)
        mirrored.put(A + 4 * number, WINDOW + DMACOUNT, 2, following=mirrored.slot(1 - number))
    mirrored.ring_doorbell()
    assert mirrored.ioat.channels[0].on_read_CHANSTS() & 7 == ACTIVE
    assert mirrored.state == ACTIVE
    mirrored.write(CHANCMD, SUSPEND, 1)
    assert mirrored.state == SUSPENDED


def test_a_status_that_is_written_over_the_command_register_halts_once(mirrored):
    far = 1 << 32  # which as a command is one of version 1
    raw = descriptor(1, NULL | COMPLETE, 0, 0, 0)
    mirrored.memory.map_window(far, Mmio(lambda *_: None, lambda at, length: raw), 0, len(raw))
    mirrored.write(CHANCMP, WINDOW + 0x80, 8)
    mirrored.chain(far)
    mirrored.write(DMACOUNT, 1, 2)
    assert (mirrored.state, mirrored.read(CHANERR)) == (HALTED, 1 << 5)
    assert len(mirrored.refused) == 1
