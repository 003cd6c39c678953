"""virtio-iommu: registers and negotiation, each request and its refusals, faults, and whatever a driver may put in
memory."""

from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from virtio_rig import (
    AVAIL,
    DESC,
    EVENT_AVAIL,
    EVENT_USED,
    READY,
    REQUEST,
    SIZE,
    USED,
    Rig,
    without,
)

from softiommu.errors import ModelError
from softiommu.hardware.virtio.commands import Code, Probe, Subtype, Type, Unmap, to_bytes
from softiommu.hardware.virtio.common import NO_VECTOR, Isr, Status
from softiommu.hardware.virtio.events import Reason
from softiommu.hardware.virtio.presets import FULL, QEMU, Offer, resv_mem
from softiommu.hardware.virtio.registers import Features, Registers
from softiommu.memory.physical import BadAddressError, Mmio
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE
from strategies import EDGES

EP, OTHER = 0x20, 0x28


# Negotiation and registers


def test_features_are_shown_in_halves_and_there_are_only_two():
    rig = Rig(start=False)
    shown = []
    for half in (0, 1, 2):
        rig.write(Registers.DEVICE_FEATURE_SELECT, half)
        shown.append(rig.read(Registers.DEVICE_FEATURE))
    assert shown[0] | shown[1] << 32 == FULL.features
    assert shown[2] == 0


def test_a_driver_that_accepts_what_is_not_offered_or_leaves_version_1_out_is_refused():
    rig = Rig(replace(FULL, features=without(MMIO=1)), start=False)
    assert not rig.negotiate(FULL.features)
    assert not rig.negotiate(without(VERSION_1=1, MMIO=1))
    assert rig.negotiate(without(MMIO=1))
    rig.write(Registers.DRIVER_FEATURE_SELECT, 0)
    rig.write(Registers.DRIVER_FEATURE, 0)  # too late
    assert rig.read(Registers.DRIVER_FEATURE) == without(MMIO=1) & 0xFFFFFFFF


def test_each_queue_has_its_own_registers_also_in_two_halves():
    rig = Rig(start=False)
    for number, at in ((0, 0x1_0000_1000), (1, 0x2_0000_2000)):
        rig.write(Registers.QUEUE_SELECT, number)
        rig.unit.write(Registers.QUEUE_DESC.offset, 4, at & 0xFFFFFFFF)
        rig.unit.write(Registers.QUEUE_DESC.offset + 4, 4, at >> 32)
        rig.write(Registers.QUEUE_SIZE, 16 << number)
        rig.write(Registers.QUEUE_MSIX_VECTOR, number + 5)
    seen = []
    for number in (0, 1, 2):
        rig.write(Registers.QUEUE_SELECT, number)
        names = ("QUEUE_DESC", "QUEUE_SIZE", "QUEUE_MSIX_VECTOR", "QUEUE_NOTIFY_OFF", "QUEUE_ENABLE")
        seen.append([rig.read(getattr(Registers, name)) for name in names])
    assert seen == [[0x100001000, 16, 5, 0, 0], [0x200002000, 32, 6, 1, 0], [0, 0, NO_VECTOR, 0, 0]]


@pytest.mark.parametrize("size", [0, 3, 512, 0xFFFF])
def test_a_size_that_no_queue_can_have_is_ignored(size):
    rig = Rig(start=False)
    rig.write(Registers.QUEUE_SIZE, size)
    assert rig.read(Registers.QUEUE_SIZE) == FULL.queue_size


def test_a_running_queue_stays_where_it_is():
    rig = Rig()
    rig.write(Registers.QUEUE_SELECT, 0)
    rig.write(Registers.QUEUE_DESC, 0xF000)
    rig.write(Registers.QUEUE_ENABLE, 0)
    assert (rig.read(Registers.QUEUE_DESC), rig.read(Registers.QUEUE_ENABLE)) == (DESC, 1)


def test_the_configuration_has_the_limits_that_features_tell_of():
    rig = Rig(QEMU, start=False)
    assert rig.read(Registers.PAGE_SIZE_MASK) == 0xFFFFFFFFFFFFF000
    assert (rig.read(Registers.INPUT_START), rig.read(Registers.INPUT_END)) == (0, 0x7FFFFFFFFF)
    assert (rig.read(Registers.DOMAIN_END), rig.read(Registers.PROBE_SIZE)) == (0xFFFFFFFF, 512)
    bare = Rig(Offer(Features.of(MAP_UNMAP=1, VERSION_1=1)), start=False)
    assert [bare.read(register) for register in (Registers.INPUT_END, Registers.DOMAIN_END, Registers.PROBE_SIZE)] == [
        0,
        0,
        0,
    ]


def test_nothing_is_taken_from_a_queue_before_the_driver_is_ready():
    rig = Rig()
    rig.status(Status.of(ACKNOWLEDGE=1, DRIVER=1, FEATURES_OK=1))
    rig.describe(DESC, 0, ADDR=REQUEST, LEN=4)
    rig.offer_head(0, AVAIL, 0)
    rig.notify()
    assert rig.used()[0] == 0
    rig.status(READY)
    rig.notify()
    assert rig.used() == (1, 0)


def test_a_reset_detaches_everyone_but_keeps_bypass():
    rig = Rig()
    rig.write(Registers.BYPASS, 1)
    rig.attach(1, EP)
    assert rig.reach(EP, 0x5000) is Reason.MAPPING
    rig.status(Status(0))
    assert (rig.read(Registers.DEVICE_STATUS), rig.read(Registers.BYPASS)) == (0, 1)
    assert rig.reach(EP, 0x5000) == 0x5000


# ATTACH, DETACH


def test_an_endpoint_reaches_its_own_domain_only():
    rig = Rig()
    assert rig.reach(EP, 0x1000) is Reason.DOMAIN
    assert [rig.attach(1, EP), rig.attach(2, OTHER), rig.map(1, 0x1000, 0x1FFF, 0x700000)] == [Code.OK] * 3
    assert rig.reach(EP, 0x1234) == 0x700234
    assert rig.reach(OTHER, 0x1234) is Reason.MAPPING
    assert rig.attach(1, OTHER) is Code.OK
    assert rig.reach(OTHER, 0x1234) == 0x700234
    assert rig.detach(1, EP) is Code.OK
    assert rig.reach(EP, 0x1234) is Reason.DOMAIN
    assert rig.reach(OTHER, 0x1234) == 0x700234


def test_a_domain_ends_with_its_last_endpoint():
    rig = Rig()
    rig.attach(1, EP)
    rig.map(1, 0x1000, 0x1FFF, 0x700000)
    rig.attach(2, EP)
    assert rig.map(1, 0x2000, 0x2FFF, 0x700000) is Code.NOENT
    rig.attach(1, EP)
    assert rig.reach(EP, 0x1000) is Reason.MAPPING


def test_attaching_to_the_same_domain_again_keeps_its_mappings():
    rig = Rig()
    rig.attach(1, EP)
    rig.map(1, 0x1000, 0x1FFF, 0x700000)
    assert rig.attach(1, EP) is Code.OK
    assert rig.reach(EP, 0x1000) == 0x700000


def test_refused_attaches_change_nothing():
    offer = replace(FULL, endpoints=(EP, OTHER), domain_range=(1, 9))
    rig = Rig(offer)
    rig.attach(1, EP)
    rig.map(1, 0x1000, 0x1FFF, 0x700000)
    assert rig.attach(2, EP, MUST_BE_ZERO=1) is Code.INVAL
    assert rig.attach(2, EP, UNKNOWN_FLAGS=1) is Code.INVAL
    assert rig.attach(2, 0x99) is Code.NOENT
    assert rig.attach(0, EP) is rig.attach(10, EP) is Code.RANGE
    assert rig.attach(1, OTHER, BYPASS=1) is Code.INVAL
    assert rig.reach(EP, 0x1000) == 0x700000
    assert rig.reach(OTHER, 0x1000) is Reason.DOMAIN


def test_refused_detaches():
    rig = Rig(replace(FULL, endpoints=(EP, OTHER)))
    rig.attach(1, EP)
    assert rig.detach(1, 0x99) is Code.NOENT
    assert rig.detach(1, OTHER) is rig.detach(2, EP) is Code.INVAL


# Bypass


def test_a_bypass_domain_is_the_identity_and_takes_no_mappings():
    rig = Rig()
    assert rig.attach(1, EP, BYPASS=1) is Code.OK
    assert rig.reach(EP, 0x123456789) == 0x123456789
    assert rig.map(1, 0x1000, 0x1FFF, 0) is rig.unmap(1, 0x1000, 0x1FFF) is Code.INVAL
    assert rig.attach(1, OTHER) is Code.INVAL


def test_a_driver_without_bypass_config_has_no_bypass_domains_and_cannot_write_bypass():
    rig = Rig(replace(FULL, bypass=True), accept=without(BYPASS_CONFIG=1))
    assert rig.attach(1, EP, BYPASS=1) is Code.INVAL
    rig.write(Registers.BYPASS, 0)
    assert rig.read(Registers.BYPASS) == 1
    assert rig.reach(OTHER, 0x5000) == 0x5000  # what is configured holds all the same


def test_the_old_bypass_feature_is_for_drivers_that_accept_it():
    offer = Offer(without(BYPASS_CONFIG=1) | Features.of(BYPASS=1))
    offer = replace(offer, features=Features(offer.features))
    assert Rig(offer).reach(EP, 0x5000) == 0x5000
    assert Rig(offer, accept=without(BYPASS_CONFIG=1)).reach(EP, 0x5000) is Reason.DOMAIN


# MAP, UNMAP


def test_rights_are_those_of_the_mapping():
    rig = Rig()
    rig.attach(1, EP)
    rig.map(1, 0x1000, 0x1FFF, 0x700000, READ=1)
    rig.map(1, 0x2000, 0x2FFF, 0x800000, WRITE=1)
    rig.map(1, 0x3000, 0x3FFF, 0x900000, MMIO=1)
    wants = (READ, WRITE, READ | WRITE, EXECUTE)
    bad = Reason.MAPPING
    assert [rig.reach(EP, 0x1000, want) for want in wants] == [0x700000, bad, bad, 0x700000]
    assert [rig.reach(EP, 0x2000, want) for want in wants] == [bad, 0x800000, bad, bad]
    assert [rig.reach(EP, 0x3000, want) for want in wants] == [bad] * 4
    assert rig.reach(EP, 0x3000, 0) == 0x900000


@pytest.mark.parametrize(
    ("first", "last", "pa", "code"),
    [
        (0x1001, 0x1FFF, 0, Code.RANGE),
        (0x1000, 0x1FFE, 0, Code.RANGE),
        (0x1000, 0x1FFF, 0x10, Code.RANGE),
        (0x2000, 0x1FFF, 0, Code.RANGE),
        (0x3000, 0x1FFF, 0, Code.RANGE),
        (0x1000, 0x1FFF, 2**64 - 0x1000, Code.OK),
        (0x1000, 0x2FFF, 2**64 - 0x1000, Code.RANGE),
        (0x7FFFFFF000, 0x7FFFFFFFFF, 0, Code.OK),
        (0x7FFFFFF000, 0x8000000FFF, 0, Code.RANGE),
        (2**64 - 0x1000, 2**64 - 1, 0, Code.RANGE),
        (0xFEDFF000, 0xFEE00FFF, 0, Code.INVAL),
    ],
)
def test_what_can_be_mapped(first, last, pa, code):
    rig = Rig(QEMU)
    rig.attach(1, EP)
    assert rig.map(1, first, last, pa) is code


def test_all_64_bits_can_be_mapped_where_nothing_limits_them():
    rig = Rig()
    rig.attach(1, EP)
    assert rig.map(1, 0, 2**64 - 1, 0) is Code.OK
    assert rig.unit.translate(EP, 2**64 - 1, READ) == (2**64 - 1, 64, READ | WRITE | EXECUTE)
    assert rig.unmap(1, 0, 2**64 - 1) is Code.OK
    assert rig.reach(EP, 0) is Reason.MAPPING


def test_refused_maps():
    rig = Rig(replace(FULL, most_mappings=2))
    assert rig.map(1, 0x1000, 0x1FFF, 0) is Code.NOENT
    rig.attach(1, EP)
    assert rig.map(1, 0x1000, 0x1FFF, 0, UNKNOWN_FLAGS=1) is Code.INVAL
    assert rig.map(1, 0x1000, 0x2FFF, 0) is Code.OK
    assert rig.map(1, 0x2000, 0x3FFF, 0) is rig.map(1, 0, 0x1FFF, 0) is rig.map(1, 0, 0xFFFF, 0) is Code.INVAL
    assert rig.map(1, 0x3000, 0x3FFF, 0) is Code.OK
    assert rig.map(1, 0x4000, 0x4FFF, 0) is Code.NOMEM
    plain = Rig(accept=without(MMIO=1))
    plain.attach(1, EP)
    assert plain.map(1, 0x1000, 0x1FFF, 0, MMIO=1) is Code.INVAL


def test_the_examples_of_the_specification():
    """5.13.6.4.1: which unmaps succeed, and what they remove."""
    rig = Rig(replace(FULL, page_size_mask=1))
    rig.attach(1, EP)

    def left(maps, unmap):
        rig.detach(1, EP)
        rig.attach(1, EP)
        for first, last in maps:
            assert rig.map(1, first, last, 0x5000 + first) is Code.OK
        code = rig.unmap(1, *unmap)
        return code, [first for first, _ in maps if rig.reach(EP, first) is not Reason.MAPPING]

    assert left([], (0, 4)) == (Code.OK, [])
    assert left([(0, 9)], (0, 9)) == (Code.OK, [])
    assert left([(0, 4), (5, 9)], (0, 9)) == (Code.OK, [])
    assert left([(0, 9)], (0, 4)) == (Code.RANGE, [0])
    assert left([(0, 4), (5, 9)], (0, 4)) == (Code.OK, [5])
    assert left([(0, 4)], (0, 9)) == (Code.OK, [])
    assert left([(0, 4), (10, 14)], (0, 14)) == (Code.OK, [])
    assert left([(0, 9)], (5, 20)) == (Code.RANGE, [0])
    assert left([(0, 4), (10, 14)], (14, 0)) == (Code.OK, [0, 10])


def test_refused_unmaps():
    rig = Rig()
    assert rig.unmap(1, 0, 0xFFF) is Code.NOENT
    rig.attach(1, EP)
    rig.map(1, 0x1000, 0x1FFF, 0x700000)
    assert rig.unmap(1, 0x1000, 0x1FFF, MUST_BE_ZERO=1) is Code.INVAL
    assert rig.reach(EP, 0x1000) == 0x700000


def test_mappings_are_requests_of_a_feature():
    rig = Rig(accept=without(MAP_UNMAP=1))
    rig.attach(1, EP)
    assert rig.raw(to_bytes(Unmap.of(TYPE=Type.UNMAP, DOMAIN=1)), 4) == (0, b"\xee" * 4)


def test_a_translation_says_how_far_it_goes():
    rig = Rig()
    rig.attach(1, EP)
    rig.map(1, 0x200000, 0x5FFFFF, 0x400000)
    assert rig.unit.translate(EP, 0x201234, READ)[:2] == (0x401234, 21)
    rig.map(1, 0x601000, 0x602FFF, 0x800000)
    assert rig.unit.translate(EP, 0x602010, READ)[:2] == (0x801010, 12)


# PROBE


def test_probe_tells_of_reserved_ranges_and_pads_with_zeros():
    mem = resv_mem(0xFEE00000, 0xFEEFFFFF, Subtype.MSI)
    rig = Rig(QEMU)
    written, answer = rig.probe(EP)
    assert written == 516
    assert answer == to_bytes(mem).ljust(516, b"\0")


def test_refused_probes():
    rig = Rig(replace(QEMU, endpoints=(EP,)))
    written, answer = rig.probe(0x99)
    assert (written, answer) == (516, bytes(512) + bytes([Code.NOENT, 0, 0, 0]))
    written, answer = rig.probe(EP, room=104)
    assert (written, answer) == (104, bytes(100) + bytes([Code.INVAL, 0, 0, 0]))
    without_probe = Rig(replace(FULL, features=without(PROBE=1)))
    assert without_probe.raw(to_bytes(Probe.of(TYPE=Type.PROBE, ENDPOINT=EP)), 516)[0] == 0


def test_what_is_reserved_is_not_reached_but_for_doorbells():
    offer = replace(FULL, reserved=(resv_mem(0x10000, 0x1FFFF), resv_mem(0x20000, 0x20FFF, Subtype.MSI)))
    rig = Rig(offer)
    rig.attach(1, EP, BYPASS=1)
    assert rig.reach(EP, 0x10000) is Reason.MAPPING
    assert rig.unit.translate(EP, 0x20010, WRITE)[:2] == (0x20010, 12)
    assert rig.unit.translate(EP, 0xFFFF, WRITE)[:2] == (0xFFFF, 16)
    assert rig.unit.translate(EP, 0x21000, WRITE)[:2] == (0x21000, 12)


# Requests that are none


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x00\x00\x00\x00", b"\x06" + bytes(35), b"\xff" * 40])
def test_what_is_no_request_comes_back_as_it_was(data):
    assert Rig().raw(data, 8) == (0, b"\xee" * 8)


def test_a_request_without_room_for_an_answer_comes_back_as_it_was():
    rig = Rig()
    assert rig.raw(b"\x01" + bytes(19), 3) == (0, b"\xee" * 3)
    assert rig.reach(0, 0) is Reason.DOMAIN


def test_a_request_that_is_too_short_is_invalid():
    assert Rig().raw(b"\x03\0\0\0" + bytes(31), 4) == (4, bytes([Code.INVAL, 0, 0, 0]))


def test_buffers_may_be_cut_anywhere_and_lie_in_an_indirect_table():
    rig = Rig()
    data = b"\x01\0\0\0" + (5).to_bytes(4, "little") + EP.to_bytes(4, "little") + bytes(8)
    table = 0xC000
    for index, byte in enumerate(data[:3]):
        rig.memory.write(REQUEST + 0x100 * index, bytes([byte]))
        rig.describe(table, index, ADDR=REQUEST + 0x100 * index, LEN=1, NEXT=1, NEXT_INDEX=index + 1)
    rig.memory.write(REQUEST + 0x400, data[3:])
    rig.describe(table, 3, ADDR=REQUEST + 0x400, LEN=len(data) - 3, NEXT=1, NEXT_INDEX=4)
    rig.describe(table, 4, ADDR=0x9000, LEN=1, WRITE=1, NEXT=1, NEXT_INDEX=5)
    rig.describe(table, 5, ADDR=0x9100, LEN=3, WRITE=1)
    rig.describe(DESC, 3, ADDR=table, LEN=6 * 16, INDIRECT=1)
    rig.offer_head(0, AVAIL, 3)
    rig.notify()
    assert rig.used() == (1, 4)
    assert rig.memory.read(0x9000, 1) + rig.memory.read(0x9100, 3) == bytes(4)
    assert rig.reach(EP, 0) is Reason.MAPPING


def broken_loop(rig):
    rig.describe(DESC, 0, ADDR=REQUEST, LEN=1, NEXT=1, NEXT_INDEX=0)


def broken_index(rig):
    rig.describe(DESC, 0, ADDR=REQUEST, LEN=1, NEXT=1, NEXT_INDEX=SIZE)


def broken_order(rig):
    rig.describe(DESC, 0, ADDR=REQUEST, LEN=4, WRITE=1, NEXT=1, NEXT_INDEX=1)
    rig.describe(DESC, 1, ADDR=REQUEST, LEN=4)


def broken_address(rig):
    rig.describe(DESC, 0, ADDR=1 << 60, LEN=4, NEXT=1, NEXT_INDEX=1)
    rig.describe(DESC, 1, ADDR=REQUEST, LEN=4, WRITE=1)


def broken_table(rig):
    rig.describe(DESC, 0, ADDR=DESC, LEN=16 * SIZE, INDIRECT=1)


def broken_length(rig):
    rig.describe(DESC, 0, ADDR=0xC000, LEN=17, INDIRECT=1)


def broken_empty(rig):
    rig.describe(DESC, 0, ADDR=0xC000, LEN=0, INDIRECT=1)


def broken_available(rig):
    rig.counts[0] = SIZE + 1


BROKEN = [
    broken_loop,
    broken_index,
    broken_order,
    broken_address,
    broken_table,
    broken_length,
    broken_empty,
    broken_available,
]


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_chain_that_is_none_stops_the_device_until_a_reset(breaks):
    told = []
    rig = Rig(interrupt=told.append)
    rig.write(Registers.CONFIG_MSIX_VECTOR, 7)
    breaks(rig)
    rig.offer_head(0, AVAIL, 0)
    rig.notify()
    assert Status(rig.read(Registers.DEVICE_STATUS)).DEVICE_NEEDS_RESET
    assert (rig.used()[0], told) == (0, [7])
    rig.status(READY)
    assert Status(rig.read(Registers.DEVICE_STATUS)).DEVICE_NEEDS_RESET
    rig.status(Status(0))
    assert rig.read(Registers.DEVICE_STATUS) == 0


def test_a_queue_that_lies_nowhere_stops_the_device():
    rig = Rig(start=False)
    rig.negotiate(FULL.features)
    rig.queue(0, DESC, AVAIL, USED)
    rig.unit.queues[0].driver = 1 << 50
    rig.status(READY)
    rig.notify()
    assert Status(rig.read(Registers.DEVICE_STATUS)).DEVICE_NEEDS_RESET


def many(rig, answer):
    """256 requests, whose answers all go to one place."""
    rig.status(Status(0))
    rig.negotiate(FULL.features)
    rig.queue(0, DESC, AVAIL, USED)
    rig.write(Registers.QUEUE_SELECT, 0)
    rig.unit.queues[0].size = 256
    rig.status(READY)
    rig.memory.write(AVAIL, bytes(2) + (256).to_bytes(2, "little") + bytes(512))
    rig.memory.write(REQUEST, b"\x02" + bytes(19))
    rig.describe(DESC, 0, ADDR=REQUEST, LEN=20, NEXT=1, NEXT_INDEX=1)
    rig.describe(DESC, 1, ADDR=answer, LEN=4, WRITE=1)
    rig.notify()
    return int.from_bytes(rig.memory.read(USED + 2, 2), "little")


def test_answers_that_ring_the_doorbell_are_carried_out_one_after_the_other():
    rig = Rig()
    rig.memory.map_window(1 << 30, Mmio(lambda offset, data: rig.notify()), 0, 4096)
    assert many(rig, 1 << 30) == 256


def test_an_answer_that_resets_the_device_ends_its_work():
    rig = Rig()
    rig.memory.map_window(1 << 30, Mmio(lambda offset, data: rig.status(Status(0))), 0, 4096)
    before = rig.memory.read(0, 0x1000)
    assert many(rig, 1 << 30) == 0
    assert rig.memory.read(0, 0x1000) == before
    assert rig.read(Registers.DEVICE_STATUS) == 0


# Faults and interrupts


def test_a_fault_is_reported_in_the_event_queue():
    lines = []
    rig = Rig(line=lines.append)
    rig.attach(1, EP)
    rig.read(Registers.ISR)
    rig.give_event_buffer()
    del lines[:]
    assert rig.reach(EP, 0x123456, WRITE) is Reason.MAPPING
    fault = rig.event()
    assert (fault.REASON, fault.READ, fault.WRITE, fault.ADDRESS_VALID) == (Reason.MAPPING, 0, 1, 1)
    assert (fault.ENDPOINT, fault.ADDRESS) == (EP, 0x123456)
    assert rig.used(EVENT_USED) == (1, 24)
    assert lines == [True]
    assert rig.read(Registers.ISR) == Isr.of(QUEUE=1)
    assert rig.read(Registers.ISR) == 0
    assert lines == [True, False, False]


def test_faults_without_a_buffer_that_holds_them_are_lost():
    rig = Rig()
    assert rig.reach(EP, 0x1000) is Reason.DOMAIN
    rig.give_event_buffer(length=23)
    assert rig.reach(EP, 0x1000) is Reason.DOMAIN
    assert (rig.used(EVENT_USED), rig.unit.lost) == ((1, 0), 2)


def test_interrupts_go_to_the_queue_s_vector_unless_the_driver_wants_none():
    told = []
    rig = Rig(interrupt=told.append)
    for number in (0, 1):
        rig.write(Registers.QUEUE_SELECT, number)
        rig.write(Registers.QUEUE_MSIX_VECTOR, number + 1)
    rig.attach(1, EP)
    rig.give_event_buffer()
    rig.reach(EP, 0)
    assert told == [1, 2]
    rig.memory.write(AVAIL, b"\1\0")
    rig.memory.write(EVENT_AVAIL, b"\1\0")
    rig.attach(2, EP)
    rig.give_event_buffer()
    rig.reach(EP, 0)
    assert told == [1, 2]


def test_whoever_hears_of_an_answer_may_ask_again_at_once():
    asked = []

    def ask_again(vector):
        asked.append(vector)
        if len(asked) < 3:
            rig.attach(1, EP)

    rig = Rig(interrupt=ask_again)
    rig.write(Registers.QUEUE_SELECT, 0)
    rig.write(Registers.QUEUE_MSIX_VECTOR, 4)
    rig.attach(1, EP)
    assert (asked, rig.used()[0]) == ([4, 4, 4], 3)


def test_a_pasid_is_no_address_space_of_the_device():
    rig = Rig()
    rig.attach(1, EP)
    rig.map(1, 0x1000, 0x1FFF, 0x700000)
    assert rig.reach(EP, 0x1000, pasid=1) is Reason.UNKNOWN


# What is offered


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"features": without(VERSION_1=1)}, "VERSION_1"),
        ({"features": Features(FULL.features | Features.of(BYPASS=1))}, "BYPASS and BYPASS_CONFIG"),
        ({"features": without(BYPASS_CONFIG=1), "bypass": True}, "BYPASS_CONFIG is not offered"),
        ({"features": Features(FULL.features | 1 << 40)}, "not modelled"),
        ({"page_size_mask": 0}, "page_size_mask"),
        ({"input_range": (9, 3)}, "input_range ends"),
        ({"domain_range": (0, 1 << 32)}, "domain_range ends"),
        ({"features": without(INPUT_RANGE=1), "input_range": (0, 9)}, "INPUT_RANGE"),
        ({"features": without(DOMAIN_RANGE=1), "domain_range": (0, 9)}, "DOMAIN_RANGE"),
        ({"features": without(PROBE=1), "reserved": (resv_mem(0, 9),)}, "need PROBE"),
        ({"probe_size": 8, "reserved": (resv_mem(0, 9),)}, "no room"),
        ({"reserved": (resv_mem(0, 9), resv_mem(5, 12))}, "overlap"),
        ({"reserved": tuple(resv_mem(n, n, Subtype.MSI) for n in (1, 5))}, "one MSI range"),
        ({"queue_size": 12}, "power of two"),
    ],
)
def test_an_offer_that_no_device_makes_names_the_rule(change, rule):
    with pytest.raises(ModelError, match=rule):
        replace(FULL, **change).check()


# Garbage


numbers = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from(EDGES))
descriptors = st.builds(
    lambda addr, length, flags, following: addr | length << 64 | flags << 96 | following << 112,
    st.one_of(st.integers(0, 0x10000), numbers),
    st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
    st.integers(0, 7),
    st.integers(0, SIZE),
)
heads = st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF))


@settings(deadline=None, max_examples=150)
@given(st.lists(descriptors, min_size=SIZE, max_size=SIZE), st.lists(heads, min_size=1, max_size=4), st.binary())
def test_no_descriptors_make_the_device_fail(table, chains, data):
    rig = Rig()
    rig.memory.write(REQUEST, data)
    for base in (DESC, 0x4000):
        for index, raw in enumerate(table):
            rig.memory.write(base + 16 * index, raw.to_bytes(16, "little"))
    for head in chains:
        rig.offer_head(0, AVAIL, head)
        rig.offer_head(1, EVENT_AVAIL, head)
    rig.notify()
    assert isinstance(rig.reach(EP, 0x10), Reason)
    status = Status(rig.read(Registers.DEVICE_STATUS))
    assert status.replace(DEVICE_NEEDS_RESET=0) == READY


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 7), st.binary(min_size=71, max_size=80), st.integers(0, 600), numbers)
def test_no_request_makes_the_device_fail_and_each_is_answered_or_comes_back(kind, rest, room, iova):
    rig = Rig(QEMU)
    rig.attach(1, EP)
    written, answer = rig.raw(bytes([kind]) + rest, room)
    assert written <= room
    assert answer[written:] == b"\xee" * (room - written)
    if written:
        assert answer[written - 4] in list(Code)
    found = rig.reach(EP, iova)
    assert isinstance(found, Reason) or 0 <= found < 2**64


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 0x3010), st.sampled_from((1, 2, 4, 8)), numbers), max_size=30))
def test_no_register_access_makes_the_device_fail(accesses):
    rig = Rig()
    for offset, width, value in accesses:
        rig.unit.write(offset, width, value & (1 << 8 * width) - 1)
        assert 0 <= rig.unit.read(offset, width) < 1 << 8 * width


ranges = st.tuples(st.integers(0, 15), st.integers(0, 15))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.booleans(), ranges), max_size=20))
def test_mappings_are_what_a_list_of_them_says(steps):
    rig = Rig()
    rig.attach(1, EP)
    kept = []
    for is_map, (first, last) in steps:
        low, high = first << 12, (last << 12) + 0xFFF
        meets = [one for one in kept if one[0] <= high and low <= one[1]] if low < high else []
        if is_map:
            code = rig.map(1, low, high, 0x100000 + low)
            assert code is (Code.RANGE if high < low else Code.INVAL if meets else Code.OK)
            kept += [(low, high)] if code is Code.OK else []
        else:
            splits = any(one[0] < low or one[1] > high for one in meets)
            assert rig.unmap(1, low, high) is (Code.RANGE if splits else Code.OK)
            kept = kept if splits else [one for one in kept if one not in meets]
    for page in range(16):
        at = page << 12
        inside = any(low <= at <= high for low, high in kept)
        assert rig.reach(EP, at) == (0x100000 + at if inside else Reason.MAPPING)


def test_memory_that_is_not_there_is_an_error_of_the_access():
    rig = Rig()
    rig.attach(1, EP)
    rig.map(1, 0x1000, 0x1FFF, 1 << 50)
    assert rig.reach(EP, 0x1000) == 1 << 50
    with pytest.raises(BadAddressError):
        rig.memory.read(1 << 50, 4)
