"""Guests' processes on RISC-V: device TLBs of a guest's own directory, and first stages that PASIDs are attached to."""

from errno import EINVAL, EOPNOTSUPP

import pytest
from hypothesis import given, settings, strategies as st

from drivers.nested_any_order import AnyOrder, Attached, check
from drivers.nested_host import PAGE, RAM_SIZE, generic, page, refusal
from drivers.riscv_guest import NAME, RW, Guest, ats, pdt, vma
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import Scope, Target
from softiommu.abi.riscv_extension import VEVENTQ, HwptRiscv, RiscvFault
from softiommu.drivers.hidden import KEPT
from softiommu.hardware.bus import DmaError
from softiommu.hardware.riscv.events import Fault0
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

IOVA = 0x40_0000
PASID = int(abi.HwptAllocFlags.ALLOC_PASID)


def machine(pasid_bits=8, **capabilities):
    """A device with PASIDs and a TLB of its own."""
    changed = ", ".join(f"{name} = {value}" for name, value in capabilities.items())
    return Machine(
        parse(
            'name = "lab"\n[[iommu]]\nname = "riscv0"\nmodel = "riscv"\n'
            f"capabilities = {{ {changed} }}\n"
            f'[[device]]\nname = "dev0"\naddress = "0000:00:04.0"\nmodel = "pcitest"\npasid_bits = {pasid_bits}\n',
            "lab.toml",
        )
    )


@pytest.fixture
def guest():
    made = Guest(machine(), flags=PASID)
    yield made
    made.close()


def table_of(guest, data, count=1):
    """A first stage whose pages from IOVA on are pages of data from one on."""
    table = guest.table()
    table.map(IOVA, page(data), count * PAGE, RW)
    return table


def stage(guest, table, pscid=1, **tc):
    """A nested HWPT that a PASID can have."""
    return guest.nest(guest.context(table, pscid, **tc), PASID)


def seen(guest, *pasids, iova=IOVA):
    """What the device finds at an address, by each PASID."""
    return [guest.reach(iova, pasid) for pasid in pasids]


# A directory of the guest's, and the device's TLB


def directory(guest):
    """Processes 1 and 2, whose pages at IOVA are the pages of data with their numbers; the device may use its TLB."""
    tables = {}
    for pid in (1, 2):
        tables[pid] = table_of(guest, pid)
        guest.process(pid, tables[pid], 10 + pid)
    nested = guest.nest(guest.context(EN_ATS=1))
    guest.device.attach(nested)
    assert guest.wired.function.ats.ATS_CONTROL.ENABLE
    assert seen(guest, 1, 2) == [1, 2]
    return tables, nested


def test_a_page_that_the_host_takes_away_leaves_the_tlb_whatever_process_had_it(guest):
    directory(guest)
    guest.hide(1)
    assert seen(guest, 1, 2) == [None, 2]
    guest.show(1)
    assert seen(guest, 1, 2) == [1, 2]


def test_a_guest_empties_the_tlb_of_one_process(guest):
    tables, nested = directory(guest)
    for table in tables.values():
        table.unmap(IOVA, PAGE)
    guest.tell(vma())
    assert seen(guest, 1, 2) == [1, 2]
    assert guest.tell(ats(PV=1, PID=1)) == 1
    assert seen(guest, 1, 2) == [None, 2]
    here = {"granule_lg2": 12, "addr": IOVA, "count": 1, "targets": Target.DEVICE_TLB}
    assert generic(nested, scope=Scope.RANGE, pasid=3, **here) == 1
    assert generic(nested, scope=Scope.RANGE, pasid=2, **(here | {"addr": IOVA + PAGE})) == 1
    assert seen(guest, 1, 2) == [None, 2]
    assert generic(nested, scope=Scope.RANGE, pasid=2, **here) == 1
    assert seen(guest, 1, 2) == [None, None]


@pytest.mark.parametrize("scope", [Scope.DOMAIN, Scope.RANGE_ALL_PASIDS])
def test_an_entry_for_all_processes_empties_the_tlb_of_each(guest, scope):
    tables, nested = directory(guest)
    for table in tables.values():
        table.unmap(IOVA, PAGE)
    here = {} if scope is Scope.DOMAIN else {"granule_lg2": 12, "addr": IOVA, "count": 1}
    assert generic(guest.viommu, scope=scope, targets=Target.LEAF, **here) == 1
    assert seen(guest, 1, 2) == [1, 2]
    assert generic(nested, scope=scope, targets=Target.DEVICE_TLB, **here) == 1
    assert seen(guest, 1, 2) == [None, None]


def test_a_device_that_leaves_its_guest_takes_no_translation_along(guest):
    directory(guest)
    guest.device.attach(guest.parent)
    assert seen(guest, 1, 2) == [None, None]
    assert guest.reach(page(3)) == 3


# First stages that PASIDs have


def test_each_pasid_has_a_first_stage_of_its_own_over_the_parent(guest):
    one, two = stage(guest, table_of(guest, 1), 1), stage(guest, table_of(guest, 2), 2)
    guest.device.attach(guest.parent)
    guest.device.attach(one, 1)
    guest.device.attach(two, 200)
    assert seen(guest, 1, 200, 3) == [1, 2, None]
    assert guest.reach(page(5)) == 5, "without a PASID it has guest-physical addresses"
    guest.hide(2)
    assert seen(guest, 1, 200) == [1, None]
    guest.show(2)
    guest.device.attach(two, 1)
    assert seen(guest, 1, 200) == [2, 2]
    guest.device.detach(200)
    assert seen(guest, 1, 200) == [2, None]
    guest.device.detach(1)
    assert seen(guest, 1, 200) == [None, None]
    assert guest.reach(page(5)) == 5


def test_requests_without_a_pasid_may_have_a_first_stage_too(guest):
    zero, one = stage(guest, table_of(guest, 7), 1), stage(guest, table_of(guest, 1), 2)
    guest.device.attach(zero)
    assert seen(guest, None, 1) == [7, None]
    guest.device.attach(one, 1)
    assert seen(guest, None, 1) == [7, 1]
    guest.device.attach(one)
    assert seen(guest, None, 1) == [1, 1]
    guest.device.detach()
    assert seen(guest, None, 1) == [None, 1]
    guest.device.detach(1)
    guest.device.attach(zero)
    assert seen(guest, None, 1) == [7, None]


def test_a_first_stage_that_is_not_valid_blocks_its_pasid(guest):
    guest.device.attach(stage(guest, table_of(guest, 1)), 1)
    guest.device.attach(stage(guest, table_of(guest, 2), 2, V=0), 2)
    assert seen(guest, 1, 2) == [1, None]


@pytest.mark.parametrize("uses_ats", [0, 1])
def test_what_is_not_invalidated_stays_and_what_is_goes(guest, uses_ats):
    tables = [table_of(guest, number) for number in (1, 2)]
    stages = [stage(guest, table, 5 + number, EN_ATS=uses_ats) for number, table in enumerate(tables)]
    for pasid, nested in enumerate(stages, 1):
        guest.device.attach(nested, pasid)
    assert guest.wired.function.ats.ATS_CONTROL.ENABLE == uses_ats
    assert seen(guest, 1, 2) == [1, 2]
    for table in tables:
        table.unmap(IOVA, PAGE)
    assert seen(guest, 1, 2) == [1, 2]
    guest.tell(vma(IOVA, 5))
    assert seen(guest, 1, 2) == [1 if uses_ats else None, 2]
    guest.tell(ats(PV=1, PID=1))
    assert seen(guest, 1, 2) == [None, 2]
    both = Target.LEAF | Target.DEVICE_TLB
    assert generic(stages[1], scope=Scope.PASID, pasid=1, targets=both) == 1
    assert seen(guest, 1, 2) == [None, 2]
    assert generic(stages[1], scope=Scope.PASID, pasid=2, targets=both) == 1
    assert seen(guest, 1, 2) == [None, None]


def test_a_device_uses_its_tlb_while_every_first_stage_says_so(guest):
    control = guest.wired.function.ats
    loud, silent = (stage(guest, table_of(guest, 1), 1 + how, EN_ATS=how) for how in (1, 0))
    guest.device.attach(loud, 1)
    assert control.ATS_CONTROL.ENABLE
    guest.device.attach(silent, 2)
    assert not control.ATS_CONTROL.ENABLE
    guest.device.detach(2)
    assert control.ATS_CONTROL.ENABLE


def test_a_parent_keeps_the_end_of_its_addresses_for_directories(guest):
    last = guest.ioas.ranges()[-1][1]
    assert last == (1 << 56) - KEPT - 1, "page numbers in directories have 44 bits"
    guest.device.attach(stage(guest, table_of(guest, 1)), 1)
    assert seen(guest, 1) == [1]
    reader = guest.table()
    reader.map(IOVA, last + 1, PAGE, RW)
    guest.device.attach(stage(guest, reader, 2), 2)
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


def test_what_one_device_context_cannot_say_is_refused(guest):
    attach, one = guest.device.attach, stage(guest, table_of(guest, 1))
    whole = guest.nest(guest.context(), PASID)
    assert refused(guest, attach, whole, 1) == EINVAL  # a directory of the guest's
    attach(whole)
    assert refused(guest, attach, one, 1) == EINVAL  # beside it
    guest.device.detach()
    plain = guest.device.hwpt(guest.iommufd.ioas(), PASID)
    attach(plain)
    assert refused(guest, attach, one, 1) == EINVAL  # a first stage of the host's
    guest.device.detach()
    attach(one, 1)
    assert refused(guest, attach, plain, 2) == EINVAL
    assert refused(guest, attach, plain) == EINVAL
    assert refused(guest, attach, guest.parent, 2) == EINVAL  # a second stage
    assert refused(guest, attach, stage(guest, table_of(guest, 2), 2, SADE=1), 2) == EINVAL
    assert refused(guest, attach, stage(guest, table_of(guest, 2), 2, DTF=1), 2) == EINVAL
    alone = guest.nest(guest.context(table_of(guest, 2)), PASID, parent=guest.parent)
    assert refused(guest, attach, alone, 2) == EINVAL  # another GSCID
    assert refused(guest, attach, one, 256) == EINVAL


@given(
    fsc=st.one_of(st.integers(0, RAM_SIZE >> 12), st.integers(0, (1 << 44) - 1)),
    mode=st.sampled_from([0, 8, 9, 10]),
    words=st.lists(st.integers(0, (1 << 64) - 1), min_size=8, max_size=8),
    iova=st.integers(0, (1 << 57) - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_first_stage_of_garbage_stays_within_the_parent(fsc, mode, words, iova):
    guest = _SHARED[0] if _SHARED else _SHARED.append(Guest(machine(), flags=PASID)) or _SHARED[0]
    at = guest.directory
    for number in range(512):
        guest.memory.write_u64(at + 8 * number, words[number % 8])
    made = [
        guest.nest(HwptRiscv(1, pscid << 12, mode << 60 | page), PASID) for pscid, page in enumerate((fsc, at >> 12), 1)
    ]
    for pasid, nested in enumerate(made, 1):
        guest.device.attach(nested, pasid)
        assert not guest.leads_out(iova, pasid)
    for pasid, nested in enumerate(made, 1):
        guest.device.detach(pasid)
        nested.destroy()


_SHARED = []


def test_a_parent_that_was_not_made_for_pasids_has_no_place_for_a_directory():
    guest = Guest(machine())
    one = stage(guest, table_of(guest, 1))
    guest.device.attach(one)
    assert refused(guest, guest.device.attach, one, 1) == EINVAL
    guest.close()


def test_hardware_without_process_directories_has_no_pasids():
    guest = Guest(machine(PD8=0, PD17=0, PD20=0), flags=PASID)
    assert refused(guest, guest.device.attach, stage(guest, table_of(guest, 1)), 1) in (EINVAL, EOPNOTSUPP)
    guest.close()


@pytest.mark.parametrize("bits", [8, 17, 20])
def test_nothing_is_left_of_a_directory(bits):
    guest = Guest(machine(bits), flags=PASID)
    memory = guest.machine.hardware.memory
    one = stage(guest, table_of(guest, 1))
    counts = []
    for _ in range(3):
        for pasid in (1, (1 << bits) - 1, 1 << bits - 1):
            guest.device.attach(one, pasid)
        assert seen(guest, 1, (1 << bits) - 1, 1 << bits - 1) == [1, 1, 1]
        for pasid in (1, (1 << bits) - 1, 1 << bits - 1):
            guest.device.detach(pasid)
        counts.append(memory.given)
    assert len(set(counts[1:])) == 1
    guest.close()


def test_a_guest_hears_of_the_faults_of_its_pasids(guest):
    queue = guest.viommu.event_queue(VEVENTQ, 16, RiscvFault.SIZE)
    guest.device.attach(stage(guest, table_of(guest, 7), 1))
    guest.device.attach(stage(guest, table_of(guest, 1), 2), 1)
    away = IOVA + PAGE
    assert seen(guest, None, 1, 5, iova=away) == [None] * 3
    heard = [RiscvFault.from_bytes(event.data) for event in queue.read()]
    words = [Fault0(fault.word0) for fault in heard]
    assert [(word.DID, word.PID if word.PV else None) for word in words] == [(NAME, None), (NAME, 1)]
    assert [fault.iotval for fault in heard] == [away, away]
    assert len(guest.machine.messages) == 1, "a PASID that nobody has is the host's business"


# Any order


class _Pasids(Guest):
    """First stages of PASIDs 1 and 2, and of requests without one."""

    def __init__(self):
        super().__init__(machine(), flags=PASID)
        self._stages = {}

    def route(self, process, table):
        if (process, table.root) not in self._stages:
            self._stages[process, table.root] = stage(self, table, 10 + process, EN_ATS=1)
        self.device.attach(self._stages[process, table.root], process or None)

    def _ats(self, process, iova=None):
        low, high = ats(PV=int(process > 0), PID=process)
        return (low, high if iova is None else iova)

    def forget_page(self, process, iova, plain):
        if plain:
            self.tell(vma(iova, 10 + process), self._ats(process, iova))
        else:
            here = {"granule_lg2": 12, "addr": iova, "count": 1, "targets": Target.LEAF | Target.DEVICE_TLB}
            named = {"scope": Scope.RANGE, "pasid": process} if process else {"scope": Scope.RANGE_NO_PASID}
            generic(self.viommu, **named, valid=1, arch_id=10 + process, **here)

    def forget_process(self, process, plain):
        if plain:
            self.tell(vma(None, 10 + process), self._ats(process))
        else:
            named = {"scope": Scope.PASID, "pasid": process} if process else {"scope": Scope.NO_PASID}
            generic(self.viommu, **named, targets=11, valid=1, arch_id=10 + process)

    forget_route = forget_process

    def forget_everything(self, plain):
        if plain:
            self.tell(vma(), ats())
        else:
            generic(self.viommu, scope=Scope.DOMAIN, targets=15)


class RiscvPasidsAnyOrder(Attached):
    """Each stage is cached by itself, and both of them in the device."""

    device_tlb = forgets_all = True

    def make(self):
        return _Pasids()


class _OwnDirectory(_Pasids):
    """The same with a directory of the guest's, where requests without a PASID are those of process 0."""

    def __init__(self):
        super().__init__()
        self.nested = self.nest(self.context(DPE=1, EN_ATS=1))
        self.device.attach(self.nested)

    def route(self, process, table):
        self.process(process, table, 10 + process)

    def forget_route(self, process, plain):
        self.tell(pdt(process))
        self.forget_process(process, plain)

    def forget_everything(self, plain):
        super().forget_everything(plain)
        self.tell(*(pdt(process) for process in range(3)))


class RiscvTlbAnyOrder(AnyOrder):
    """Device TLBs of a directory of the guest's."""

    device_tlb = True

    def make(self):
        return _OwnDirectory()


@pytest.mark.parametrize("machine", [RiscvPasidsAnyOrder, RiscvTlbAnyOrder])
def test_a_guest_in_any_order_sees_what_is_cached_until_it_invalidates_it(machine):
    check(machine, 30, 30)
