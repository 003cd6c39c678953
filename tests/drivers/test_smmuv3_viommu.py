"""A guest's commands and events on the SMMUv3 driver: what reaches the queue, and who is told."""

import errno

import pytest
from hypothesis import given, settings, strategies as st

from drivers.smmuv3_guest import (
    RAM,
    RAM_SIZE,
    atc_inv,
    cfgi_cd,
    cfgi_cd_all,
    context,
    tlbi_all,
    tlbi_asid,
    tlbi_range,
    tlbi_va,
)
from drivers.smmuv3_nest_rig import (
    COMMANDS,
    HOST_RAM,
    OTHER,
    RW,
    SID,
    STE,
    VSID,
    Bytes,
    Endpoint,
    Host,
    Rig,
    errno_of,
)
from softiommu.drivers.driver import DomainFlags
from softiommu.drivers.function import Function
from softiommu.drivers.smmuv3 import commands as smmuv3_commands
from softiommu.drivers.smmuv3.commands import WORDS
from softiommu.drivers.smmuv3.queue import CommandQueue
from softiommu.drivers.user_data import Handled, UserArray
from softiommu.hardware.smmuv3.commands import Op, Stream0, Vmid0
from softiommu.hardware.smmuv3.events import Event, Event0
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.pagetable.kinds import WRITE

# Commands


@pytest.mark.parametrize("at", [0x400000, 0x5FF000])
def test_a_command_for_an_address_is_for_all_of_its_leaf(at):
    """Stage 2 has smaller leaves than the guest: what is cached are pages, of which the guest knows nothing."""
    rig = Rig()
    pages = rig.guest.pages()
    pages.map(0x400000, 0x80000000, 0x200000, RW.value)
    for page in range(0, 0x200000, 0x80000):
        rig.parent.map(0x80000000 + page, HOST_RAM, 0x1000, RW)
    rig.guest.set_context(0, context(pages, 5))
    rig.device.attach(rig.nested(), None)
    for page in range(0, 0x200000, 0x80000):
        assert rig.reach(0x400000 + page) == HOST_RAM
    pages.unmap(0x400000, 0x200000)
    assert rig.reach(0x480000) == HOST_RAM
    assert rig.invalidate(tlbi_va(0x600000, 5), tlbi_va(0x3FF000, 5), tlbi_va(at, 6)) == (0, 3)
    assert rig.reach(0x480000) == HOST_RAM
    assert rig.invalidate(tlbi_va(at, 5)) == (0, 1)
    for page in range(0, 0x200000, 0x80000):
        assert rig.reach(0x400000 + page) is Event.F_TRANSLATION


@pytest.fixture
def queued(monkeypatch):
    seen = []
    attempt = CommandQueue.attempt

    def recording(queue, raw):
        seen.append(list(WORDS.iter_unpack(raw)))
        return attempt(queue, raw)

    monkeypatch.setattr(CommandQueue, "attempt", recording)
    return seen


@pytest.mark.parametrize("many", [1, 1 << 20], ids=["together", "one by one"])
def test_commands_are_taken_whole_and_in_order(queued, monkeypatch, many):
    monkeypatch.setattr(smmuv3_commands, "_MANY", many)
    rig = Rig()
    given = [
        tlbi_va(0x1000, 5, 0x1234),
        tlbi_asid(5, 0xFFFF),
        tlbi_range(0x4000, 7, 9),
        tlbi_all(),
        cfgi_cd(VSID, 3),
        cfgi_cd_all(VSID),
        atc_inv(VSID, 0x8000, 7, 3),
    ]
    queued.clear()
    assert rig.invalidate(*given) == (0, len(given))
    vmid = rig.parent.id << Vmid0.VMID.low

    def ours(low):
        return low & ~Vmid0.VMID.mask | vmid

    def real(low):
        return low & 0xFFFFFFFF | SID << 32

    assert queued == [
        [
            *((ours(low), high) for low, high in given[:3]),
            (Op.TLBI_NH_ALL | vmid, 0),
            *((real(low), high) for low, high in given[4:]),
        ]
    ]


def test_a_guest_cannot_touch_another_guests_tags():
    one = Rig()
    second = one.driver.device(Function("other", (OTHER,)))
    parent = second.alloc_paging(DomainFlags.NEST_PARENT, None)
    parent.map(RAM, HOST_RAM, RAM_SIZE, RW)
    viommu = second.alloc_viommu(1, parent, Host(), None)
    viommu.add_vdevice(second, VSID)
    pages = one.mapped()
    second.attach(viommu.alloc_nested(second, 0, Bytes.struct(one.guest.ste(), STE)), None)
    one.device.attach(one.nested(), None)
    for sid in (SID, OTHER):
        assert one.reach(0x1000, sid=sid) == HOST_RAM + 0x100000
    pages.unmap(0x1000, 0x1000)
    assert one.invalidate(tlbi_va(0x1000, 5, vmid=parent.id)) == (0, 1)
    assert one.reach(0x1000) is Event.F_TRANSLATION
    assert one.reach(0x1000, sid=OTHER) == HOST_RAM + 0x100000
    viommu.invalidate(Bytes.array([tlbi_all()]), Handled())
    assert one.reach(0x1000, sid=OTHER) is Event.F_TRANSLATION


@pytest.mark.parametrize("op", range(256))
def test_commands_that_are_no_guests_are_refused(op):
    rig = Rig()
    guests = {
        Op.CFGI_CD,
        Op.CFGI_CD_ALL,
        Op.TLBI_NH_ALL,
        Op.TLBI_NH_ASID,
        Op.TLBI_NH_VA,
        Op.TLBI_NH_VAA,
        Op.TLBI_NSNH_ALL,
        Op.ATC_INV,
    }
    command = (op | (VSID << 32 if op in (Op.CFGI_CD, Op.CFGI_CD_ALL, Op.ATC_INV) else 0), 0)
    expected = (0, 2) if op in guests else (errno.EIO, 1)
    assert rig.invalidate(tlbi_all(), command) == expected


@pytest.mark.parametrize(
    "bad",
    [
        cfgi_cd(SID, 0),  # the real id is not the guest's
        atc_inv(0, 0),
        (int(Stream0.of(OPCODE=Op.SYNC)), 0),
        (int(Op.TLBI_NH_ASID) | 1 << 8, 0),  # reserved bits: the hardware's own refusal
        (int(Op.TLBI_NH_VA), 0xFF << 4),
        (tlbi_range(0, 1, 1)[0], 1 << 10),  # a range of one granule without a hint
        (int(Op.ATC_INV) | VSID << 32, 53),
    ],
)
def test_an_array_that_fails_in_the_middle_counts_what_was_done(bad):
    rig = Rig()
    first, second = rig.mapped(0, 5), rig.mapped(1, 6)
    rig.device.attach(rig.nested(), None)
    for ssid in (None, 1):
        assert rig.reach(0x1000, pasid=ssid) == HOST_RAM + 0x100000
    for pages in (first, second):
        pages.unmap(0x1000, 0x1000)
    assert rig.invalidate(tlbi_va(0x1000, 5), tlbi_va(0x5000, 5), bad, tlbi_va(0x1000, 6)) == (errno.EIO, 2)
    assert rig.reach(0x1000) is Event.F_TRANSLATION
    assert rig.reach(0x1000, pasid=1) == HOST_RAM + 0x100000
    assert rig.invalidate(tlbi_va(0x1000, 6)) == (0, 1)
    assert rig.reach(0x1000, pasid=1) is Event.F_TRANSLATION


@pytest.mark.parametrize("lg2", [0, 1, 3, 19])
@pytest.mark.parametrize("at", [0, 1, 6, 7, 8, 254, 255, 256, 400])
def test_the_count_is_right_wherever_the_queue_wraps(lg2, at):
    rig = Rig(FULL._replace(idr1=FULL.idr1.replace(CMDQS=lg2)))
    good, bad = tlbi_va(0x1000, 5), (int(Op.TLBI_NH_ALL) | 1 << 12, 0)
    assert rig.invalidate(*[good] * 401) == (0, 401)
    assert rig.invalidate(*[good] * at, bad, *[good] * 9) == (errno.EIO, at)
    assert rig.invalidate(*[good] * 3) == (0, 3)


def test_types_lengths_and_empty_arrays():
    rig = Rig()
    assert rig.invalidate(tlbi_all(), data_type=0) == (errno.EINVAL, 0)
    assert rig.invalidate() == (errno.EINVAL, 0)
    assert rig.invalidate(tlbi_all(), length=24) == (0, 1)
    assert rig.invalidate((int(Op.TLBI_NH_ALL), 0), length=8) == (0, 1)
    raw = Bytes(bytes([Op.TLBI_NSNH_ALL]).ljust(23, b"\0") + b"\1")
    assert errno_of(rig.viommu.invalidate, UserArray(raw, 4096, COMMANDS, 24, 1), Handled()) == errno.E2BIG
    nested = rig.nested()
    assert errno_of(nested.invalidate, Bytes.array([tlbi_all()]), Handled()) == errno.EOPNOTSUPP
    nested.free()
    rig.viommu.free()


def test_a_device_that_does_not_answer_stops_nothing():
    rig = Rig()
    endpoint = Endpoint()
    rig.unit.connect(SID, endpoint)
    endpoint.answers = False
    assert rig.invalidate(atc_inv(VSID, 0x1000), tlbi_all()) == (0, 2)
    assert endpoint.invalidated == [(None, 0x1000, 0x1FFF)]
    assert rig.invalidate(atc_inv(VSID, 0x1000), (int(Op.TLBI_NH_ALL) | 1 << 9, 0)) == (errno.EIO, 1)


def test_a_name_ends_with_its_vdevice():
    rig = Rig()
    assert rig.invalidate(cfgi_cd(VSID, 0)) == (0, 1)
    rig.viommu.remove_vdevice(rig.device)
    assert rig.invalidate(cfgi_cd(VSID, 0)) == (errno.EIO, 0)
    assert rig.viommu.name_of(rig.device) is None


def test_a_stale_context_stays_until_it_is_named():
    rig = Rig()
    rig.mapped(0, 5)
    rig.device.attach(rig.nested(), None)
    assert rig.reach(0x1000) == HOST_RAM + 0x100000
    rig.mapped(0, 6, target=RAM + 0x180000)
    assert rig.reach(0x1000) == HOST_RAM + 0x100000
    assert rig.invalidate(cfgi_cd(VSID, 0)) == (0, 1)
    assert rig.reach(0x1000) == HOST_RAM + 0x180000


@settings(deadline=None)
@given(
    commands=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=20),
    ops=st.lists(st.sampled_from([0, *map(int, Op)]), min_size=20, max_size=20),
    named=st.booleans(),
)
def test_garbage_is_refused_or_carried_out(commands, ops, named):
    rig = Rig()
    mixed = [
        (low & ~0xFF & (0xFFFFFFFF if named else 2**64 - 1) | op | (VSID << 32 if named else 0), high)
        for (low, high), op in zip(commands, ops, strict=False)
    ]
    number, count = rig.invalidate(*mixed)
    assert (number, count) == (0, len(mixed)) or (number in (errno.EIO, errno.EINVAL) and count <= len(mixed))
    assert rig.invalidate(tlbi_all()) == (0, 1)


# Events


def test_a_guest_hears_of_its_own_faults_by_its_own_names():
    rig = Rig()
    rig.mapped()
    rig.device.attach(rig.nested(), None)
    assert rig.reach(0x5000, WRITE) is Event.F_TRANSLATION
    ((kind, event),) = rig.host.events
    first = Event0(event.evt0)
    assert (kind, first.TYPE, first.SID, event.evt2) == (1, Event.F_TRANSLATION, VSID, 0x5000)
    assert rig.log == []


def test_an_illegal_entry_is_the_guests_to_know():
    rig = Rig()
    rig.device.attach(rig.nested(S1CDMAX=21), None)
    assert rig.reach(0x1000) is Event.C_BAD_STE
    assert Event0(rig.host.events[0][1].evt0).TYPE == Event.C_BAD_STE
    rig.device.attach(rig.nested(), None)
    assert rig.reach(0x1000) is Event.C_BAD_CD
    assert Event0(rig.host.events[1][1].evt0).TYPE == Event.C_BAD_CD


def test_events_that_nobody_listens_to_are_logged():
    rig = Rig()
    rig.mapped()
    rig.device.attach(rig.nested(), None)
    rig.host.listens = False
    rig.reach(0x5000)
    assert [blocked.iova for blocked in rig.log] == [0x5000]
    rig.device.detach(None)
    own = rig.device.alloc_paging(DomainFlags.NONE, None)
    rig.device.attach(own, None)
    rig.host.listens = True
    rig.reach(0x6000)
    assert [blocked.iova for blocked in rig.log] == [0x5000, 0x6000]
    assert rig.host.events == []
