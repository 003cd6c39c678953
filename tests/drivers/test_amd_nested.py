"""Nesting on AMD, through the Python face: a guest's GCR3 and guest tables over a host table."""

import re
from errno import EBUSY, EFAULT, EINVAL, EOPNOTSUPP
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import softiommu
from drivers.amd_guest import DOMAIN, NAME, RW, Guest
from drivers.nested_any_order import AnyOrder, check
from drivers.nested_host import PAGE, PAGES, RAM_SIZE, Raw, generic, page, refusal
from softiommu.abi import iommufd as abi
from softiommu.abi.amd_extension import VEVENTQ, VIOMMU, AmdEvent
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV2, Scope, Target
from softiommu.abi.iommufd import HwptAmdGuest, HwptDataType
from softiommu.drivers.amd.queue import EVERYWHERE, entry_of, pages_of
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.hardware.amd.events import Code, DeviceEvent
from softiommu.hardware.amd.tables import DTE_SIZE, Dte, Dte0, Dte1
from softiommu.hardware.bus import DmaError
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

IOVA = 0x40_0000
AMD_GUEST = HwptDataType.AMD_GUEST
#: The fields of a guest's entry that it is heard about, or must leave 0.
MEANT = {"PPR", "GIoV", "GLX", "GCR3Root14_12", "GCR3Root30_15", "GCR3Root51_31", "DomainID", "I", "GuestPagingMode"}
MEANT |= {"Mode", "HostPageTableRoot"}
PASID_FLAG, DIRTY = int(abi.HwptAllocFlags.ALLOC_PASID), int(abi.HwptAllocFlags.ALLOC_DIRTY_TRACKING)


def machine(model="edu", efr2=1, devices=1, **efr):
    """The amd machine with another device, or other features."""
    changed = ", ".join(f"{name} = {value}" for name, value in efr.items())
    return Machine(
        parse(
            'name = "lab"\n[[iommu]]\nname = "amd0"\nmodel = "amd"\n'
            f"efr = {{ {changed} }}\nefr2 = {{ GCR3TRPModeSup = {efr2} }}\n"
            + "".join(
                f'[[device]]\nname = "dev{number}"\naddress = "0000:00:0{4 + number}.0"\nmodel = "{model}"\n'
                + ("dma_bits = 64\n" if model == "edu" else "")
                for number in range(devices)
            ),
            "lab.toml",
        )
    )


@pytest.fixture
def guest():
    made = Guest()
    yield made
    made.close()


def processes(guest, count=3, **fields):
    """A guest table for each process, whose page at IOVA is the page of data of its number; and the nested HWPT."""
    tables = [guest.table() for _ in range(count)]
    for number, table in enumerate(tables):
        table.map(IOVA, page(number), PAGE, RW)
        guest.process(number, table)
    nested = guest.nest(guest.entry(**fields))
    guest.device.attach(nested)
    return tables, nested


def reached(guest, count=3):
    """What requests without a PASID, and of PASIDs 1 and 2, find at IOVA."""
    return [guest.reach(IOVA, pasid or None) for pasid in range(count)]


def host_entry(guest):
    """The device table entry that the hardware reads."""
    driver, sid = guest.wired.device.driver, guest.wired.function.port.sid
    return driver.routes.table.entry(sid)


# What the device sees


@pytest.mark.parametrize("levels", [4, 5])
def test_a_device_goes_through_the_guests_tables_and_then_the_hosts(guest, levels):
    table = guest.table(levels)
    table.map(IOVA, page(5), 2 * PAGE, RW)
    guest.process(0, table)
    guest.process(3, table)
    nested = guest.nest(guest.entry(levels))
    guest.device.attach(nested)
    for pasid in (None, 3):
        assert [guest.reach(IOVA + number * PAGE, pasid) for number in range(3)] == [5, 6, None]
    assert guest.reach(IOVA, 4) is None
    assert len(guest.machine.messages) == 3
    guest.device.detach()
    assert guest.reach(IOVA) is None
    nested.destroy()


def test_the_entry_is_the_guests_over_the_parents(guest):
    nested = guest.nest(guest.entry(5, PPR=1, GLX=2, IR=0, IW=0, TV=0))
    guest.device.attach(nested)
    host, driver = host_entry(guest), guest.wired.device.driver
    q0 = host.q0
    assert (q0.V, q0.TV, q0.IR, q0.IW, q0.GV, q0.GIoV, q0.GLX, q0.PPR) == (1, 1, 1, 1, 1, 1, 2, 0)
    assert (q0.Mode > 0, q0.HostPageTableRoot > 0, host.gcr3_root, host.q2.GuestPagingMode) == (
        True,
        True,
        guest.gcr3,
        1,
    )
    assert host.q1.DomainID not in (0, DOMAIN)
    assert host.q1.I == 0
    assert driver.nests


def test_every_field_has_a_meaning_or_is_documented_as_not_looked_at_and_changes_nothing(guest):
    text = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w, ]+) \| not looked at", text, re.MULTILINE)
    unseen = {name for row in rows for name in row.split(", ")}
    plain = Dte.from_bytes(guest.entry().to_bytes())
    assert {name for word in plain for name in word.FIELDS} == unseen | MEANT
    changed = [
        type(word)(word ^ sum(field.mask for name, field in word.FIELDS.items() if name in unseen)) for word in plain
    ]
    entries = []
    for entry in (plain, Dte(*changed)):
        guest.device.attach(guest.nest(HwptAmdGuest.from_bytes(entry.to_bytes())))
        entries.append(host_entry(guest))
    assert entries[0] == entries[1]


def test_requests_without_a_pasid_have_guest_addresses_where_the_guest_says_so(guest):
    processes(guest, GIoV=0)
    assert (guest.reach(IOVA), guest.reach(page(4)), guest.reach(IOVA, 1)) == (0, 4, 1)  # IOVA is page 0 by itself


def test_writes_need_the_right_in_both_tables(guest):
    table = guest.table()
    table.map(IOVA, page(1), PAGE, Prot.READ.value)
    table.map(IOVA + PAGE, page(2), PAGE, RW)
    table.map(IOVA + 2 * PAGE, page(3), PAGE, RW)
    guest.hide(2)
    guest.ioas.map_file(guest.memory.fd, page(2), PAGE, page(2), write=False)
    guest.process(0, table)
    guest.device.attach(guest.nest(guest.entry()))
    port = guest.wired.function.port
    for number in range(2):
        assert guest.reach(IOVA + number * PAGE) == number + 1
        with pytest.raises(DmaError):
            port.write(IOVA + number * PAGE, b"x")
    port.write(IOVA + 2 * PAGE + 8, b"x")
    assert guest.memory.read(page(3) + 8, 1) == b"x"


def test_what_lies_outside_of_the_parent_is_a_fault_and_no_error(guest):
    table = guest.table()
    table.map(IOVA, RAM_SIZE, PAGE, RW)
    guest.process(0, table)
    guest.device.attach(guest.nest(guest.entry()))
    assert guest.reach(IOVA) is None
    guest.device.attach(guest.nest(guest.entry(gcr3=RAM_SIZE)))
    assert guest.reach(IOVA) is None
    assert len(guest.machine.messages) == 2


@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 2**64 - 1)), max_size=8), st.integers(0, 2**47 - 1))
@settings(max_examples=12, deadline=None)
def test_tables_of_garbage_never_lead_outside_of_the_parent(words, iova):
    guest = Guest()
    for number, word in words:
        guest.memory.write_u64(guest.gcr3 + 8 * number, word)
    guest.memory.write_u64(guest.gcr3, guest.gcr3 | 7)
    guest.memory.write_u64(guest.gcr3 + 8 * (iova >> 39), guest.gcr3 | 7)
    guest.device.attach(guest.nest(guest.entry()))
    for pasid in (None, 0, *(number for number, _ in words)):
        assert not guest.leads_out(iova, pasid)
    guest.close()


def test_a_parent_that_grows_takes_its_guests_along(guest):
    processes(guest)
    assert reached(guest) == [0, 1, 2]
    before = host_entry(guest)
    far = 1 << 40
    guest.ioas.map_file(guest.memory.fd, page(7), PAGE, far)
    after = host_entry(guest)
    assert after.q0.Mode > before.q0.Mode
    assert (after.q1, after.gcr3_root) == (before.q1, before.gcr3_root)
    assert reached(guest) == [0, 1, 2]


def test_the_hosts_dirty_tracking_sees_what_a_guest_has_written():
    guest = Guest(flags=DIRTY)
    processes(guest)
    guest.parent.track_dirty()
    assert host_entry(guest).q0.HAD == 3
    guest.wired.function.port.write(IOVA, b"x", 2)
    dirty = guest.parent.dirty(page(0), PAGES * PAGE)
    assert page(2) in dirty
    assert page(5) not in dirty
    guest.close()


# Attaching


def test_a_replacement_leaves_nothing_of_the_old(guest):
    _, first = processes(guest)
    assert reached(guest) == [0, 1, 2]
    other = guest.memory.alloc(PAGE)
    table = guest.table(5)
    table.map(IOVA, page(8), PAGE, RW)
    guest.memory.write_u64(other, table.root | 1)
    second = guest.nest(guest.entry(5, gcr3=other))  # with the same domain id
    guest.device.attach(second)
    assert reached(guest) == [8, None, None]
    guest.device.attach(guest.ioas)
    assert guest.reach(page(3)) == 3
    guest.device.attach(guest.parent)
    assert guest.reach(page(4)) == 4
    guest.device.attach(first)
    assert reached(guest) == [0, 1, 2]


def test_the_device_never_sees_a_torn_entry(guest, monkeypatch):
    """After each store the hardware reads the entry anew, and finds the old one, none, or the new one."""
    _, first = processes(guest)
    other = guest.memory.alloc(PAGE)
    table = guest.table(5)
    table.map(IOVA, page(8), PAGE, RW)
    guest.memory.write_u64(other, table.root | 1)
    second = guest.nest(guest.entry(5, domain=1, gcr3=other))
    memory, unit = guest.machine.hardware.memory, guest.machine.hardware.iommus["amd0"].unit
    store, seen, busy = type(memory).write, [], []

    def watched(self, at, data):
        store(self, at, data)
        if self is memory and not busy:
            busy.append(at)
            unit.forget_all()
            seen.append(guest.reach(IOVA))
            busy.clear()

    monkeypatch.setattr(type(memory), "write", watched)
    for nested in (second, first, guest.parent, second, guest.parent, first):
        guest.device.attach(nested)
    assert set(seen) == {0, 8, None}


def test_the_guests_domain_ids_are_its_own(guest):
    driver = guest.wired.device.driver
    free = len(driver._dids)
    one, same, two = (guest.nest(guest.entry(domain=domain)) for domain in (5, 5, 6))
    other = guest.device.viommu(VIOMMU, guest.parent)
    theirs = guest.nest(guest.entry(domain=5), parent=other)
    assert free - len(driver._dids) == 3
    seen = []
    for nested in (one, same, two, theirs):
        guest.device.attach(nested)
        seen.append(host_entry(guest).q1.DomainID)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    guest.device.detach()
    assert refusal(other.destroy) == (EBUSY, None)
    for thing in (one, same, two, theirs, other):
        thing.destroy()
    assert len(driver._dids) == free


def test_whoever_gets_an_id_next_finds_nothing_of_the_one_before(guest):
    other = guest.other_parent()
    for number, table in enumerate([guest.table() for _ in range(3)]):
        table.map(IOVA, page(number), PAGE, RW)
        guest.process(number, table)
    seen = []
    for parent in (guest.parent, other, guest.parent):
        viommu = guest.device.viommu(VIOMMU, parent)
        nested = guest.nest(guest.entry(), parent=viommu)
        guest.device.attach(nested)
        seen.append(host_entry(guest).q1.DomainID)
        assert reached(guest) == ([1, 2, 3] if parent is other else [0, 1, 2])
        guest.device.detach()
        nested.destroy()
        viommu.destroy()
    assert len(set(seen)) == 1


def test_a_nested_hwpt_is_for_the_whole_device(guest):
    _, nested = processes(guest)
    assert refusal(guest.device.attach, nested, 3)[0] in (EINVAL, EOPNOTSUPP)


def test_a_device_uses_its_tlb_where_its_guest_says_so():
    guest = Guest(machine("pcitest"))
    control = guest.wired.function.ats
    control.ATS_CONTROL = control.ATS_CONTROL.replace(ENABLE=0)
    guest.wired.function.let_translate(True)
    _, nested = processes(guest)
    assert not control.ATS_CONTROL.ENABLE
    assert host_entry(guest).q1.I == 0
    assert reached(guest) == [0, 1, 2]
    assert guest.commands(generic, nested, scope=Scope.DOMAIN, targets=Target.DEVICE_TLB) == []
    guest.device.attach(guest.parent)
    assert control.ATS_CONTROL.ENABLE
    assert guest.reach(page(3)) == 3
    loud = guest.nest(guest.entry(ats=1))
    guest.device.attach(loud)
    assert control.ATS_CONTROL.ENABLE
    assert host_entry(guest).q1.I == 1
    guest.device.attach(nested)
    assert not control.ATS_CONTROL.ENABLE
    assert reached(guest) == [0, 1, 2]
    guest.close()


def test_a_parent_of_another_iommu_is_refused(guest):
    other = Guest()
    parent = other.wired.device.alloc_paging(DomainFlags.NEST_PARENT, None)
    assert refusal(guest.wired.device.alloc_viommu, VIOMMU, parent, None, None)[0] == EINVAL
    nested = other.nest(other.entry())
    theirs = other.iommufd.backend._context.objects.find(nested.id).domain
    assert refusal(guest.wired.device.attach, theirs, None)[0] == EINVAL
    other.close()


# What the interface tells


@pytest.mark.parametrize("features", [{"efr2": 0}, {"efr2": 0, "GTSup": 0, "GATS": 0, "GLXSup": 0, "PASmax": 0}])
def test_without_guests_gcr3_tables_there_is_no_nesting(features):
    more = {"GIoSup": 0, "USSup": 0} if "GTSup" in features else {}
    with softiommu.open(machine(**features, **more)) as iommufd:
        device, ioas = iommufd.device("dev0"), iommufd.ioas()
        assert refusal(device.hwpt, ioas, 1)[0] == EOPNOTSUPP
        assert refusal(device.viommu, VIOMMU, device.hwpt(ioas))[0] == EOPNOTSUPP


def dte(**words):
    """Words of a guest's entry."""
    return HwptAmdGuest(**words)


GOOD = int(Dte0.of(V=1, GV=1)), int(Dte1.of(GCR3Root30_15=8))
BAD = [
    *((dte(dte0=1 << place), EINVAL) for place in (2, 6, 9, 11, 12, 51, 63)),
    (dte(dte0=3 << 56), EINVAL),
    (dte(dte0=GOOD[0]), EINVAL),  # no GCR3 table
    *((dte(dte1=1 << 42), EINVAL) for _ in range(1)),
    *((dte(dte0=GOOD[0], dte1=GOOD[1], dte2=mode << 54), EINVAL) for mode in (2, 3)),
    *((dte(dte3=1 << place), EINVAL) for place in (0, 53)),
]


@pytest.mark.parametrize(("data", "errno"), BAD, ids=str)
def test_an_entry_that_no_guest_may_have_is_refused(guest, data, errno):
    free = len(guest.wired.device.driver._dids)
    assert refusal(guest.nest, data)[0] == errno
    assert len(guest.wired.device.driver._dids) == free


def test_wrong_types_lengths_and_flags_are_refused(guest):
    device, good = guest.device, guest.entry()
    assert refusal(device.hwpt, guest.viommu, 0, (AMD_GUEST + 1, good))[0] == EINVAL
    assert refusal(device.hwpt, guest.viommu, 0, (HwptDataType.VTD_S1, abi.HwptVtdS1()))[0] == EINVAL
    for length in (31, 33, 64):
        assert refusal(device.hwpt, guest.viommu, 0, (AMD_GUEST, Raw(bytes(length))))[0] == EINVAL
    assert refusal(device.hwpt, guest.viommu, PASID_FLAG, (AMD_GUEST, good))[0] == EOPNOTSUPP
    assert refusal(device.hwpt, guest.viommu)[0] == EOPNOTSUPP
    assert refusal(device.hwpt, guest.parent, 0, (AMD_GUEST, good))[0] == EOPNOTSUPP  # without a vIOMMU
    for kind in (0, 1, VIOMMU + 1):
        assert refusal(device.viommu, kind, guest.parent)[0] == EOPNOTSUPP
    assert refusal(device.viommu, VIOMMU, guest.parent, bytearray(8))[0] == EOPNOTSUPP
    assert refusal(device.viommu, VIOMMU, device.hwpt(guest.ioas))[0] == EINVAL
    assert refusal(guest.viommu.hw_queue, 1, 0, 0, PAGE)[0] == EOPNOTSUPP
    guest.vdevice.destroy()
    assert refusal(guest.viommu.vdevice, device, 1 << 16)[0] == EINVAL
    guest.viommu.vdevice(device, 0xFFFF)


@pytest.mark.parametrize(
    ("lacks", "data"),
    [
        ({"GATS": 0}, dte(dte0=GOOD[0], dte1=GOOD[1], dte2=1 << 54)),
        ({"GLXSup": 1}, dte(dte0=GOOD[0] | 2 << 56, dte1=GOOD[1])),
        ({"GIoSup": 0}, dte(dte0=GOOD[0] | 1 << 54, dte1=GOOD[1])),
    ],
    ids=str,
)
def test_what_the_hardware_has_not_is_refused(lacks, data):
    guest = Guest(machine(**lacks))
    assert refusal(guest.nest, data)[0] == EOPNOTSUPP
    guest.close()


# Invalidation


def changed(guest):
    """A guest whose processes have other pages at IOVA than what is cached."""
    tables, nested = processes(guest)
    assert reached(guest) == [0, 1, 2]
    for number, table in enumerate(tables):
        table.unmap(IOVA, PAGE)
        table.map(IOVA, page(10 + number), PAGE, RW)
    assert reached(guest) == [0, 1, 2]
    return tables, nested


RANGE = {"granule_lg2": 12, "addr": IOVA, "count": 1}


@pytest.mark.parametrize("targets", [Target.LEAF, Target.TABLES, Target.LEAF | Target.TABLES])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("entry", "after"),
    [
        ({"scope": Scope.RANGE, "pasid": 1, **RANGE}, [0, 11, 2]),
        ({"scope": Scope.RANGE, "pasid": 1, **RANGE, "addr": IOVA + PAGE}, [0, 1, 2]),
        ({"scope": Scope.PASID, "pasid": 2}, [0, 1, 12]),
        ({"scope": Scope.RANGE_NO_PASID, **RANGE}, [10, 1, 2]),
        ({"scope": Scope.NO_PASID}, [10, 1, 2]),
        ({"scope": Scope.RANGE_ALL_PASIDS, **RANGE}, [10, 11, 12]),
        ({"scope": Scope.DOMAIN}, [10, 11, 12]),
        ({"scope": Scope.DOMAIN, "valid": 1, "arch_id": DOMAIN}, [10, 11, 12]),
        ({"scope": Scope.DOMAIN, "valid": 1, "arch_id": DOMAIN - 1}, [0, 1, 2]),
    ],
    ids=str,
)
def test_what_is_not_invalidated_stays_and_what_is_goes(guest, entry, after, whole, targets):
    _, nested = changed(guest)
    assert generic(guest.viommu if whole else nested, **entry, targets=targets) == 1
    assert reached(guest) == after


def test_what_the_hardware_is_told(guest):
    _, nested = processes(guest)
    did, sid = host_entry(guest).q1.DomainID, guest.wired.function.port.sid
    assert guest.commands(generic, nested, scope=Scope.PASID, pasid=1, targets=Target.LEAF) == [
        pages_of(did, 1, *EVERYWHERE, upper=False)
    ]
    assert guest.commands(generic, nested, scope=Scope.RANGE, pasid=1, **RANGE, targets=Target.TABLES) == [
        pages_of(did, 1, IOVA, IOVA + PAGE - 1)
    ]
    assert guest.commands(generic, nested, scope=Scope.NO_PASID, targets=Target.CONFIG) == [
        entry_of(sid),
        pages_of(did, 0, *EVERYWHERE),
    ]
    assert guest.commands(generic, nested, scope=Scope.DOMAIN, targets=7) == [
        entry_of(sid),
        pages_of(did, None, *EVERYWHERE),
    ]
    assert guest.commands(generic, nested, scope=Scope.DOMAIN, targets=Target.DEVICE_TLB) == []


def test_a_device_that_is_named_bounds_the_configuration_and_not_the_translations_that_are_forgotten():
    guest = Guest(machine(devices=2))
    tables, nested = changed(guest)
    other, port = guest.iommufd.device("dev1"), guest.machine.hardware.devices[1].function.port
    other.enable()
    guest.viommu.vdevice(other, NAME + 1)
    other.attach(guest.nest(guest.entry(domain=9)))
    assert port.read(IOVA, 1) == b"\x0a"
    tables[0].unmap(IOVA, PAGE)
    assert generic(guest.viommu, scope=Scope.DOMAIN, targets=Target.CONFIG, valid=2, device=NAME) == 1
    assert (guest.reach(IOVA), port.read(IOVA, 1)) == (None, b"\x0a")
    for missing in (guest.viommu, NAME + 2), (nested, NAME):
        assert refusal(generic, missing[0], scope=0, targets=1, valid=2, device=missing[1]) == (EINVAL, 0)
    everything = {"scope": Scope.DOMAIN, "targets": Target.LEAF | Target.DEVICE_TLB, "valid": 2}
    assert generic(guest.viommu, **everything, device=NAME) == 1
    with pytest.raises(DmaError):
        port.read(IOVA, 1)
    guest.close()


@pytest.mark.parametrize("scope", [{"scope": Scope.PASID, "pasid": 1}, {"scope": Scope.DOMAIN}])
def test_an_entry_of_the_gcr3_table_is_cached_until_it_is_named(guest, scope):
    tables, nested = processes(guest)
    assert reached(guest) == [0, 1, 2]
    guest.process(1, tables[2])
    assert generic(nested, scope=Scope.PASID, pasid=1, targets=Target.LEAF) == 1
    assert reached(guest) == [0, 1, 2]
    assert generic(nested, **scope, targets=Target.CONFIG) == 1
    assert reached(guest) == [0, 2, 2]


def test_a_page_that_the_host_takes_away_is_gone_for_every_guest(guest):
    processes(guest)
    assert reached(guest) == [0, 1, 2]
    guest.hide(1)
    assert reached(guest) == [0, None, 2]
    guest.show(1)
    assert reached(guest) == [0, 1, 2]


def test_entries_that_are_wrong(guest):
    _, nested = changed(guest)
    good = InvalidateV2(scope=Scope.PASID, pasid=1, targets=1)
    for target in (guest.viommu, nested):
        assert refusal(target.invalidate, 0, [abi.HwptVtdS1Invalidate()]) == (EINVAL, 0)
        assert refusal(target.invalidate, GENERIC + 1, [good]) == (EINVAL, 0)
        assert refusal(target.invalidate, GENERIC, [Raw(bytes(31))]) == (EINVAL, 0)
        for wrong, errno in (
            (InvalidateV2(scope=0), EINVAL),
            (InvalidateV2(scope=9, targets=1), EOPNOTSUPP),
            (InvalidateV2(targets=1, valid=2, device=NAME + 1), EINVAL),
        ):
            assert refusal(target.invalidate, GENERIC, [good, good, wrong, good]) == (errno, 2)
        assert target.invalidate(GENERIC, []) == 0
    assert reached(guest) == [0, 11, 2]
    cmd = abi.HwptInvalidate(32, guest.viommu.id, 8, GENERIC, 64, 2, 0)
    assert refusal(guest.iommufd.backend.call, "", abi.HWPT_INVALIDATE, cmd)[0] == EFAULT
    assert cmd.entry_num == 0


@given(st.binary(min_size=DTE_SIZE, max_size=DTE_SIZE))
@settings(max_examples=60, deadline=None)
def test_any_entry_is_refused_or_harmless(raw):
    given_entry = Dte.from_bytes(raw)
    tamed = given_entry._replace(q0=Dte0(given_entry.q0 & ~(Dte0.Mode.mask | Dte0.HostPageTableRoot.mask)))
    guest = _SHARED[0] if _SHARED else _SHARED.append(Guest()) or _SHARED[0]
    for entry in (given_entry, Dte(*(type(word)(word & ~word.RESERVED) for word in tamed))):
        made = []
        errno, _ = refusal(lambda made=made, entry=entry: made.append(guest.nest(HwptAmdGuest(*entry))))
        if errno:
            assert errno in (EINVAL, EOPNOTSUPP)
            continue
        (nested,) = made
        guest.device.attach(nested)
        assert not guest.leads_out(IOVA)
        assert not guest.leads_out(IOVA, 1)
        assert host_entry(guest).q0.Mode
        guest.device.detach()
        nested.destroy()


_SHARED = []


# Faults


def heard(queue):
    """What the guest hears: the device, the PASID, whether it wrote, and the address."""
    events = [AmdEvent.from_bytes(event.data) for event in queue.read()]
    words = [DeviceEvent(event.low) for event in events]
    assert all(word.CODE == Code.IO_PAGE_FAULT and word.GN for word in words)
    return [(word.DeviceID, word.DOMAIN, word.RW, event.high) for word, event in zip(words, events, strict=True)]


def test_a_guest_hears_of_faults_of_its_own_tables(guest):
    queue = guest.viommu.event_queue(VEVENTQ, 16, AmdEvent.SIZE)
    processes(guest)
    assert reached(guest) == [0, 1, 2]
    assert [guest.reach(IOVA + PAGE), guest.reach(IOVA + PAGE, 1), guest.reach(IOVA, 9)] == [None] * 3
    with pytest.raises(DmaError):
        guest.wired.function.port.write(IOVA + PAGE, b"x", 2)
    assert heard(queue) == [
        (NAME, 0, 0, IOVA + PAGE),
        (NAME, 1, 0, IOVA + PAGE),
        (NAME, 9, 0, IOVA),
        (NAME, 2, 1, IOVA + PAGE),
    ]
    assert guest.machine.messages == []


def test_the_host_hears_of_what_is_not_the_guests(guest):
    queue = guest.viommu.event_queue(VEVENTQ, 16, AmdEvent.SIZE)
    _, nested = processes(guest)
    guest.hide(1)
    assert reached(guest) == [0, None, 2]
    guest.device.detach()
    assert guest.reach(IOVA) is None
    guest.device.attach(nested)
    guest.vdevice.destroy()
    assert guest.reach(IOVA + PAGE) is None  # the guest has no name for the device
    assert heard(queue) == []
    assert len(guest.machine.messages) == 3


# Any order


class _Processes(Guest):
    """PASIDs 0, 1 and 2; the first is that of requests without one."""

    def __init__(self):
        super().__init__()
        self.nested = self.nest(self.entry())
        self.device.attach(self.nested)

    def route(self, process, table):
        self.process(process, table)

    def _targets(self, plain):
        return Target.LEAF if plain else Target.LEAF | Target.TABLES

    def forget_page(self, process, iova, plain):
        here = {"granule_lg2": 12, "addr": iova, "count": 1, "targets": self._targets(plain)}
        generic(self.viommu, scope=Scope.RANGE, pasid=process, **here)
        return not plain

    def forget_process(self, process, plain):
        generic(self.nested, scope=Scope.PASID, pasid=process, targets=self._targets(plain))
        return not plain

    def forget_route(self, process, plain):
        where = {"scope": Scope.PASID, "pasid": process} if process or plain else {"scope": Scope.NO_PASID}
        generic(self.viommu, **where, targets=7)

    def forget_everything(self, plain):
        generic(self.viommu if plain else self.nested, scope=Scope.DOMAIN, targets=7)


class AmdAnyOrder(AnyOrder):
    """On AMD both stages are cached as one."""

    whole_translations = found_by_process = True

    def make(self):
        return _Processes()


def test_a_guest_in_any_order_sees_what_is_cached_until_it_invalidates_it():
    check(AmdAnyOrder, 25, 40)
