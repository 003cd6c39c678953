"""Long work goes on in the background: the access that starts it does a little, and others have a turn meanwhile."""

import pytest
from ioat_driver import (
    ACTIVE,
    CHANCMD,
    CHANSTS,
    COPY,
    DATA,
    DMACOUNT,
    HALTED,
    IDLE,
    NULL,
    RESET,
    IoatDriver,
    descriptor,
)
from nvme_driver import CC, FLUSH

from softiommu.hardware.devices.ioat import channel as module
from softiommu.hardware.devices.ioat.channel import SLICE

COMMANDS = 16


class Background:
    """Keeps what devices hand over, and calls it once at each `turn`, as a front door does between calls."""

    def __init__(self, function):
        self.steps = []
        function.background = self.take

    def take(self, step):
        assert step not in self.steps, "it is here already"
        self.steps.append(step)
        return True

    def turn(self):
        self.steps = [step for step in self.steps if step()]
        return bool(self.steps)


@pytest.fixture
def channel():
    made = IoatDriver().start()
    made.background = Background(made.function)
    return made


def lay_out(channel, count):
    for number in range(count):
        channel.memory.write(DATA + number, bytes([number + 1]))
        channel.put(DATA + number, DATA + 0x1000 + number, 1, control=COPY)
    channel.ring_doorbell()


def moved(channel):
    return len(channel.memory.read(DATA + 0x1000, 64).rstrip(b"\0"))


def test_a_short_chain_is_run_by_the_access_that_starts_it(channel):
    lay_out(channel, SLICE)
    assert (channel.state, moved(channel), channel.background.steps) == (IDLE, SLICE, [])


def test_a_long_chain_is_run_slice_by_slice_whoever_looks(channel):
    lay_out(channel, SLICE + 20)
    for _ in range(3):
        assert channel.read(CHANSTS, 8) == channel.slot(SLICE - 1) | ACTIVE
    assert moved(channel) == SLICE
    assert not channel.background.turn()
    assert (channel.state, moved(channel)) == (IDLE, SLICE + 20)


def test_what_is_added_meanwhile_is_run_in_its_place(channel):
    lay_out(channel, SLICE + 1)
    lay_out(channel, 20)
    assert moved(channel) == SLICE
    while channel.background.turn():
        pass
    assert (channel.state, moved(channel)) == (IDLE, SLICE + 1)
    assert channel.read(CHANSTS, 8) == channel.slot(SLICE + 20) | IDLE


def test_a_reset_ends_it_and_the_next_chain_runs(channel):
    lay_out(channel, SLICE + 20)
    channel.write(CHANCMD, RESET, 1)
    assert channel.state == HALTED
    assert not channel.background.turn()
    assert moved(channel) == SLICE
    channel.chain(channel.ring)
    channel.count = SLICE + 20
    channel.ring_doorbell()
    while channel.background.turn():
        pass
    assert (channel.state, moved(channel)) == (IDLE, SLICE + 20)


def test_one_access_runs_as_much_here_and_in_the_background_as_it_would_here(channel, monkeypatch):
    monkeypatch.setattr(module, "BURST", SLICE + 10)
    channel.memory.write(channel.ring, descriptor(1, NULL, 0, 0, channel.ring))
    channel.write(DMACOUNT, 2 * SLICE + 20, 2)
    assert not channel.background.turn()
    assert channel.ioat.channels[0].on_read_CHANSTS() & 7 == ACTIVE
    assert channel.state == ACTIVE, "the next access goes on"
    assert not channel.background.turn()
    assert channel.ioat.channels[0].on_read_CHANSTS() & 7 == IDLE


@pytest.fixture
def drive(nvme):
    nvme.make_queues(id=2, size=64)
    nvme.background = Background(nvme.function)
    return nvme


def push(drive, count):
    for _ in range(count):
        drive.push(drive.rings[2], FLUSH, 1)
    drive.ring_doorbell(drive.rings[2])


def completed(drive):
    entries = drive.load(drive.rings[2].completions, 64 * 16)
    return sum(entries[16 * number + 14] & 1 for number in range(64))


def test_many_commands_are_run_slice_by_slice(drive):
    push(drive, 40)
    assert completed(drive) == COMMANDS
    push(drive, 10)
    assert completed(drive) == COMMANDS
    for done in (32, 48):
        assert drive.background.turn()
        assert completed(drive) == done
    assert not drive.background.turn()
    assert completed(drive) == 50


def test_a_controller_reset_ends_it(drive):
    push(drive, 40)
    drive.write(CC, 0)
    assert not drive.background.turn()
    assert completed(drive) == COMMANDS
    assert drive.enable() == 1
    drive.make_queues(id=2, size=64)
    push(drive, 20)
    while drive.background.turn():
        pass
    assert completed(drive) == 20
