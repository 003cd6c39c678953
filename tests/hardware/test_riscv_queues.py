"""A RISC-V IOMMU's registers, queues, commands, interrupts, page requests and counters."""

import pytest
from hypothesis import given, settings, strategies as st
from riscv_rig import CQCSR, FQCSR, PQCSR, SID, Rig, context

from softiommu.clock import ManualClock
from softiommu.hardware.iommu import PageRequest, ResponseCode
from softiommu.hardware.riscv.commands import Ats0, Command, Inval, Iofence0, Iofence1, Iotinval0, Prgr
from softiommu.hardware.riscv.events import Cause, PageRequest0, PageRequest1, Ttyp
from softiommu.hardware.riscv.presets import FULL, QEMU, SMALL
from softiommu.hardware.riscv.registers import Cqcsr, Ddtp, DdtpMode, EventId, HpmEvent, Icvec, QueueBase, Registers
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

RW = READ | WRITE
IPSR, ICVEC, FCTL, DDTP = 0x54, 0x2F8, 8, 0x10
CMD_ILL, CMD_TO, CQMF, FENCE = (field.mask for field in (Cqcsr.CMD_ILL, Cqcsr.CMD_TO, Cqcsr.CQMF, Cqcsr.FENCE_W_IP))
MF, OF, ON = 1 << 8, 1 << 9, 1 << 16


# Registers


def test_registers_after_reset():
    rig = Rig(mode=DdtpMode.OFF)
    fresh = type(rig.iommu)(rig.memory, FULL)
    assert fresh.read(0, 8) == FULL
    assert not any(fresh.read(offset, 4) for offset in range(8, 0x1000, 4))
    assert type(rig.iommu)(rig.memory, FULL.replace(IGS=1)).read(FCTL, 4) == 2, "wires only: WSI is fixed"


def test_absent_features_have_no_registers():
    rig = Rig(SMALL.replace(IGS=1))
    for offset in range(8, 0x400, 4):
        if offset not in range(0x10, 0x38) and offset not in range(0x48, 0x50):
            rig.write(offset, 4, 0xFFFFFFFF & ~0x80)
    there = {offset for offset in range(8, 0x400, 4) if rig.read(offset)}
    assert there == {8, 0x10, 0x18, 0x28, 0x48, 0x4C, ICVEC}
    assert rig.read(ICVEC, 8) == 0x7F, "vectors of the command and the fault queue"


def test_each_register_keeps_the_bits_it_has():
    rig = Rig()
    for offset in (0x18, 0x28, 0x38):
        rig.write(offset, 8, (1 << 64) - 1)
        assert rig.read(offset, 8) == QueueBase.PPN.mask | 31
    rig.write(ICVEC, 8, (1 << 64) - 1)
    assert rig.read(ICVEC, 8) == 0xFFFF
    for index in (0, 15):
        rig.write(0x300 + 16 * index, 8, (1 << 64) - 1)
        rig.write(0x308 + 16 * index, 8, (1 << 64) - 1)
        assert rig.read(0x300 + 16 * index, 8) == (1 << 56) - 4
        assert rig.read(0x308 + 16 * index, 8) == 1 << 32 | 0xFFFFFFFF
    rig.write(0x270, 4, 0xFFFFFFFF)
    assert rig.read(0x270) == 0x0FFF0FFF
    rig.write(FCTL, 4, 0xFFFFFFFF)
    assert rig.read(FCTL) == 2, "one endianness, no Sv32"


def test_modes_that_do_not_exist_are_not_taken():
    rig = Rig(mode=DdtpMode.LEVEL2, levels=2)
    for mode in (DdtpMode.LEVEL3, 5, 13, 15):
        rig.write(DDTP, 8, Ddtp.of(MODE=mode, PPN=7, BUSY=1))
        assert Ddtp(rig.read(DDTP, 8)) == Ddtp.of(MODE=DdtpMode.LEVEL2, PPN=7)


@pytest.mark.parametrize("which", range(3))
def test_a_queue_of_fewer_entries_has_a_shorter_index(which):
    rig = Rig()
    base, index = ((0x18, 0x24), (0x28, 0x30), (0x38, 0x40))[which]
    rig.write((CQCSR, FQCSR, PQCSR)[which], 4, 0)
    rig.write(index, 4, 0xFFFFFFFF)
    assert rig.read(index) == 127
    rig.write(base, 8, QueueBase.of(LOG2SZ_1=2))
    assert rig.read(index) == 7


# Commands


GOOD = [
    (Command.IOTINVAL_VMA, 0),
    (Command.IOTINVAL_VMA | 1 << 10 | 3 << 32 | 0xFFFFF << 12 | 0xFFFF << 44, 1 << 9 | (1 << 62) - (1 << 10)),
    (Command.IOTINVAL_GVMA | 1 << 10 | 1 << 33 | 0xFFFF << 44, 1 << 10),
    (Command.IOFENCE_C | 3 << 12, 0),
    (Command.IODIR_INVAL_DDT | 0xFFFFFF << 40, 0),
    (Command.IODIR_INVAL_DDT | 1 << 33 | 0xFFFFFF << 40, 0),
    (Command.IODIR_INVAL_PDT | 1 << 33 | 0xFFFFF << 12, 0),
    (Command.ATS_INVAL | 1 << 33 | 0xFFFFFF << 40, 1),
    (Command.ATS_PRGR, (1 << 64) - 1),
]
RESERVED = {
    Command.IOTINVAL_VMA: ([11, *range(35, 44), *range(60, 64)], [*range(9), 62, 63]),
    Command.IOTINVAL_GVMA: ([11, 32, *range(35, 44), *range(60, 64)], [*range(9), 62, 63]),
    Command.IOFENCE_C: (list(range(14, 32)), [62, 63]),
    Command.IODIR_INVAL_DDT: ([10, 11, 12, 31, 32, *range(34, 40)], [0, 9, 63]),
    Command.IODIR_INVAL_PDT: ([10, 11, 32, *range(34, 40)], [0, 63]),
    Command.ATS_INVAL: ([10, 11, *range(34, 40)], []),
    Command.ATS_PRGR: ([10, 11, *range(34, 40)], []),
}


@pytest.mark.parametrize(("low", "high"), GOOD, ids=lambda word: f"{word:#x}")
def test_right_commands_are_carried_out(low, high):
    rig = Rig()
    assert rig.submit(low, high) == 0
    assert rig.read(Registers.CQH.offset) == 1


@pytest.mark.parametrize("command", Command)
def test_each_reserved_bit_of_a_command_is_illegal(command):
    always = 1 << 33 if command == Command.IODIR_INVAL_PDT else 0
    lows, highs = RESERVED[command]
    for low, high in [*((1 << bit, 0) for bit in lows), *((0, 1 << bit) for bit in highs)]:
        rig = Rig()
        assert rig.submit(command | always | low, high) == CMD_ILL, (low, high)
        assert rig.read(Registers.CQH.offset) == 0


@pytest.mark.parametrize(
    ("capabilities", "low", "high"),
    [
        (FULL, 0, 0),
        (FULL, 5, 0),
        (FULL, 1 | 2 << 7, 0),
        (FULL, 2 | 1 << 7, 0),
        (FULL, 3 | 2 << 7, 0),
        (FULL, 0x7F, 0),
        (FULL.replace(NL=0), Command.IOTINVAL_VMA | 1 << 34, 0),
        (FULL.replace(S=0), Command.IOTINVAL_VMA, 1 << 9),
        (FULL, Command.IOFENCE_C | 1 << 11, 0),
        (FULL, Command.IODIR_INVAL_PDT, 0),
        (FULL.replace(PD20=0), Command.IODIR_INVAL_PDT | 1 << 33 | 1 << 29, 0),
        (SMALL, Command.ATS_INVAL, 0),
        (SMALL, Command.ATS_PRGR, 0),
    ],
)
def test_commands_that_this_iommu_lacks_are_illegal(capabilities, low, high):
    rig = Rig(capabilities)
    assert rig.submit(low, high) == CMD_ILL


def test_a_device_id_that_the_directory_has_no_place_for_is_illegal():
    rig = Rig(mode=DdtpMode.LEVEL1)
    assert rig.submit(Command.IODIR_INVAL_DDT | 1 << 33 | 63 << 40) == 0
    assert rig.submit(Command.IODIR_INVAL_DDT | 1 << 33 | 64 << 40) == CMD_ILL


def test_an_error_stops_the_queue_until_it_is_cleared():
    rig = Rig()
    assert rig.submit(0) == CMD_ILL
    rig.submit(Command.IOTINVAL_VMA)
    assert rig.read(Registers.CQH.offset) == 0
    rig.memory.write_u64(rig.queues[0], Command.IOTINVAL_VMA)
    rig.write(CQCSR, 4, 3 | CMD_ILL)
    assert rig.read(Registers.CQH.offset) == 2


def test_a_queue_outside_memory_is_a_memory_fault():
    rig = Rig()
    rig.write(0x18, 8, QueueBase.of(PPN=1 << 40, LOG2SZ_1=6))
    assert rig.submit(Command.IOTINVAL_VMA) == CQMF


def test_turning_the_queue_on_zeroes_head_and_errors():
    rig = Rig()
    rig.submit(Command.IOTINVAL_VMA)
    rig.submit(0)
    rig.write(CQCSR, 4, 0)
    assert rig.read(CQCSR) == CMD_ILL
    rig.write(Registers.CQT.offset, 4, 0)
    rig.write(CQCSR, 4, 1)
    assert (rig.read(CQCSR), rig.read(Registers.CQH.offset)) == (1 | ON, 0)


def test_a_fence_stores_its_word_and_tells_by_wire():
    wires = []
    rig = Rig(wire=lambda *wire: wires.append(wire))
    rig.write(FCTL, 4, 2)
    rig.write(ICVEC, 8, Icvec.of(CIV=5))
    word = rig.memory.alloc(4096)
    low = Iofence0.of(COMMAND=Command.IOFENCE_C, AV=1, WSI=1, DATA=0xABCD1234)
    assert rig.submit(low, Iofence1.of(ADDR=word >> 2)) == FENCE
    assert rig.memory.read_u64(word) == 0xABCD1234
    assert (rig.read(IPSR), wires, rig.interrupts) == (1, [(5, True)], [])
    rig.write(IPSR, 4, 1)
    assert rig.read(IPSR) == 1, "its reason is still there"
    rig.write(CQCSR, 4, 3 | FENCE)
    rig.write(IPSR, 4, 1)
    assert (rig.read(IPSR), wires[-1]) == (0, (5, False))


def test_a_fence_whose_store_fails_is_a_memory_fault():
    rig = Rig()
    low = Iofence0.of(COMMAND=Command.IOFENCE_C, AV=1)
    assert rig.submit(low, Iofence1.of(ADDR=1 << 50)) == CQMF
    assert rig.read(Registers.CQH.offset) == 0


class Endpoint:
    """A device that hears, and completes invalidations when it is well."""

    def __init__(self):
        self.heard, self.well = [], True

    def invalidate(self, pasid, first, last):
        self.heard.append((pasid, first, last))
        return self.well

    def page_response(self, pasid, group, code):
        self.heard.append((pasid, group, code))


@pytest.fixture
def with_endpoint():
    rig = Rig()
    rig.endpoint = Endpoint()
    rig.iommu.connect(SID, rig.endpoint)
    return rig


def ats(command, sid=SID, **fields):
    return Ats0.of(COMMAND=command, RID=sid & 0xFFFF, DSV=1, DSEG=sid >> 16, **fields)


def test_invalidation_requests_reach_the_device(with_endpoint):
    rig = with_endpoint
    rig.submit(ats(Command.ATS_INVAL), Inval.of(PAGE=5))
    rig.submit(ats(Command.ATS_INVAL, PV=1, PID=7), Inval.of(PAGE=0b10011, S=1))
    rig.submit(ats(Command.ATS_INVAL), Inval.of(PAGE=(1 << 52) - 1, S=1))
    assert rig.endpoint.heard == [(None, 0x5000, 0x5FFF), (7, 0x10000, 0x17FFF), (None, 0, (1 << 64) - 1)]
    assert rig.submit(Command.IOFENCE_C) == 0


def test_a_device_that_does_not_answer_times_out_at_the_next_fence(with_endpoint):
    rig = with_endpoint
    rig.endpoint.well = False
    assert rig.submit(ats(Command.ATS_INVAL), 0) == 0
    assert rig.submit(Command.IOTINVAL_VMA) == 0
    assert rig.submit(Command.IOFENCE_C) == CMD_TO
    assert rig.read(Registers.CQH.offset) == 2
    rig.write(CQCSR, 4, 3 | CMD_TO)
    assert rig.read(Registers.CQH.offset) == 3
    assert rig.submit(ats(Command.ATS_INVAL, sid=1), 0) == 0, "nobody is there"
    assert rig.submit(Command.IOFENCE_C) == CMD_TO


def test_a_doorbell_from_within_a_command_runs_nothing_twice(with_endpoint):
    rig = with_endpoint

    def invalidate(pasid, first, last):
        rig.endpoint.heard.append(first)
        if len(rig.endpoint.heard) < 3:
            rig.submit(ats(Command.ATS_INVAL), Inval.of(PAGE=len(rig.endpoint.heard)))
        return True

    rig.endpoint.invalidate = invalidate
    rig.submit(ats(Command.ATS_INVAL), 0)
    assert rig.endpoint.heard == [0, 0x1000, 0x2000]
    assert rig.read(Registers.CQH.offset) == 3


def test_group_responses_reach_the_device(with_endpoint):
    rig = with_endpoint
    rig.submit(ats(Command.ATS_PRGR, PV=1, PID=7), Prgr.of(PRGI=0x1FF, RESPONSE=1))
    rig.submit(ats(Command.ATS_PRGR), Prgr.of(PRGI=2, RESPONSE=9))
    assert rig.endpoint.heard == [(7, 0x1FF, ResponseCode.INVALID), (None, 2, ResponseCode.FAILURE)]


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=12), sparse=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_in_the_command_queue_end_with_an_empty_queue_or_an_error(words, sparse):
    rig = Rig()
    rig.iommu.connect(0, Endpoint())
    for low, high in zip(words[::2], words[1::2], strict=False):
        code = list(Command)[low % 7]
        if sparse:
            low, high = low & 0xF3_FFFF_F000, high & 0x3FFFFFFFFFFFFC00
        rig.submit(low & ~0x3FF | code, high)
    done = rig.read(Registers.CQH.offset) == rig.read(Registers.CQT.offset)
    assert done != bool(rig.read(CQCSR) & (CMD_ILL | CMD_TO | CQMF))


@given(st.lists(st.tuples(st.integers(0, 0x3FF), st.sampled_from([4, 8]), st.integers(0, 2**64 - 1)), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_writes_to_registers_leave_a_model_that_answers(writes):
    rig = Rig(clock=ManualClock())
    for offset, width, value in writes:
        rig.write(offset & ~3, width, value)
    assert isinstance(rig.pa(0x5000, sid=3), int)
    rig.iommu.page_request(PageRequest(3, 0x5000, READ, 1, True))
    assert rig.read(0, 8) == FULL


# The fault queue


def test_a_full_fault_queue_overflows_and_drops_until_it_is_cleared():
    rig = Rig(entries=128)
    for number in range(130):
        rig.pa(number << 12)
    assert rig.read(FQCSR) & (OF | MF) == OF
    faults = rig.faults()
    assert [iova >> 12 for _, iova, _ in faults] == list(range(127))
    rig.pa(0x5000)
    assert rig.faults() == []
    rig.write(IPSR, 4, 2)
    assert rig.read(IPSR) == 2, "the overflow is still there"
    rig.write(FQCSR, 4, 3 | OF)
    rig.write(IPSR, 4, 2)
    assert rig.read(IPSR) == 0
    rig.pa(0x6000)
    assert [iova for _, iova, _ in rig.faults()] == [0x6000]


def test_a_fault_queue_outside_memory_drops():
    rig = Rig()
    rig.write(0x28, 8, QueueBase.of(PPN=1 << 40, LOG2SZ_1=6))
    rig.pa(0x5000)
    assert rig.read(FQCSR) & (OF | MF) == MF
    assert rig.read(Registers.FQT.offset) == 0


def test_a_fault_queue_that_is_off_records_nothing():
    rig = Rig()
    rig.write(FQCSR, 4, 0)
    assert rig.pa(0) is Cause.DDT_NOT_VALID
    assert (rig.read(FQCSR), rig.read(Registers.FQT.offset), rig.read(IPSR)) == (0, 0, 0)


# Interrupts


def messages(rig, vector, data, masked=0):
    rig.write(0x300 + 16 * vector, 8, 0x2800_0000 + 0x1000 * vector)
    rig.write(0x308 + 16 * vector, 4, data)
    rig.write(0x30C + 16 * vector, 4, masked)


def test_a_message_goes_out_when_a_bit_becomes_pending():
    rig = Rig()
    rig.write(ICVEC, 8, Icvec.of(FIV=3))
    messages(rig, 3, 0x33)
    rig.pa(0x5000)
    rig.pa(0x6000)
    assert (rig.read(IPSR), rig.interrupts) == (2, [(0x2800_3000, 0x33)])
    rig.write(IPSR, 4, 2)
    assert rig.read(IPSR) == 0
    rig.pa(0x7000)
    assert len(rig.interrupts) == 2


def test_a_masked_message_waits_for_its_vector():
    rig = Rig()
    messages(rig, 0, 0x33, masked=1)
    rig.pa(0x5000)
    assert rig.interrupts == []
    rig.write(0x30C, 4, 0)
    rig.write(0x30C, 4, 0)
    assert rig.interrupts == [(0x2800_0000, 0x33)]


def test_interrupts_are_enabled_by_queue():
    rig = Rig()
    for csr in (CQCSR, FQCSR, PQCSR):
        rig.write(csr, 4, 1)
    rig.pa(0x5000)
    rig.submit(0)
    assert (rig.read(IPSR), rig.interrupts) == (0, [])
    rig.write(CQCSR, 4, 3)
    assert rig.read(IPSR) == 1, "an error is there when it is enabled"


def test_a_message_that_no_memory_takes_is_a_fault_of_its_own():
    def refuse(address, data):
        raise BadAddressError(address, 4)

    rig = Rig(interrupt=refuse)
    messages(rig, 0, 1)
    rig.pa(0x5000)
    (first, _, _), (second, iotval, _) = rig.faults()
    assert (first.CAUSE, second.CAUSE, second.TTYP, second.DID) == (258, 273, Ttyp.NONE, 0)
    assert iotval == 0x2800_0000


# Page requests


def requests(rig):
    head, tail = rig.read(Registers.PQH.offset), rig.read(Registers.PQT.offset)
    at = [rig.queues[2] + 16 * (number % 128) for number in range(head, tail)]
    return [(PageRequest0(rig.memory.read_u64(pa)), PageRequest1(rig.memory.read_u64(pa + 8))) for pa in at]


def test_page_requests_are_queued_bit_for_bit(with_endpoint):
    rig = with_endpoint
    rig.device(context(EN_ATS=1, EN_PRI=1))
    rig.iommu.page_request(PageRequest(SID, 0x5123, RW, 0x1FF, True))
    rig.iommu.page_request(PageRequest(SID, 0x6000, READ | EXECUTE, 2, False, 7, True))
    rig.iommu.page_request(PageRequest(SID, 0x7000, WRITE, 3, False, 0xFFFFF))
    assert requests(rig) == [
        (PageRequest0.of(DID=SID), PageRequest1.of(R=1, W=1, L=1, PRGI=0x1FF, PAGE=5)),
        (PageRequest0.of(DID=SID, PV=1, PID=7, PRIV=1, EXEC=1), PageRequest1.of(R=1, PRGI=2, PAGE=6)),
        (PageRequest0.of(DID=SID, PV=1, PID=0xFFFFF), PageRequest1.of(W=1, PRGI=3, PAGE=7)),
    ]
    assert (rig.read(IPSR), rig.endpoint.heard) == (8, [])


FAILURE, INVALID, SUCCESS = ResponseCode.FAILURE, ResponseCode.INVALID, ResponseCode.SUCCESS


def off(rig):
    rig.write(DDTP, 8, 0)


def bare(rig):
    rig.write(DDTP, 8, 1)


def no_context(rig):
    rig.device([0] * 8)


def wrong_context(rig):
    rig.device(context(EN_ATS=1, EN_PRI=1, SXL=1))


def no_pri(rig):
    rig.device(context(EN_ATS=1))


def queue_off(rig):
    rig.write(PQCSR, 4, 0)


def queue_lost(rig):
    rig.write(0x38, 8, QueueBase.of(PPN=1 << 40, LOG2SZ_1=6))


def queue_full(rig):
    rig.write(0x38, 8, QueueBase.of(PPN=rig.queues[2] >> 12, LOG2SZ_1=0))
    rig.iommu.page_request(PageRequest(SID, 0x1000, READ, 1, False))


@pytest.mark.parametrize(
    ("broken", "code", "cause"),
    [
        (off, FAILURE, 256),
        (bare, INVALID, 260),
        (no_context, FAILURE, 258),
        (wrong_context, FAILURE, 259),
        (no_pri, INVALID, 260),
        (queue_off, FAILURE, None),
        (queue_lost, FAILURE, None),
        (queue_full, SUCCESS, None),
    ],
)
@pytest.mark.parametrize("prpr", [0, 1])
def test_page_requests_that_cannot_be_queued_are_answered(with_endpoint, broken, code, cause, prpr):
    rig = with_endpoint
    rig.device(context(EN_ATS=1, EN_PRI=1, PRPR=prpr))
    broken(rig)
    rig.iommu.page_request(PageRequest(SID, 0x5000, READ, 5, False, 7))
    rig.iommu.page_request(PageRequest(SID, 0, 0, 5, True, 7))
    assert rig.endpoint.heard == [], "not the last, and a stop marker"
    rig.iommu.page_request(PageRequest(SID, 0x6000, READ, 5, True, 7))
    keeps = code is FAILURE or (prpr and broken not in (bare, no_pri))
    assert rig.endpoint.heard == [(7 if keeps else None, 5, code)]
    faults = rig.faults()
    assert [(record.CAUSE, record.TTYP, iotval) for record, iotval, _ in faults] == [(cause, 9, 4)] * len(faults)
    assert len(faults) == (3 if cause else 0)


def test_a_full_page_request_queue_drops_until_it_is_cleared(with_endpoint):
    rig = with_endpoint
    rig.device(context(EN_ATS=1, EN_PRI=1))
    queue_full(rig)
    rig.iommu.page_request(PageRequest(SID, 0x5000, READ, 5, False))
    assert rig.read(PQCSR) & (OF | MF) == OF
    rig.write(Registers.PQH.offset, 4, 1)
    rig.iommu.page_request(PageRequest(SID, 0x5000, READ, 5, False))
    assert rig.read(Registers.PQT.offset) == 1
    rig.write(PQCSR, 4, 3 | OF)
    rig.iommu.page_request(PageRequest(SID, 0x5000, READ, 5, False))
    assert rig.read(Registers.PQT.offset) == 0


# Counters


def counter(rig, event, **how):
    rig.write(0x160, 8, HpmEvent.of(EVENT_ID=event, **how))
    return lambda: rig.read(0x68, 8)


def test_events_are_counted():
    rig = Rig()
    pages = rig.pages("riscv-sv39")
    pages.map(0x5000, 0x9000, 0x1000, RW)
    rig.device(context(pages))
    rig.write(0x160, 8, EventId.UNTRANSLATED)
    rig.write(0x168, 8, EventId.TLB_MISS)
    rig.write(0x170, 8, EventId.DEVICE_WALK)
    rig.write(0x178, 8, EventId.FIRST_STAGE_WALK)
    for _ in range(3):
        rig.pa(0x5000)
    assert [rig.read(0x68 + 8 * n, 8) for n in range(4)] == [3, 1, 1, 1]
    rig.write(0x5C, 4, 2)
    rig.pa(0x5000)
    assert rig.read(0x68, 8) == 3, "it is inhibited"


@pytest.mark.parametrize(
    ("how", "counted"),
    [
        ({"DV_GSCV": 1, "DID_GSCID": SID}, True),
        ({"DV_GSCV": 1, "DID_GSCID": SID ^ 1}, False),
        ({"DV_GSCV": 1, "DID_GSCID": SID & ~0xF | 7, "DMASK": 1}, True),
        ({"DV_GSCV": 1, "DID_GSCID": (SID ^ 0x10) & ~0xF | 7, "DMASK": 1}, False),
        ({"PV_PSCV": 1, "PID_PSCID": 0}, False),
        ({"PV_PSCV": 1, "PID_PSCID": 7}, True),
        ({"DV_GSCV": 1, "DID_GSCID": 1, "IDT": 1}, False),
        ({"IDT": 1}, False),
    ],
    ids=str,
)
def test_a_counter_counts_whom_its_filter_names(how, counted):
    rig = Rig()
    count = counter(rig, EventId.UNTRANSLATED, **how)
    rig.pa(0x5000, pasid=7)
    assert count() == int(counted)


def test_a_counter_that_overflows_interrupts_once():
    rig = Rig()
    count = counter(rig, EventId.UNTRANSLATED)
    rig.write(FQCSR, 4, 1)
    rig.write(0x68, 8, (1 << 64) - 1)
    rig.pa(0x5000)
    assert (count(), rig.read(0x160, 8) >> 63, rig.read(0x58), rig.read(IPSR)) == (0, 1, 2, 4)
    rig.write(0x160, 8, EventId.UNTRANSLATED)
    assert rig.read(0x58) == 0
    rig.write(0x160 + 8 * 30, 8, HpmEvent.of(OF=1))
    assert rig.read(0x58) == 1 << 31


def test_the_cycle_counter_counts_the_clock():
    clock = ManualClock()
    rig = Rig(QEMU, clock=clock)
    clock.advance(100)
    assert rig.read(0x60, 8) == 100
    rig.write(0x5C, 4, 1)
    clock.advance(50)
    assert rig.read(0x60, 8) == 100
    rig.write(0x5C, 4, 0)
    rig.write(0x60, 8, (1 << 63) - 10)
    clock.advance(11)
    assert rig.read(0x60, 8) == 1 << 63 | 1
    assert (rig.read(0x58), rig.read(IPSR)) == (1, 4)


def test_unknown_events_are_not_taken():
    rig = Rig()
    rig.write(0x160, 8, 77)
    assert rig.read(0x160, 8) == 0
    assert rig.submit(Iotinval0.of(COMMAND=Command.IOTINVAL_VMA)) == 0
