"""An I/OAT engine that asks for missing pages: a descriptor goes on where it was once they are there, or fails."""

import pytest
from ioat_driver import (
    CHANCMD,
    CHANCTRL,
    CHANERR,
    CHANSTS,
    COMPLETE,
    COPY,
    DATA,
    ERROR_COMPLETION,
    ERROR_INTERRUPT,
    HALTED,
    IDLE,
    INTERRUPT,
    INTRCTRL,
    MASTER,
    RESUME,
    SUSPEND,
    SUSPENDED,
    IoatDriver,
)
from paging_platform import PAGE, Platform, allow

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.ioat.engine import Ioat
from softiommu.memory.physical import PhysicalMemory

A, B = DATA, DATA + 4 * PAGE
READ_DATA, WRITE_DATA, CHAIN, COMPLETION, LENGTH = 1 << 8, 1 << 9, 1 << 4, 1 << 12, 1 << 11


class Rig:
    """The engine with two channels, each with its driver, both of which may ask."""

    def __init__(self):
        memory = PhysicalMemory(16 << 20)
        self.platform = Platform()
        ioat = Ioat(Port(memory, 0x48, self.platform), 2, self.platform)
        self.drivers = [IoatDriver(ioat, memory, number) for number in range(2)]
        self.first, self.memory, self.function = self.drivers[0], memory, ioat.function
        self.heard = []
        self.function.on_interrupt = self.heard.append
        self.begin()

    def begin(self):
        allow(self.function)
        for driver in self.drivers:
            driver.start()

    def answer_next(self):
        self.platform.supply(self.platform.wanted[-1])


@pytest.fixture
def rig():
    return Rig()


def test_an_answer_at_once_is_not_noticed(rig):
    rig.platform.answer = rig.platform.supply
    rig.memory.write(A + 100, b"d" * PAGE)
    assert rig.first.run(A + 100, B + 50, PAGE) == IDLE
    assert rig.memory.read(B + 49, PAGE + 2) == b"\0" + b"d" * PAGE + b"\0"
    assert rig.first.told == (rig.first.ring, IDLE)
    assert len(rig.platform.asked()) == len(set(rig.platform.asked())) == 6


def test_a_descriptor_waits_for_each_page_and_is_told_when_all_is_there(rig):
    rig.memory.write(A, b"late")
    rig.first.write(INTRCTRL, MASTER, 1)
    rig.first.run(A, B, 4, COPY | COMPLETE | INTERRUPT)
    for count, page in enumerate((rig.first.ring, A, B, rig.first.done), 1):
        assert rig.platform.asked()[count - 1 :] == [page // PAGE * PAGE]
        assert (rig.first.told, rig.heard) == ((0, 0), [])
        assert rig.memory.read(B, 4) == (b"late" if count == 4 else bytes(4))
        rig.answer_next()
    assert rig.first.told == (rig.first.ring, IDLE)
    assert len(rig.heard) == 1


def test_a_copy_over_itself_that_waited_in_the_middle_is_as_if_it_had_not(rig):
    rig.platform.answer = rig.platform.supply
    rig.first.run(A, A, 1)
    rig.platform.answer = None
    whole = bytes(n * 7 & 255 for n in range(PAGE)) + bytes(PAGE)
    rig.memory.write(A, whole)
    rig.first.run(A, A + 1000, PAGE)
    assert rig.platform.wanted[-1].iova == A + PAGE
    assert rig.memory.read(A + 1000, 8) == whole[:8]
    rig.answer_next()
    assert rig.memory.read(A, PAGE + 1000) == whole[:1000] + whole[:PAGE]
    assert rig.first.state == IDLE


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("present", "errors"),
    [((), CHAIN), (("ring",), READ_DATA), (("ring", "A"), WRITE_DATA), (("ring", "A", "B"), COMPLETION)],
)
def test_a_refused_page_is_an_error_of_what_it_was_for(rig, present, errors, at_once):
    pages = {"ring": rig.first.ring, "A": A, "B": B}
    rig.platform.present = {pages[name] // PAGE for name in present}
    rig.platform.answer = rig.platform.refuse if at_once else None
    rig.first.write(CHANCTRL, 0, 2)
    rig.first.run(A, B, 4)
    if not at_once:
        rig.platform.refuse(rig.platform.wanted[-1])
    assert (rig.first.state, rig.first.read(CHANERR)) == (HALTED, errors)
    rig.platform.answer = rig.platform.supply
    rig.first.start()
    assert rig.first.run(A, B, 4) == IDLE


def test_a_halt_is_told_when_its_page_is_there(rig):
    rig.platform.present = {rig.first.ring // PAGE}
    rig.first.write(INTRCTRL, MASTER, 1)
    rig.first.write(CHANCTRL, ERROR_COMPLETION | ERROR_INTERRUPT, 2)
    assert rig.first.run(A, B, 0) == HALTED
    assert (rig.first.told, rig.heard) == ((0, 0), [])
    rig.answer_next()
    assert rig.first.told == (0, HALTED)
    assert (len(rig.heard), rig.first.read(CHANERR)) == (1, LENGTH)


def test_a_channel_waits_for_the_page_of_another_and_goes_on_after_it(rig):
    rig.memory.write(A, b"both")
    for number, driver in enumerate(rig.drivers):
        driver.run(A, B + 64 * number, 4)
    while rig.platform.wanted:
        rig.platform.supply(rig.platform.wanted.pop(0))
    assert [driver.told[1] for driver in rig.drivers] == [IDLE, IDLE]
    assert [rig.memory.read(B + 64 * number, 4) for number in range(2)] == [b"both"] * 2


def test_suspended_while_it_waits_a_channel_goes_on_when_resumed(rig):
    rig.first.run(A, B, 4)
    rig.first.write(CHANCMD, SUSPEND, 1)
    rig.answer_next()
    assert rig.first.state == SUSPENDED
    rig.platform.answer = rig.platform.supply
    rig.first.write(CHANCMD, RESUME, 1)
    assert rig.first.told == (rig.first.ring, IDLE)


def test_a_reset_ends_the_waiting(rig):
    rig.platform.present = {page // PAGE for page in (rig.first.ring, A, B)}
    rig.first.run(A, B, 4)
    late = rig.platform.wanted[0]
    rig.function.reset()
    rig.platform.respond(late)
    rig.function.write_config(4, 2, 6)
    assert rig.first.read(CHANSTS, 8) == HALTED
    rig.platform.answer = rig.platform.supply
    rig.begin()
    assert rig.first.told == (0, 0)
    assert rig.first.run(A, B, 4) == IDLE


def test_without_ats_nothing_is_asked(rig):
    allow(rig.function, ats=False)
    assert rig.first.run(A, B, 4) == IDLE
    assert rig.platform.asked() == []
