"""AMD IOMMU: the command buffer, both logs, and interrupts do what the manual says, also with garbage in them."""

import pytest
from amd_rig import SID, Device, Rig, answer, flags, pages_command
from hypothesis import given, settings, strategies as st

from softiommu.hardware.amd.commands import LAYOUTS, Iotlb0, Iotlb1, Opcode, PprResponse0, PprResponse1, Wait
from softiommu.hardware.amd.events import Code, CommandEvent, DeviceEvent, HardwareError
from softiommu.hardware.amd.presets import FULL
from softiommu.hardware.amd.registers import Control, Efr, MsiHeader, Registers, RingBase, Status
from softiommu.hardware.amd.signals import Message
from softiommu.hardware.iommu import ResponseCode
from softiommu.pagetable.kinds import READ, WRITE

INTERRUPTING = {"EventIntEn": 1, "ComWaitIntEn": 1, "PprIntEn": 1}
WAIT_AND_TELL = Wait.of(OPCODE=Opcode.COMPLETION_WAIT, I=1)


@pytest.fixture
def rig():
    return Rig()


# Registers


def test_registers_have_their_reset_values_and_access():
    iommu = Rig(IommuEn=0, CmdBufEn=0, EventLogEn=0, PprLogEn=0).iommu
    assert iommu.read(Registers.EFR.offset, 8) == FULL.efr
    iommu.write(Registers.EFR.offset, 8, 0)
    assert iommu.read(Registers.EFR.offset, 8) == FULL.efr
    assert iommu.read(Registers.STATUS.offset, 8) == 0
    assert iommu.capability.read(0, 4) & 0xFF == 0xF
    iommu.write(Registers.CONTROL.offset + 4, 4, 1 << 2)
    assert iommu.registers.CONTROL.DevTblSegEn == 1


def test_registers_and_bits_of_absent_features_are_not_there():
    iommu = Rig(Efr(0)).iommu
    for register in (Registers.PPR_BASE, Registers.MSI_ADDR_LOW, Registers.HWEV_LOW):
        iommu.write(register.offset, register.size, 0x1000)
        assert iommu.read(register.offset, register.size) == 0
    control = Control(iommu.read(Registers.CONTROL.offset, 8))
    assert (control.IommuEn, control.PPREn, control.GTEn, control.PprLogEn) == (1, 0, 0, 0)


def test_rings_run_while_they_and_the_iommu_are_enabled(rig):
    def running():
        return rig.status.CmdBufRun, rig.status.EventLogRun, rig.status.PprLogRun

    assert running() == (1, 1, 1)
    rig.control(EventLogEn=0)
    assert running() == (1, 0, 1)
    rig.control(IommuEn=0)
    assert running() == (0, 0, 0)


def test_pointers_beyond_their_ring_and_those_of_the_hardware_stay(rig):
    for register in (Registers.CMD_TAIL, Registers.EVENT_HEAD, Registers.CMD_HEAD, Registers.EVENT_TAIL):
        rig.set(register, 4096)
        assert rig.iommu.read(register.offset, 8) == 0
    rig.set(Registers.EVENT_TAIL, 16)
    assert rig.iommu.read(Registers.EVENT_TAIL.offset, 8) == 0
    rig.control(EventLogEn=0)
    rig.set(Registers.EVENT_TAIL, 16)
    assert rig.iommu.read(Registers.EVENT_TAIL.offset, 8) == 16
    rig.set(Registers.EVENT_BASE, RingBase.of(LEN=8, BASE=rig.events >> 12))
    assert rig.iommu.read(Registers.EVENT_TAIL.offset, 8) == 0


# The command buffer


def test_a_wait_stores_and_interrupts():
    rig = Rig(**INTERRUPTING)
    rig.iommu.signals.msi = Message(True, 0xFEE00000, 0x31)
    assert rig.completes()
    assert rig.messages == []
    rig.submit(WAIT_AND_TELL)
    assert rig.status.ComWaitInt
    assert rig.messages == [(0xFEE00000, 0x31)]
    rig.submit(WAIT_AND_TELL)
    assert len(rig.messages) == 1
    rig.set(Registers.STATUS, Status.of(ComWaitInt=1))
    assert not rig.status.ComWaitInt
    rig.submit(WAIT_AND_TELL)
    assert len(rig.messages) == 2


def test_the_buffer_wraps(rig):
    for _ in range(600):
        rig.submit(Opcode.INVALIDATE_IOMMU_ALL << 60)
    assert rig.completes()
    assert rig.take_events() == []


def reserved_bits():
    for opcode, layout in LAYOUTS.items():
        for word, kind in enumerate(layout):
            mask = (1 << 64) - 1 if kind is None else kind.RESERVED
            yield from ((opcode, word, bit) for bit in range(64) if mask >> bit & 1)


def test_every_reserved_bit_of_a_command_is_illegal():
    for opcode, word, bit in reserved_bits():
        rig = Rig(ram=1 << 20)
        rig.submit(opcode << 60 | (0 if word else 1 << bit), 1 << bit if word else 0)
        low, high = rig.event()
        assert (low.CODE, high) == (Code.ILLEGAL_COMMAND_ERROR, rig.commands)
        assert not rig.status.CmdBufRun


@pytest.mark.parametrize("opcode", [0, 9, 15])
def test_an_unknown_opcode_stops_the_buffer_until_it_is_started_again(rig, opcode):
    rig.submit(opcode << 60)
    assert rig.event()[0].CODE == Code.ILLEGAL_COMMAND_ERROR
    rig.submit(Opcode.INVALIDATE_IOMMU_ALL << 60)
    assert rig.iommu.read(Registers.CMD_HEAD.offset, 8) == 0
    rig.control(CmdBufEn=0)
    rig.set(Registers.CMD_HEAD, 16)
    rig.control()
    assert rig.iommu.read(Registers.CMD_HEAD.offset, 8) == 32
    assert rig.completes()


@pytest.mark.parametrize(
    "command",
    [
        (Opcode.INVALIDATE_IOMMU_ALL << 60, 0),
        (Opcode.PREFETCH_IOMMU_PAGES << 60, 0),
        (Opcode.COMPLETE_PPR_REQUEST << 60, 0),
        pages_command(gn=1),
        (Opcode.INVALIDATE_IOTLB_PAGES << 60, 1 << 4),
    ],
    ids=["all", "prefetch", "ppr", "guest", "type"],
)
def test_commands_of_absent_features_are_illegal(command):
    for efr, legal in ((Efr(0), False), (FULL.efr, True)):
        rig = Rig(efr, ram=1 << 20, InvTimeOut=1)
        rig.submit(*command)
        assert bool(rig.status.CmdBufRun) == legal
        codes = {DeviceEvent(record.low).CODE for record in rig.take_events()}
        assert (Code.ILLEGAL_COMMAND_ERROR in codes) != legal


def test_a_store_or_a_buffer_outside_memory_is_a_hardware_error(rig):
    rig.submit(Wait.of(OPCODE=Opcode.COMPLETION_WAIT, S=1, StoreAddress=1 << 47))
    low, high = rig.event()
    assert (low.CODE, low.TYPE, high) == (Code.COMMAND_HARDWARE_ERROR, HardwareError.MASTER_ABORT, rig.commands)
    assert not rig.status.CmdBufRun
    rig.set(Registers.CMD_BASE, RingBase.of(LEN=8, BASE=1 << 38))
    rig.control(CmdBufEn=0)
    rig.control()
    rig.set(Registers.CMD_TAIL, 16)
    low, high = rig.event()
    assert (low.CODE, high) == (Code.COMMAND_HARDWARE_ERROR, 1 << 50)


def test_a_prefetch_fills_the_cache_and_never_faults(rig):
    pages = rig.host()
    pages.map(0x10000, 0x50000, 0x1000, READ)
    for address in (0x10000, 0x20000):
        rig.submit(Opcode.PREFETCH_IOMMU_PAGES << 60 | SID, address)
    assert rig.take_events() == []
    pages.unmap(0x10000, 0x1000)
    assert rig.reach(0x10000, READ) == 0x50000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, (1 << 60) - 1), st.integers(0, (1 << 64) - 1)), max_size=4)
)
def test_garbage_in_the_buffer_is_an_event_or_a_command(commands):
    rig = Rig(ram=1 << 20, InvTimeOut=1)
    for opcode, low, high in commands:
        mask = LAYOUTS[opcode].low.RESERVED if opcode in LAYOUTS and low & 1 else 0
        rig.submit(opcode << 60 | low & ~mask, high)
    stopped = not rig.status.CmdBufRun
    codes = {DeviceEvent(record.low).CODE for record in rig.take_events()}
    assert stopped == bool(codes & {Code.ILLEGAL_COMMAND_ERROR, Code.COMMAND_HARDWARE_ERROR})
    if not stopped:
        assert rig.iommu.registers.CMD_HEAD == rig.iommu.registers.CMD_TAIL


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x2080), st.sampled_from([4, 8]), st.integers(0, (1 << 64) - 1)), max_size=12))
def test_garbage_in_the_registers_raises_nothing(writes):
    rig = Rig(ram=1 << 20)
    for offset, size, value in writes:
        rig.iommu.write(offset & ~(size - 1), size, value)
        assert rig.iommu.read(offset & ~(size - 1), size) >> 8 * size == 0
        result = answer(rig.iommu.translate, SID, value & 0xFFFF_FFFF, READ)
        assert isinstance(result, Code) or result.allowed & READ


# The logs


def test_a_full_event_log_stops_and_tells():
    rig = Rig(EventIntEn=1)
    rig.entry({"TV": 0})
    rig.iommu.signals.msi = Message(True, 0xFEE00000, 0x24)
    for number in range(256):
        assert answer(rig.iommu.translate, SID, number << 12, READ) == Code.IO_PAGE_FAULT
    assert (rig.status.EventOverflow, rig.status.EventLogRun, rig.status.EventLogInt) == (1, 0, 1)
    assert len(rig.messages) == 2  # the first event, and the overflow
    found = rig.take_events()
    assert [record.high >> 12 for record in found] == list(range(255))
    answer(rig.iommu.translate, SID, 0, READ)
    rig.control(EventLogEn=0)
    rig.control()
    assert not rig.status.EventLogRun  # the overflow was not acknowledged
    rig.set(Registers.STATUS, Status.of(EventOverflow=1))
    rig.control(EventLogEn=0)
    rig.control()
    assert rig.status.EventLogRun
    assert rig.take_events() == []
    rig.blocked(0x7000, READ)


def test_hardware_errors_without_a_log_are_in_registers(rig):
    rig.control(EventLogEn=0)
    rig.set(Registers.DEVTAB_BASE, 1 << 50 | 15)
    for overflows in (0, 1):
        answer(rig.iommu.translate, SID, 0, READ)
        assert rig.iommu.read(Registers.HWEV_STATUS.offset, 8) == 1 | overflows << 1
    assert DeviceEvent(rig.iommu.read(Registers.HWEV_LOW.offset, 8)).CODE == Code.DEV_TAB_HARDWARE_ERROR
    assert rig.iommu.read(Registers.HWEV_HIGH.offset, 8) == (1 << 50) + 32 * SID
    rig.set(Registers.HWEV_STATUS, 3)
    assert rig.iommu.read(Registers.HWEV_STATUS.offset, 8) == 0


def test_a_log_outside_memory_loses_its_events(rig):
    rig.set(Registers.EVENT_BASE, RingBase.of(LEN=8, BASE=1 << 38))
    rig.entry({"TV": 0})
    assert answer(rig.iommu.translate, SID, 0, READ) == Code.IO_PAGE_FAULT
    assert rig.iommu.read(Registers.EVENT_TAIL.offset, 8) == 0


def test_the_pin_follows_status_while_messages_are_off():
    rig = Rig(EventIntEn=1)
    rig.entry({"TV": 0})
    rig.blocked(0, READ)
    assert rig.levels == [True]
    rig.set(Registers.STATUS, Status.of(EventLogInt=1))
    assert rig.levels == [True, False]
    rig.blocked(0, READ)
    rig.set(Registers.MSI_HEADER, MsiHeader.of(MsiEn=1))
    assert rig.levels == [True, False, True, False]
    quiet = Rig()
    quiet.entry({"TV": 0})
    quiet.blocked(0, READ)
    assert quiet.levels == []


# Interrupt remapping


def remapped(rig, data, length=4):
    return answer(rig.iommu.remap_interrupt, SID, 0xFEE00000, data)


@pytest.mark.parametrize("long", [False, True])
def test_interrupts_are_remapped_by_their_table(long):
    rig = Rig(GAEn=int(long))
    table = rig.memory.alloc(4096)
    rig.entry({"TV": 0}, q2={"IV": 1, "IntCtl": 2, "IntTabLen": 4, "IntTableRoot": table >> 6})
    if long:
        rig.memory.write_u64(table + 16 * 3, 1 | 1 << 6 | 0x000045 << 8)
        rig.memory.write_u64(table + 16 * 3 + 8, 0x77)
    else:
        rig.memory.write_u32(table + 4 * 3, 1 | 1 << 6 | 0x45 << 8 | 0x77 << 16)
    assert remapped(rig, 3) == (0xFEE00000 | 0x45 << 12 | 1 << 2, 0x77)
    rig.memory.write(table, bytes(4096))
    assert remapped(rig, 3) == (0xFEE00000 | 0x45 << 12 | 1 << 2, 0x77)
    rig.submit(Opcode.INVALIDATE_INTERRUPT_TABLE << 60 | SID)
    for data in (3, 16):
        assert remapped(rig, data) == Code.IO_PAGE_FAULT
        low, high = rig.event()
        assert (flags(low), high) == ({"I", "RW"}, 0xFEE00000)
    rig.memory.write_u64(table, 1 | 7 << 2)
    assert remapped(rig, 0) == Code.IO_PAGE_FAULT
    assert flags(rig.event()[0]) == {"I", "RW", "PR", "RZ"}
    rig.memory.write_u64(table, 2)
    assert remapped(rig, 0) == Code.IO_PAGE_FAULT
    assert rig.take_events() == []


def test_interrupts_of_an_entry_without_a_table_go_as_they_are(rig):
    assert remapped(rig, 3) == (0xFEE00000, 3)
    rig.entry(q2={"IV": 1, "IntCtl": 1})
    assert remapped(rig, 3) == (0xFEE00000, 3)
    rig.entry(q2={"IV": 1, "IntCtl": 0})
    assert remapped(rig, 3) == Code.INVALID_DEVICE_REQUEST
    rig.entry(q2={"IV": 1, "IntCtl": 2, "IntTabLen": 12})
    assert remapped(rig, 3) == Code.ILLEGAL_DEV_TABLE_ENTRY


# Device TLBs and page requests


def tlb_command(address, pasid=None, sid=SID):
    number = pasid or 0
    low = Iotlb0.of(
        OPCODE=Opcode.INVALIDATE_IOTLB_PAGES,
        DeviceID=sid,
        PASID7_0=number & 0xFF,
        PASID15_8=number >> 8 & 0xFF,
        PASID19_16=number >> 16,
    )
    return low, Iotlb1.of(GN=int(pasid is not None)) | address


@pytest.mark.parametrize(
    ("address", "pasid", "heard"),
    [
        (0x5000, None, (None, 0x5000, 0x5FFF)),
        (0x7000 | 1, 0x98765, (0x98765, 0, 0xFFFF)),
        ((1 << 63) - (1 << 12) | 1, 0, (0, 0, (1 << 64) - 1)),
    ],
)
def test_a_device_hears_which_translations_are_gone(rig, address, pasid, heard):
    device = Device()
    rig.iommu.connect(SID, device)
    rig.submit(*tlb_command(address, pasid))
    assert device.invalidated == [heard]
    assert rig.completes()


def test_a_device_that_does_not_answer_is_told_after_a_time(rig):
    device = Device()
    rig.iommu.connect(SID, device)
    device.answers = False
    rig.control(InvTimeOut=4)
    rig.submit(*tlb_command(0x5000))
    low, high = rig.event()
    event = CommandEvent(int(low))
    assert (event.CODE, event.DeviceID, high) == (Code.IOTLB_INV_TIMEOUT, SID, rig.commands)
    assert rig.completes()


def test_without_a_time_out_the_buffer_waits_for_the_device(rig):
    device = Device()
    rig.iommu.connect(SID, device)
    device.answers = False
    rig.submit(*tlb_command(0x5000))
    assert not rig.completes()
    device.answers = True
    assert rig.completes()


def test_translation_requests_are_answered_without_events(rig):
    pages = rig.host()
    pages.map(0x10000, 0x50000, 0x1000, READ)
    rig.entry({"Mode": 4, "HostPageTableRoot": pages.root >> 12}, {"I": 1})
    found = rig.iommu.ats_translate(SID, 0x10000, READ | WRITE)
    assert (found.pa, found.allowed & 3) == (0x50000, READ)
    for iova in (0x20000, 1 << 48, 0xFEE00000):
        assert not rig.iommu.ats_translate(SID, iova, READ).allowed & 3
    assert rig.take_events() == []
    assert rig.iommu.admit_translated(SID, 0x50000, WRITE).pa == 0x50000


@pytest.mark.parametrize(("fields", "attributes"), [({}, {}), ({"TV": 0}, {"I": 1}), ({"V": 0}, {"I": 1})])
def test_devices_that_may_not_have_a_tlb_are_refused(rig, fields, attributes):
    rig.entry(fields, attributes)
    assert answer(rig.iommu.ats_translate, SID, 0x1000, READ) == Code.INVALID_DEVICE_REQUEST
    low, _ = rig.event()
    assert low.TR
    if "TV" not in fields:
        assert answer(rig.iommu.admit_translated, SID, 0x1000, READ) == Code.INVALID_DEVICE_REQUEST
        assert not rig.event()[0].TR


def test_a_translation_that_was_asked_for_reading_is_not_for_writing_where_that_is_tracked(rig):
    pages = rig.host(4, HAD=3)
    pages.map(0x10000, 0x50000, 0x1000, READ | WRITE)
    rig.entry({"Mode": 4, "HostPageTableRoot": pages.root >> 12, "HAD": 3}, {"I": 1})
    for want in (READ, READ | WRITE, READ):
        assert rig.iommu.ats_translate(SID, 0x10000, want).allowed & want == want
        assert bool(pages.harvest(0, 1 << 47, False)) == bool(want & WRITE) or want == READ
    assert pages.harvest(0, 1 << 47, True)
    rig.submit(*pages_command())
    assert not rig.iommu.ats_translate(SID, 0x10000, READ).allowed & WRITE
    assert not pages.harvest(0, 1 << 47, False)


def test_responses_go_to_their_device(rig):
    device = Device()
    rig.iommu.connect(SID, device)
    low = PprResponse0.of(OPCODE=Opcode.COMPLETE_PPR_REQUEST, DeviceID=SID, PASID=0x12345)
    for status, gn in ((0, 1), (1, 0), (15, 1), (7, 1)):
        rig.submit(low, PprResponse1.of(GN=gn, Tag=0x1A5, Status=status))
    assert device.responses == [
        (0x12345, 0x1A5, ResponseCode.SUCCESS),
        (None, 0x1A5, ResponseCode.INVALID),
        (0x12345, 0x1A5, ResponseCode.FAILURE),
        (0x12345, 0x1A5, ResponseCode.FAILURE),
    ]
