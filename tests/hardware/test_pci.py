"""A PCI function: what software finds in configuration space, what it can change there, and how interrupts leave."""

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.errors import ModelError
from softiommu.hardware.bus import DmaError, Port
from softiommu.hardware.msi import Kind
from softiommu.hardware.pci import Bar, Features, Function, Identity, MsixPlace
from softiommu.hardware.pci_config import CapabilityId, ExtendedId
from softiommu.memory.physical import PhysicalMemory

ONES = 0xFFFFFFFF
COMMAND, STATUS, BAR0 = 0x04, 0x06, 0x10
TABLE, PENDING = 0x2000, 0x3000


class Scratch:
    """Registers that keep what is written."""

    def __init__(self):
        self.bytes = {}

    def read(self, offset, width):
        return sum(self.bytes.get(offset + n, 0) << 8 * n for n in range(width))

    def write(self, offset, width, value):
        self.bytes.update({offset + n: value >> 8 * n & 255 for n in range(width)})


def make(**features):
    bars = {
        0: Bar(0x4000, Scratch(), is_64=True, prefetchable=True),
        2: Bar(0x100, Scratch(), io=True),
        4: Bar(1 << 36, Scratch(), is_64=True),
    }
    kept = {"msi": 4, "msix": MsixPlace(5, 0, TABLE, PENDING), "ats": True, "pri": 8, "pasid_bits": 20} | features
    function = Function(
        Port(PhysicalMemory(1 << 20), 8), Identity(0x1B36, 0x10, 0x010802, 2, 3, 4), bars, Features(**kept)
    )
    function.heard = []
    function.on_interrupt = function.heard.append
    return function


@pytest.fixture
def function():
    made = make()
    made.write_config(COMMAND, 2, 0x7)
    return made


def capabilities(function):
    found, at = {}, function.read_config(0x34, 1)
    while at:
        id, at_next = function.read_config(at, 1), function.read_config(at + 1, 1)
        found[id] = at
        at = at_next
    return found


def extended(function):
    found, at = {}, 0x100
    while at:
        header = function.read_config(at, 4)
        found[header & 0xFFFF] = at
        at = header >> 20
    return found


def test_the_header_identifies_it(function):
    header = [function.read_config(at, 4) for at in range(0, 64, 4)]
    assert (header[0], header[2], header[11], header[15]) == (0x00101B36, 0x01080202, 0x00040003, 0x00000100)
    assert header[1] == 0x00100007


def test_capabilities_are_linked(function):
    assert sorted(capabilities(function)) == sorted(set(CapabilityId) - {CapabilityId.VENDOR})
    assert sorted(extended(function)) == sorted(ExtendedId)
    for id, at in capabilities(function).items():
        assert function.find_capability(CapabilityId(id)) == at
    for id, at in extended(function).items():
        assert function.find_capability(ExtendedId(id)) == at


def test_without_capabilities_there_is_no_list():
    function = make(msi=0, msix=None, power=False, express=False, ats=False, pri=0, pasid_bits=0, intx=False)
    assert (function.read_config(0x34, 1), function.read_config(STATUS, 2), function.read_config(0x3D, 1)) == (0, 0, 0)
    assert function.find_capability(CapabilityId.MSI) is None
    assert not function.can_reset


def test_bars_tell_their_size_and_kind(function):
    assert [function.read_config(BAR0 + 4 * n, 4) for n in range(6)] == [0xC, 0, 1, 0, 4, 0]
    for number in range(6):
        function.write_config(BAR0 + 4 * number, 4, ONES)
    found = [function.read_config(BAR0 + 4 * n, 4) for n in range(6)]
    assert found == [0xFFFFC00C, ONES, 0xFFFFFF01, 0, 4, 0xFFFFFFF0]
    function.write_config(BAR0 + 2, 2, 0xABCD)
    assert function.read_config(BAR0, 4) == 0xABCDC00C


def test_impossible_functions_are_refused():
    port, who = Port(PhysicalMemory(1 << 20), 8), Identity(1, 2, 3)
    with pytest.raises(ModelError):
        Bar(24, Scratch())
    with pytest.raises(ModelError):
        Bar(256, Scratch(), io=True, is_64=True)
    with pytest.raises(ModelError):
        Function(port, who, {0: Bar(16, Scratch(), is_64=True), 1: Bar(16, Scratch())})
    with pytest.raises(ModelError):
        Function(port, who, {0: Bar(16, Scratch())}, Features(msix=MsixPlace(2, 0, 0, 32)))
    with pytest.raises(ModelError):
        Function(port, who, {}, Features(express=False, ats=True))
    with pytest.raises(ModelError):
        Function(port, who, {}, Features(msi=3))


def test_bars_answer_aligned_accesses_inside_when_decoded(function):
    function.write_bar(0, 0x18, 8, 0x1122334455667788)
    assert [function.read_bar(0, 0x18, width) for width in (1, 2, 4, 8)] == [
        0x88,
        0x7788,
        0x55667788,
        0x1122334455667788,
    ]
    for at, width in ((1, 2), (2, 4), (4, 8), (0x4000, 4), (0x3FFC, 8), (-4, 4), (0, 3)):
        function.write_bar(0, at, width, 0)
        assert function.read_bar(0, at, width) == (1 << 8 * width) - 1
    assert function.read_bar(1, 0, 4) == function.read_bar(6, 0, 4) == ONES
    function.write_config(COMMAND, 2, 0x1)
    assert (function.read_bar(0, 0x18, 4), function.read_bar(2, 0, 4)) == (ONES, 0)
    function.write_config(COMMAND, 2, 0x2)
    assert (function.read_bar(0, 0x18, 4), function.read_bar(2, 0, 4)) == (0x55667788, ONES)


def test_in_d3_it_neither_answers_nor_masters_the_bus(function):
    power = function.find_capability(CapabilityId.POWER)
    for state in (1, 2):
        function.write_config(power + 4, 2, state)
        assert function.read_config(power + 4, 2) == 0x8
    function.write_config(power + 4, 2, 3)
    assert function.read_bar(0, 0, 4) == ONES
    with pytest.raises(DmaError):
        function.port.read(0, 4)
    function.write_config(power + 4, 2, 0)
    assert function.read_bar(0, 0, 4) == 0
    assert function.port.read(0, 4) == bytes(4)


def test_the_intx_line_follows_the_device_unless_disabled(function):
    function.set_intx(True)
    function.write_config(COMMAND, 2, 0x407)
    assert function.read_config(STATUS, 2) & 8
    function.write_config(COMMAND, 2, 0x007)
    function.set_intx(True)
    function.set_intx(False)
    assert [(i.kind, i.asserted) for i in function.heard] == [
        (Kind.INTX, True),
        (Kind.INTX, False),
        (Kind.INTX, True),
        (Kind.INTX, False),
    ]
    function.signal(0)
    assert len(function.heard) == 4


def msix(function, enable=0x8000):
    at = function.find_capability(CapabilityId.MSIX)
    function.write_config(at + 2, 2, enable)
    return at


def test_the_msix_table_is_where_the_capability_says(function):
    at = function.find_capability(CapabilityId.MSIX)
    assert [function.read_config(at + n, 4) for n in (4, 8)] == [TABLE, PENDING]
    assert function.read_config(at + 2, 2) == 4
    assert [function.read_bar(0, TABLE + 16 * n + 12, 4) for n in range(6)] == [1, 1, 1, 1, 1, 0]


def test_an_msix_vector_sends_what_its_entry_says(function):
    msix(function)
    function.write_bar(0, TABLE + 16, 8, 0xFEE00000_1234567B)
    function.write_bar(0, TABLE + 24, 8, 0x00000000_CAFE0001)
    function.signal(1)
    function.signal(5)
    assert [tuple(i) for i in function.heard] == [(Kind.MSIX, 1, True, 0xFEE00000_12345678, 0xCAFE0001)]


def test_masked_msix_vectors_wait(function):
    at = msix(function)
    function.signal(3)
    function.signal(3)
    function.signal(4)
    assert function.read_bar(0, PENDING, 8) == 0b11000
    function.write_bar(0, PENDING, 8, 0)
    function.write_config(at + 2, 2, 0xC000)
    function.write_bar(0, TABLE + 16 * 3 + 12, 4, 0)
    assert function.heard == []
    function.write_config(at + 2, 2, 0x8000)
    assert [i.vector for i in function.heard] == [3]
    function.write_bar(0, TABLE + 16 * 4 + 12, 4, 0)
    assert [i.vector for i in function.heard] == [3, 4]
    assert function.read_bar(0, PENDING, 8) == 0


def test_masked_msi_vectors_wait_and_vectors_share_what_was_enabled(function):
    at = function.find_capability(CapabilityId.MSI)
    function.write_config(at + 4, 4, 0xFEE00004)
    function.write_config(at + 8, 4, 1)
    function.write_config(at + 12, 2, 0x40)
    function.write_config(at + 2, 2, 0x0011)
    function.signal(3)
    assert (function.heard[-1].vector, function.heard[-1].data) == (1, 0x41)
    function.write_config(at + 2, 2, 0x0021)
    function.write_config(at + 16, 4, ONES)
    assert function.read_config(at + 16, 4) == 0xF
    function.signal(3)
    assert function.read_config(at + 20, 4) == 8
    function.write_config(at + 16, 4, 0)
    assert tuple(function.heard[-1]) == (Kind.MSI, 3, True, 0x1_FEE00004, 0x43)
    assert function.read_config(at + 20, 4) == 0


def test_a_message_is_a_write_and_needs_bus_mastering(function):
    msix(function)
    function.write_bar(0, TABLE + 12, 4, 0)
    function.write_config(COMMAND, 2, 0x2)
    function.signal(0)
    assert function.heard == []
    function.write_config(COMMAND, 2, 0x6)
    function.signal(0)
    assert [i.vector for i in function.heard] == [0]


def test_function_level_reset_takes_everything_back():
    resets = []
    function = Function(
        Port(PhysicalMemory(1 << 20), 8),
        Identity(1, 2, 3),
        {0: Bar(0x1000, Scratch())},
        Features(msix=MsixPlace(1, 0, 0x800, 0x900)),
        lambda: resets.append(1),
    )
    before = [function.read_config(at, 4) for at in range(0, 4096, 4)]
    for at in range(0, 64, 4):
        function.write_config(at, 4, ONES)
    function.write_bar(0, 0x80C, 4, 0)
    express = function.find_capability(CapabilityId.EXPRESS)
    assert function.read_config(express + 4, 4) >> 28 & 1
    function.write_config(express + 8, 2, 0x8000)
    assert resets == [1]
    assert [function.read_config(at, 4) for at in range(0, 4096, 4)] == before
    function.write_config(COMMAND, 2, 2)
    assert function.read_bar(0, 0x80C, 4) == 1


ACCESSES = st.tuples(st.integers(0, 4100), st.sampled_from((1, 2, 3, 4, 8)), st.integers(0, (1 << 64) - 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(ACCESSES, max_size=40))
def test_configuration_space_takes_anything_and_keeps_what_is_read_only(accesses):
    function = make()
    fixed = {at: function.read_config(at, 1) for at in (0, 1, 2, 3, 8, 9, 10, 11, 14, 0x2C, 0x2E, 0x34, 0x3D)}
    fixed |= {at: id for id, at in capabilities(function).items()}
    heads = extended(function)
    for at, width, value in accesses:
        function.write_config(at, width, value)
        assert 0 <= function.read_config(at, width) < 1 << 8 * width
        function.signal(value & 7)
        function.set_intx(bool(value & 8))
    assert {at: function.read_config(at, 1) for at in fixed} == fixed
    assert extended(function) == heads
    assert function.port.bus_master == bool(function.header.COMMAND.MASTER and not function.power.PMCSR.STATE)


@given(st.integers(0, 4095), st.sampled_from((1, 2, 4)))
def test_every_width_reads_the_same_bytes(at, width):
    function = make()
    assert function.read_config(at, width) == sum(function.read_config(at + n, 1) << 8 * n for n in range(width))
