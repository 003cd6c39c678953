"""Guests' PASIDs on AMD: device TLBs of a guest's own GCR3 table, and tables that PASIDs are attached to."""

import ctypes
from errno import EINVAL, EOPNOTSUPP

import pytest
from hypothesis import given, settings, strategies as st

import softiommu
from drivers.amd_guest import NAME, RW, Guest
from drivers.nested_any_order import AnyOrder, Attached, check
from drivers.nested_host import PAGE, RAM_SIZE, Raw, generic, page, refusal
from softiommu.abi import iommufd as abi
from softiommu.abi.amd_extension import PROCESS, VEVENTQ, AmdEvent, HwptAmdProcess, ProcessFlags
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV2, Outcome, Scope, Target
from softiommu.drivers.hidden import KEPT
from softiommu.hardware.amd.events import DeviceEvent
from softiommu.hardware.bus import DmaError
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

IOVA = 0x40_0000
PASID, NEST_PARENT = int(abi.HwptAllocFlags.ALLOC_PASID), int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)
ATS = int(ProcessFlags.ATS)
HERE = {"granule_lg2": 12, "addr": IOVA, "count": 1}


def machine(pasid_bits=9, efr2=1, **efr):
    """A device with PASIDs and a TLB of its own."""
    changed = ", ".join(f"{name} = {value}" for name, value in efr.items())
    return Machine(
        parse(
            'name = "lab"\n[[iommu]]\nname = "amd0"\nmodel = "amd"\n'
            f"efr = {{ {changed} }}\nefr2 = {{ GCR3TRPModeSup = {efr2} }}\n"
            f'[[device]]\nname = "dev0"\naddress = "0000:00:04.0"\nmodel = "pcitest"\npasid_bits = {pasid_bits}\n',
            "lab.toml",
        )
    )


@pytest.fixture
def guest():
    made = Guest(machine(), flags=PASID)
    yield made
    made.close()


def table_of(guest, data, count=1, levels=4):
    """A guest table whose pages from IOVA on are pages of data from one on."""
    table = guest.table(levels)
    table.map(IOVA, page(data), count * PAGE, RW)
    return table


def seen(guest, *pasids, iova=IOVA):
    """What the device finds at an address, by each PASID."""
    return [guest.reach(iova, pasid) for pasid in pasids]


# A GCR3 table of the guest's, and the device's TLB


def own(guest):
    """PASIDs 1 and 2, whose pages at IOVA are the pages of data with their numbers; the device may use its TLB."""
    tables = {}
    for pasid in (1, 2):
        tables[pasid] = table_of(guest, pasid)
        guest.process(pasid, tables[pasid])
    nested = guest.nest(guest.entry(ats=1))
    guest.device.attach(nested)
    assert guest.wired.function.ats.ATS_CONTROL.ENABLE
    assert seen(guest, 1, 2) == [1, 2]
    return tables, nested


def test_a_page_that_the_host_takes_away_leaves_the_tlb_whatever_pasid_had_it(guest):
    own(guest)
    guest.hide(1)
    assert seen(guest, 1, 2) == [None, 2]
    guest.show(1)
    assert seen(guest, 1, 2) == [1, 2]


def test_a_guest_empties_the_tlb_of_one_pasid(guest):
    tables, nested = own(guest)
    for table in tables.values():
        table.unmap(IOVA, PAGE)
    assert generic(nested, scope=Scope.DOMAIN, targets=Target.LEAF) == 1
    assert seen(guest, 1, 2) == [1, 2]
    for entry in (
        {"scope": Scope.RANGE, "pasid": 3, **HERE},
        {"scope": Scope.RANGE, "pasid": 1, **HERE, "addr": IOVA + PAGE},
        {"scope": Scope.PASID, "pasid": 1, "valid": 1, "arch_id": 5},
    ):
        assert generic(guest.viommu, **entry, targets=Target.DEVICE_TLB) == 1
    assert seen(guest, 1, 2) == [1, 2]
    assert generic(guest.viommu, scope=Scope.RANGE, pasid=1, **HERE, targets=Target.DEVICE_TLB) == 1
    assert seen(guest, 1, 2) == [None, 2]
    assert generic(guest.viommu, scope=Scope.PASID, pasid=2, targets=Target.DEVICE_TLB, valid=2, device=NAME) == 1
    assert seen(guest, 1, 2) == [None, None]


@pytest.mark.parametrize("scope", [Scope.DOMAIN, Scope.RANGE_ALL_PASIDS])
def test_an_entry_for_all_pasids_empties_the_tlb_of_each(guest, scope):
    tables, nested = own(guest)
    for table in tables.values():
        table.unmap(IOVA, PAGE)
    here = {} if scope is Scope.DOMAIN else HERE
    assert generic(nested, scope=scope, targets=Target.LEAF | Target.DEVICE_TLB, **here) == 1
    assert seen(guest, 1, 2) == [None, None]


def test_a_tlb_that_does_not_answer_is_told(guest):
    _, nested = own(guest)
    guest.wired.function.port.iommu.invalidate = lambda pasid, first, last: False
    entry = InvalidateV2(scope=Scope.DOMAIN, targets=Target.DEVICE_TLB, out_errno=7)
    raw = ctypes.create_string_buffer(entry.to_bytes())
    cmd = abi.HwptInvalidate(32, nested.id, ctypes.addressof(raw), GENERIC, entry.SIZE, 1, 0)
    guest.iommufd.backend.call("HWPT_INVALIDATE", abi.HWPT_INVALIDATE, cmd)
    answer = InvalidateV2.from_bytes(raw.raw)
    assert (cmd.entry_num, answer.out_errno, answer.out_fault) == (1, 0, Outcome.DEVICE_TIMEOUT)


def test_a_device_that_leaves_its_guest_takes_no_translation_along(guest):
    own(guest)
    guest.device.attach(guest.parent)
    assert seen(guest, 1, 2) == [None, None]
    assert guest.reach(page(3)) == 3


# Tables that PASIDs have


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("viommu", [False, True])
def test_each_pasid_has_a_table_of_its_own_over_the_parent(guest, levels, viommu):
    where = guest.viommu if viommu else guest.parent
    one, two = (guest.stage(table_of(guest, data, levels=levels), 0, levels, where) for data in (1, 2))
    guest.device.attach(guest.parent)
    guest.device.attach(one, 1)
    guest.device.attach(two, 300)
    assert seen(guest, 1, 300, 3) == [1, 2, None]
    assert guest.reach(page(5)) == 5, "without a PASID it has guest-physical addresses"
    guest.hide(2)
    assert seen(guest, 1, 300) == [1, None]
    guest.show(2)
    guest.device.attach(two, 1)
    assert seen(guest, 1, 300) == [2, 2]
    guest.device.detach(300)
    assert seen(guest, 1, 300) == [2, None]
    guest.device.detach(1)
    assert seen(guest, 1, 300) == [None, None]
    assert guest.reach(page(5)) == 5


def test_requests_without_a_pasid_may_have_a_table_too(guest):
    zero, one = guest.stage(table_of(guest, 7)), guest.stage(table_of(guest, 1))
    guest.device.attach(zero)
    assert seen(guest, None, 1) == [7, None]
    guest.device.attach(one, 1)
    assert seen(guest, None, 1) == [7, 1]
    guest.device.attach(one)
    assert seen(guest, None, 1) == [1, 1]
    guest.device.detach()
    assert seen(guest, None, 1) == [None, 1]
    guest.device.attach(guest.parent)
    assert (guest.reach(page(3)), guest.reach(IOVA, 1)) == (3, 1)
    guest.device.detach(1)
    guest.device.attach(zero)
    assert seen(guest, None, 1) == [7, None]


@pytest.mark.parametrize("flags", [0, ATS])
def test_what_is_not_invalidated_stays_and_what_is_goes(guest, flags):
    tables = [table_of(guest, number) for number in (1, 2)]
    stages = [guest.stage(tables[0], flags), guest.stage(tables[1], flags, parent=guest.parent)]
    for pasid, nested in enumerate(stages, 1):
        guest.device.attach(nested, pasid)
    assert guest.wired.function.ats.ATS_CONTROL.ENABLE == flags
    assert seen(guest, 1, 2) == [1, 2]
    for table in tables:
        table.unmap(IOVA, PAGE)
    assert seen(guest, 1, 2) == [1, 2]
    assert generic(guest.viommu, scope=Scope.RANGE, pasid=1, **HERE, targets=Target.LEAF) == 1
    assert seen(guest, 1, 2) == [1 if flags else None, 2]
    both = Target.LEAF | Target.DEVICE_TLB
    assert generic(guest.viommu, scope=Scope.DOMAIN, targets=both) == 1
    assert seen(guest, 1, 2) == [None, 2], "the second is not of the vIOMMU"
    assert generic(stages[1], scope=Scope.PASID, pasid=1, targets=both) == 1
    assert generic(stages[1], scope=Scope.NO_PASID, targets=both) == 1
    assert seen(guest, 1, 2) == [None, 2]
    assert generic(stages[1], scope=Scope.PASID, pasid=2, targets=both) == 1
    assert seen(guest, 1, 2) == [None, None]


def test_a_parent_that_grows_or_tracks_takes_its_pasids_along():
    guest = Guest(machine(), flags=PASID | int(abi.HwptAllocFlags.ALLOC_DIRTY_TRACKING))
    guest.device.attach(guest.parent)
    guest.device.attach(guest.stage(table_of(guest, 1)), 1)
    guest.parent.track_dirty()
    assert seen(guest, 1) == [1]
    guest.wired.function.port.write(IOVA, (1).to_bytes(8, "little"), 1)
    assert guest.parent.dirty(page(0), 4 * PAGE) == [page(1)]
    guest.close()


def test_guests_of_both_kinds_share_an_iommu(guest):
    """The GCR3 table of the driver lies at an address of the parent's, as those of guests do."""
    stage = guest.stage(table_of(guest, 1))
    guest.device.attach(stage, 1)
    assert seen(guest, 1) == [1]
    guest.device.detach(1)
    own(guest)
    assert seen(guest, 1, 2) == [1, 2]


def test_a_parent_keeps_the_end_of_its_addresses_for_gcr3_tables(guest):
    last = guest.ioas.ranges()[-1][1]
    assert last == (1 << 48) - KEPT - 1
    guest.device.attach(guest.stage(table_of(guest, 1)), 1)
    reader = guest.table()
    reader.map(IOVA, last + 1, PAGE, RW)
    guest.device.attach(guest.stage(reader), 2)
    assert guest.reach(IOVA, 2) is not None, "it says where the guest's tables are"
    with pytest.raises(DmaError):
        guest.wired.function.port.write(IOVA, bytes(8), 2)
    assert seen(guest, 1) == [1]


def refused(guest, attach, *arguments):
    """The errno of an attach, which changes nothing."""
    before = seen(guest, None, 1, 2)
    found = refusal(attach, *arguments)[0]
    assert seen(guest, None, 1, 2) == before
    return found


def test_what_one_device_table_entry_cannot_say_is_refused(guest):
    attach, one = guest.device.attach, guest.stage(table_of(guest, 1))
    other = guest.device.hwpt(guest.iommufd.ioas(), NEST_PARENT | PASID)
    plain = guest.device.hwpt(guest.iommufd.ioas(), PASID)
    entry = guest.nest(guest.entry())
    assert refused(guest, attach, entry, 1) == EINVAL  # a guest's whole entry
    for base in (other, plain):
        attach(base)
        assert refused(guest, attach, one, 1) == EINVAL
        guest.device.detach()
    attach(one, 1)
    for wrong in (other, plain, entry):
        assert refused(guest, attach, wrong) == EINVAL
    assert refused(guest, attach, plain, 2) == EINVAL
    assert refused(guest, attach, guest.parent, 2) == EINVAL
    assert refused(guest, attach, guest.stage(table_of(guest, 2), parent=other), 2) == EINVAL
    assert refused(guest, attach, guest.stage(table_of(guest, 2, levels=5), 0, 5), 2) == EINVAL
    assert refused(guest, attach, one, 512) == EINVAL


def test_a_parent_that_was_not_made_for_pasids_has_no_place_for_a_gcr3_table():
    guest = Guest(machine())
    one = guest.stage(table_of(guest, 1))
    assert refused(guest, guest.device.attach, one, 1) == EINVAL
    assert refused(guest, guest.device.attach, one) == EINVAL
    guest.close()


@pytest.mark.parametrize(
    ("data", "errno"),
    [
        (HwptAmdProcess(0x1001, 4), EINVAL),
        (HwptAmdProcess(1 << 52, 4), EINVAL),
        (HwptAmdProcess(0x1000, 3), EINVAL),
        (HwptAmdProcess(0x1000, 6), EINVAL),
        (HwptAmdProcess(0x1000, 4, 2), EOPNOTSUPP),
        (HwptAmdProcess(0x1000, 4, 1 << 31), EOPNOTSUPP),
        (Raw(bytes(15)), EINVAL),
        (Raw(bytes(17)), EINVAL),
    ],
    ids=str,
)
def test_a_table_that_cannot_be_is_refused(guest, data, errno):
    for parent in (guest.viommu, guest.parent):
        assert refusal(guest.device.hwpt, parent, PASID, (PROCESS, data))[0] == errno


@given(
    root=st.one_of(st.integers(0, RAM_SIZE), st.integers(0, (1 << 64) - 1)).map(lambda at: at & -PAGE),
    levels=st.integers(3, 6),
    words=st.lists(st.integers(0, (1 << 64) - 1), min_size=8, max_size=8),
    iova=st.integers(0, (1 << 48) - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_table_of_garbage_is_refused_or_stays_within_the_parent(root, levels, words, iova):
    guest = _SHARED[0] if _SHARED else _SHARED.append(Guest(machine(), flags=PASID)) or _SHARED[0]
    made = []
    data = PROCESS, HwptAmdProcess(root, levels)
    errno, _ = refusal(lambda: made.append(guest.device.hwpt(guest.viommu, PASID, data)))
    if errno:
        assert errno == EINVAL
        return
    at = guest.memory.alloc(PAGE) if not _PAGE else _PAGE[0]
    _PAGE[:] = [at]
    for number in range(512):
        guest.memory.write_u64(at + 8 * number, words[number % 8])
    made.append(guest.device.hwpt(guest.viommu, PASID, (PROCESS, HwptAmdProcess(at, 4))))
    for pasid, nested in enumerate(made if levels == 4 else made[1:], 1):
        guest.device.attach(nested, pasid)
        assert not guest.leads_out(iova, pasid)
    for pasid in (1, 2):
        guest.device.detach(pasid)
    for nested in made:
        nested.destroy()


_SHARED, _PAGE = [], []


@pytest.mark.parametrize(
    ("lacks", "flags", "levels"),
    [({"efr2": 0}, PASID, 4), ({"GIoSup": 0}, 0, 4), ({"GATS": 0}, PASID, 5)],
    ids=str,
)
def test_what_the_hardware_has_not_is_refused(lacks, flags, levels):
    with softiommu.open(machine(**lacks)) as iommufd:
        device, ioas = iommufd.device("dev0"), iommufd.ioas()
        made = []
        found, _ = refusal(lambda: made.append(device.hwpt(ioas, NEST_PARENT | flags)))
        for parent in made:
            found, _ = refusal(device.hwpt, parent, PASID, (PROCESS, HwptAmdProcess(0x1000, levels)))
        assert found == EOPNOTSUPP


@pytest.mark.parametrize("bits", [9, 18, 20])
def test_nothing_is_left_of_a_gcr3_table(bits):
    guest = Guest(machine(bits), flags=PASID)
    memory, dids = guest.machine.hardware.memory, guest.wired.device.driver._dids
    one = guest.stage(table_of(guest, 1))
    places = (1, (1 << min(bits, 16)) - 1, 1 << min(bits, 16) - 1)
    counts = []
    for _ in range(3):
        for pasid in places:
            guest.device.attach(one, pasid)
        assert seen(guest, *places) == [1, 1, 1]
        for pasid in places:
            guest.device.detach(pasid)
        counts.append((memory.given, len(dids)))
    assert len(set(counts[1:])) == 1
    guest.close()


def test_a_guest_hears_of_the_faults_of_its_pasids(guest):
    queue = guest.viommu.event_queue(VEVENTQ, 16, AmdEvent.SIZE)
    guest.device.attach(guest.stage(table_of(guest, 7)))
    guest.device.attach(guest.stage(table_of(guest, 1)), 1)
    guest.device.attach(guest.stage(table_of(guest, 2), parent=guest.parent), 2)
    away = IOVA + PAGE
    assert seen(guest, None, 1, 2, 5, iova=away) == [None] * 4
    words = [DeviceEvent(AmdEvent.from_bytes(event.data).low) for event in queue.read()]
    assert [(word.DeviceID, word.GN, word.DOMAIN) for word in words] == [(NAME, 1, 0), (NAME, 1, 1)]
    assert len(guest.machine.messages) == 2, "the third has nobody who listens, the fourth is nobody's"


# Any order


class _Pasids(Guest):
    """Tables of PASIDs 1 and 2, and of requests without one."""

    def __init__(self):
        super().__init__(machine(), flags=PASID)
        self._stages = {}

    def route(self, process, table):
        if (process, table.root) not in self._stages:
            self._stages[process, table.root] = self.stage(table, ATS)
        self.device.attach(self._stages[process, table.root], process or None)

    def _targets(self, plain):
        return Target.DEVICE_TLB | (Target.LEAF if plain else Target.LEAF | Target.TABLES)

    def forget_page(self, process, iova, plain):
        here = {"granule_lg2": 12, "addr": iova, "count": 1, "targets": self._targets(plain)}
        named = {"scope": Scope.RANGE, "pasid": process} if process else {"scope": Scope.RANGE_NO_PASID}
        generic(self.viommu, **named, **here)
        return not plain

    def forget_process(self, process, plain):
        named = {"scope": Scope.PASID, "pasid": process} if process else {"scope": Scope.NO_PASID}
        generic(self.viommu, **named, targets=self._targets(plain))
        return not plain

    def forget_route(self, process, plain):
        self.forget_process(process, False)

    def forget_everything(self, plain):
        generic(self.viommu, scope=Scope.DOMAIN, targets=15)


class AmdPasidsAnyOrder(Attached):
    """Both stages are cached as one, in the IOMMU and in the device."""

    whole_translations = device_tlb = found_by_process = True

    def make(self):
        return _Pasids()


class _OwnTable(_Pasids):
    """The same with a GCR3 table of the guest's."""

    def __init__(self):
        super().__init__()
        self.nested = self.nest(self.entry(ats=1))
        self.device.attach(self.nested)

    def route(self, process, table):
        self.process(process, table)

    def forget_route(self, process, plain):
        named = {"scope": Scope.PASID, "pasid": process} if process else {"scope": Scope.NO_PASID}
        generic(self.nested, **named, targets=15)


class AmdTlbAnyOrder(AnyOrder):
    """Device TLBs of a GCR3 table of the guest's."""

    whole_translations = device_tlb = found_by_process = True

    def make(self):
        return _OwnTable()


@pytest.mark.parametrize("machine", [AmdPasidsAnyOrder, AmdTlbAnyOrder])
def test_a_guest_in_any_order_sees_what_is_cached_until_it_invalidates_it(machine):
    check(machine, 30, 30)
