"""Nesting on RISC-V, through the Python face: a guest's first stages and processes over a second stage of the host."""

import ctypes
from errno import E2BIG, EBUSY, EFAULT, EINVAL, EIO, ENOENT, EOPNOTSUPP

import pytest
from hypothesis import given, settings, strategies as st

from drivers.nested_any_order import AnyOrder, check
from drivers.nested_host import PAGE, PAGES, RAM_SIZE, Raw, generic, page, refusal
from drivers.riscv_guest import NAME, RW, Guest, ats, pdt, vma
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import GENERIC, Hint, InvalidateV2, Outcome, Scope, Target
from softiommu.abi.riscv_extension import (
    HW_INFO,
    HWPT_DATA,
    INVALIDATE_DATA,
    VEVENTQ,
    VIOMMU,
    HwInfoRiscv,
    HwptRiscv,
    RiscvCommand,
    RiscvFault,
)
from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.hardware.bus import DmaError
from softiommu.hardware.riscv.commands import Command, Iodir0, Iofence0, Iotinval0, Iotinval1
from softiommu.hardware.riscv.events import Cause, Fault0
from softiommu.hardware.riscv.presets import FULL
from softiommu.hardware.riscv.tables import FirstMode, Iohgatp, Iosatp, PdtMode, Pdtp, SecondMode, Tc
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse
from softiommu.pagetable.kinds import READ

IOVA = 0x40_0000
PASID_FLAG = int(abi.HwptAllocFlags.ALLOC_PASID)


def machine(model="edu", devices=1, **capabilities):
    """The riscv machine with another device, or other capabilities."""
    changed = ", ".join(f"{name} = {value}" for name, value in capabilities.items())
    return Machine(
        parse(
            'name = "lab"\n[[iommu]]\nname = "riscv0"\nmodel = "riscv"\n'
            f"capabilities = {{ {changed} }}\n"
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


def mapped(guest, pscid=1, pages=3, **tc):
    """A first stage whose pages from IOVA on are the first pages of data, and its nested HWPT, attached."""
    table = guest.table()
    table.map(IOVA, page(0), pages * PAGE, RW)
    nested = guest.nest(guest.context(table, pscid, **tc))
    guest.device.attach(nested)
    return table, nested


def processes(guest, count=3, **tc):
    """A first stage for each process, whose page at IOVA is the page of data of its number; and the nested HWPT."""
    tables = [guest.table() for _ in range(count)]
    for number, table in enumerate(tables):
        table.map(IOVA, page(number), PAGE, RW)
        guest.process(number, table, 10 + number)
    nested = guest.nest(guest.context(DPE=1, **tc))
    guest.device.attach(nested)
    return tables, nested


def pages(guest, count=3, pasid=None):
    return [guest.reach(IOVA + number * PAGE, pasid) for number in range(count)]


def causes(guest):
    """The causes of the faults that the host was told of."""
    return [cause for line in guest.machine.messages for cause in Cause if f" ({int(cause)});" in line]


# What the device sees


@pytest.mark.parametrize("mode", [FirstMode.SV39, FirstMode.SV48, FirstMode.SV57])
@pytest.mark.parametrize("viommu", [True, False])
def test_a_device_goes_through_the_guests_table_and_then_the_hosts(mode, viommu):
    guest = Guest(viommu=viommu)
    table = guest.table(mode)
    table.map(IOVA, page(5), 2 * PAGE, RW)
    nested = guest.nest(guest.context(table, mode=mode))
    guest.device.attach(nested)
    assert pages(guest) == [5, 6, None]
    assert causes(guest) == [Cause.READ_PAGE_FAULT]
    guest.device.detach()
    assert pages(guest, 1) == [None]
    nested.destroy()
    guest.close()


def test_a_guest_without_a_first_stage_sees_its_own_memory(guest):
    guest.device.attach(guest.nest(HwptRiscv(1, 0, 0)))
    assert [guest.reach(page(number)) for number in range(PAGES)] == list(range(PAGES))
    assert guest.reach(RAM_SIZE) is None
    assert causes(guest) == [Cause.READ_GUEST_PAGE_FAULT]


def test_a_context_that_is_not_valid_blocks(guest):
    table = guest.table()
    table.map(IOVA, page(0), PAGE, RW)
    guest.device.attach(guest.nest(guest.context(table, V=0)))
    assert pages(guest, 1) == [None]
    assert causes(guest) == [Cause.DDT_NOT_VALID]


def test_processes_of_the_guests_directory(guest):
    tables, _ = processes(guest)
    assert [guest.reach(IOVA, pasid) for pasid in (None, 0, 1, 2, 3, 1 << 8)] == [0, 0, 1, 2, None, None]
    assert causes(guest) == [Cause.PDT_NOT_VALID, Cause.TRANSACTION_TYPE_DISALLOWED]
    tables[1].map(IOVA + PAGE, page(9), PAGE, RW)
    assert (guest.reach(IOVA + PAGE, 1), guest.reach(IOVA + PAGE, 2)) == (9, None)


def test_without_a_default_process_requests_without_a_pasid_have_guest_addresses(guest):
    guest.process(1, table := guest.table(), 3)
    table.map(IOVA, page(7), PAGE, RW)
    guest.device.attach(guest.nest(guest.context()))
    assert (guest.reach(IOVA, 1), guest.reach(page(4)), guest.reach(IOVA)) == (7, 4, 0)  # IOVA is page 0 by itself


def test_writes_need_the_right_in_both_stages(guest):
    table = guest.table()
    table.map(IOVA, page(1), PAGE, Prot.READ.value)
    table.map(IOVA + PAGE, page(2), PAGE, RW)
    guest.hide(2)
    guest.ioas.map_file(guest.memory.fd, page(2), PAGE, page(2), write=False)
    guest.device.attach(guest.nest(guest.context(table)))
    assert pages(guest, 2) == [1, 2]
    port = guest.wired.function.port
    for number in range(2):
        with pytest.raises(DmaError):
            port.write(IOVA + number * PAGE, b"x")
    assert causes(guest) == [Cause.WRITE_PAGE_FAULT, Cause.WRITE_GUEST_PAGE_FAULT]


def test_what_lies_outside_of_the_parent_is_a_fault_and_no_error(guest):
    table = guest.table()
    table.map(IOVA, RAM_SIZE, PAGE, RW)
    guest.device.attach(guest.nest(guest.context(table)))
    assert pages(guest, 1) == [None]
    lost = guest.nest(HwptRiscv(1, 0, Iosatp.of(MODE=FirstMode.SV39, PPN=RAM_SIZE >> 12)))
    guest.device.attach(lost)
    assert pages(guest, 1) == [None]
    nowhere = guest.nest(HwptRiscv(1 | 1 << 5, 0, Pdtp.of(MODE=PdtMode.PD20, PPN=RAM_SIZE >> 12)))
    guest.device.attach(nowhere)
    assert guest.reach(IOVA, 5) is None
    assert set(causes(guest)) == {Cause.READ_GUEST_PAGE_FAULT}


@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 2**64 - 1)), max_size=8), st.integers(0, 2**39 - 1))
@settings(max_examples=12, deadline=None)
def test_tables_of_garbage_never_lead_outside_of_the_parent(words, iova):
    guest = Guest()
    for number, word in words:
        guest.memory.write_u64(guest.directory + 8 * number, word)
    root = Iosatp.of(MODE=FirstMode.SV39, PPN=guest.directory >> 12)
    guest.memory.write_u64(guest.directory + 8 * (iova >> 30), guest.directory >> 2 | 1)
    table = guest.nest(HwptRiscv(1, 0, root))
    directory = guest.nest(guest.context())
    for nested, pasid in ((table, None), (directory, 0), (directory, 3)):
        guest.device.attach(nested)
        assert not guest.leads_out(iova, pasid)
    guest.close()


@pytest.mark.parametrize(
    "tc", [{}, {"SADE": 1}, {"DTF": 1}, {"GADE": 1}, {"EN_ATS": 1}, {"SADE": 1, "DTF": 1, "GADE": 1}], ids=str
)
def test_the_context_is_the_guests_first_stage_over_the_parents_second(guest, tc):
    table = guest.table()
    given = guest.context(table, 77, **tc)
    guest.device.attach(guest.nest(given))
    driver, memory = guest.wired.device.driver, guest.machine.hardware.memory
    at = driver.routes._context(guest.wired.function.port.sid)
    words = [memory.read_u64(at + 8 * number) for number in range(8)]
    how, second = Tc(words[0]), Iohgatp(words[1])
    asked = {name: tc.get(name, 0) for name in ("SADE", "DTF")}
    assert how == Tc.of(V=1, GADE=1, **asked)  # the device has no ATS
    assert (second.MODE, second.PPN % 4) == (SecondMode.SV57X4, 0)
    assert words[2:] == [given.ta, given.fsc, 0, 0, 0, 0]


def test_a_guest_may_ask_for_silence(guest):
    guest.device.attach(guest.nest(guest.context(guest.table(), DTF=1)))
    assert pages(guest) == [None] * 3
    assert guest.machine.messages == []


# Attaching


def test_a_replacement_leaves_nothing_of_the_old(guest):
    _, first = mapped(guest)
    assert pages(guest) == [0, 1, 2]
    table = guest.table()
    table.map(IOVA, page(8), PAGE, RW)
    second = guest.nest(guest.context(table, 2))
    guest.device.attach(second)
    assert pages(guest) == [8, None, None]
    guest.device.attach(guest.ioas)  # a domain of the host's own
    assert guest.reach(page(3)) == 3
    guest.device.attach(guest.parent)
    assert guest.reach(page(4)) == 4
    guest.device.attach(first)
    assert pages(guest) == [0, 1, 2]


def test_the_device_never_sees_a_torn_context(guest, monkeypatch):
    """Whatever word of the context is written, the hardware finds the old one, none, or the new one."""
    _, first = mapped(guest)
    table = guest.table()
    table.map(IOVA, page(8), PAGE, RW)
    second = guest.nest(guest.context(table, 2))
    memory, unit = guest.machine.hardware.memory, guest.machine.hardware.iommus["riscv0"].unit
    store, seen, busy = type(memory).write_u64, set(), []

    def watched(self, at, value):
        store(self, at, value)
        if self is memory and not busy:
            busy.append(at)
            unit.translator.forget_devices(None)  # the hardware may read it at any time
            seen.add(guest.reach(IOVA))
            busy.clear()

    monkeypatch.setattr(type(memory), "write_u64", watched)
    for nested in (second, first, guest.parent, second):
        guest.device.attach(nested)
    assert seen == {0, 8, None}
    assert set(causes(guest)) <= {Cause.DDT_NOT_VALID, Cause.READ_GUEST_PAGE_FAULT}


def test_two_guests_over_one_parent_may_use_the_same_pscid():
    """Their address spaces have different GSCIDs, also in what each asks to forget."""
    guest = Guest(machine(devices=2))
    table, _ = mapped(guest, pscid=7)
    other, theirs = guest.iommufd.device("dev1"), guest.table()
    other.enable()
    theirs.map(IOVA, page(10), PAGE, RW)
    second = guest.device.viommu(VIOMMU, guest.parent)
    other.attach(guest.nest(guest.context(theirs, 7), parent=second))
    port = guest.machine.hardware.devices[1].function.port
    assert pages(guest) == [0, 1, 2]
    assert port.read(IOVA, 1) == b"\x0a"
    table.unmap(IOVA, PAGE)
    theirs.unmap(IOVA, PAGE)
    assert guest.tell(vma(), vma(IOVA, 7), target=second) == 2
    assert pages(guest) == [0, 1, 2]  # the first guest has not invalidated
    with pytest.raises(DmaError):
        port.read(IOVA, 1)
    theirs.map(IOVA, page(11), PAGE, RW)
    assert guest.tell(vma()) == 1
    assert pages(guest) == [None, 1, 2]
    assert port.read(IOVA, 1) == b"\x0b"
    guest.hide(11)
    with pytest.raises(DmaError):
        port.read(IOVA, 1)
    guest.close()


def test_a_device_that_comes_back_finds_what_the_guest_has_changed_meanwhile(guest):
    table, nested = mapped(guest)
    assert pages(guest) == [0, 1, 2]
    for change in (guest.device.detach, lambda: guest.device.attach(guest.parent)):
        change()
        table.unmap(IOVA, PAGE)
        guest.device.attach(nested)
        assert pages(guest) == [None, 1, 2]
        table.map(IOVA, page(0), PAGE, RW)
        assert pages(guest) == [0, 1, 2]


def test_ids_and_objects_come_back(guest):
    driver = guest.wired.device.driver
    free = driver.gscids.take()
    driver.gscids.give(free)
    table = guest.table()
    direct = guest.nest(guest.context(table), parent=guest.parent)
    viommu = guest.device.viommu(VIOMMU, guest.parent)
    nested = guest.nest(guest.context(table), parent=viommu)
    assert refusal(viommu.destroy) == (EBUSY, None)
    assert refusal(guest.parent.destroy) == (EBUSY, None)
    for thing in (direct, nested, viommu):
        thing.destroy()
    assert driver.gscids.take() == free
    driver.gscids.give(free)


@pytest.mark.parametrize("named", [True, False])
def test_whoever_gets_an_id_next_finds_nothing_of_the_one_before(guest, named):
    other, driver = guest.other_parent(), guest.wired.device.driver
    table = guest.table()
    table.map(IOVA, page(0), 3 * PAGE, RW)
    seen = []
    for parent in (guest.parent, other, guest.parent):
        viommu = guest.device.viommu(VIOMMU, parent) if named else None
        nested = guest.nest(guest.context(table), parent=viommu or parent)
        seen.append(driver.gscids.take())
        driver.gscids.give(seen[-1])
        guest.device.attach(nested)
        assert pages(guest) == ([1, 2, 3] if parent is other else [0, 1, 2])
        guest.device.detach()
        nested.destroy()
        if viommu is not None:
            viommu.destroy()
    assert len(set(seen)) == 1  # the same id was used each time


def test_a_nested_hwpt_is_for_the_whole_device(guest):
    _, nested = mapped(guest)
    assert refusal(guest.device.attach, nested, 3)[0] in (EINVAL, EOPNOTSUPP)


def test_a_parent_of_another_iommu_is_refused(guest):
    other = Guest()
    parent = other.wired.device.alloc_paging(DomainFlags.NEST_PARENT, None)
    errno, _ = refusal(guest.wired.device.alloc_viommu, VIOMMU, parent, None, None)
    assert errno == EINVAL
    nested = other.nest(other.context(other.table()))
    theirs = other.iommufd.backend._context.objects.find(nested.id).domain
    assert refusal(guest.wired.device.attach, theirs, None)[0] == EINVAL
    other.close()


# What the interface tells


def test_hw_info_is_told_to_who_asks_for_it(guest):
    info = guest.device.hw_info(HW_INFO)
    assert HwInfoRiscv.from_bytes(info.data) == HwInfoRiscv(int(FULL), 0)
    assert (info.type, len(info.data)) == (HW_INFO, 16)
    assert guest.device.hw_info().type == 0
    assert guest.device.hw_info(HW_INFO + 1)[:2] == (0, b"")


@pytest.mark.parametrize("missing", ["SV39X4", "SV39"])
def test_without_both_stages_there_is_no_nesting(missing):
    names = [name for name in ("SV39", "SV48", "SV57") if missing == "SV39"] or ["SV39X4", "SV48X4", "SV57X4"]
    absent = dict.fromkeys(names, 0) | ({} if missing == "SV39" else {"T2GPA": 0})
    made = machine(**absent)
    import softiommu

    with softiommu.open(made) as iommufd:
        device, ioas = iommufd.device("dev0"), iommufd.ioas()
        if missing == "SV39":
            parent = device.hwpt(ioas, 1)
            assert refusal(device.viommu, VIOMMU, parent)[0] == EOPNOTSUPP
            assert refusal(device.hwpt, parent, 0, (HWPT_DATA, HwptRiscv(1)))[0] == EOPNOTSUPP
        else:
            assert refusal(device.hwpt, ioas, 1)[0] == EOPNOTSUPP


BAD = [
    *((HwptRiscv(1 | 1 << place, 0, 0), EINVAL) for place in (2, 3, 6, 10, 11, 12, 23, 24, 31, 32, 63)),
    *((HwptRiscv(1, 1 << place, 0), EINVAL) for place in (0, 11, 32, 40, 51, 52, 63)),
    *((HwptRiscv(tc, 0, 1 << place), EINVAL) for place in (44, 59) for tc in (1, 1 | 1 << 5)),
    *((HwptRiscv(1, 0, mode << 60), EINVAL) for mode in (1, 7, 11, 15)),
    *((HwptRiscv(1 | 1 << 5, 0, mode << 60), EINVAL) for mode in (4, 8, 15)),
    (HwptRiscv(1 | 1 << 9, 0, 0), EINVAL),  # DPE without PDTV
]


@pytest.mark.parametrize(("data", "errno"), BAD, ids=str)
def test_a_context_that_no_guest_may_have_is_refused(guest, data, errno):
    for parent in (guest.viommu, guest.parent):
        assert refusal(guest.nest, data, parent=parent)[0] == errno


def test_wrong_types_lengths_and_flags_are_refused(guest):
    device, good = guest.device, guest.context(guest.table())
    for parent in (guest.viommu, guest.parent):
        assert refusal(device.hwpt, parent, 0, (HWPT_DATA + 1, good))[0] == EINVAL
        assert refusal(device.hwpt, parent, 0, (abi.HwptDataType.VTD_S1, abi.HwptVtdS1()))[0] == EINVAL
        assert refusal(device.hwpt, parent, 0, (HWPT_DATA, abi.HwptArmSmmuv3(1)))[0] == EINVAL  # shorter
        assert refusal(device.hwpt, parent, 0, (HWPT_DATA, abi.HwptAmdGuest(1)))[0] == EINVAL  # longer
        assert refusal(device.hwpt, parent, 2, (HWPT_DATA, good))[0] == EOPNOTSUPP
        assert refusal(device.hwpt, parent)[0] in (EOPNOTSUPP, EINVAL)
    assert refusal(guest.device.hwpt, device.hwpt(guest.ioas), 0, (HWPT_DATA, good))[0] == EINVAL
    assert refusal(device.viommu, VIOMMU + 1, guest.parent)[0] == EOPNOTSUPP
    assert refusal(device.viommu, VIOMMU, guest.parent, bytearray(8))[0] == EOPNOTSUPP
    assert refusal(guest.viommu.hw_queue, 1, 0, 0, PAGE)[0] == EOPNOTSUPP


@pytest.mark.parametrize(
    ("lacks", "data"),
    [
        ("AMO_HWAD", HwptRiscv(1 | 1 << 8, 0, 0)),
        ("SV57", HwptRiscv(1, 0, FirstMode.SV57 << 60)),
        ("PD20", HwptRiscv(1 | 1 << 5, 0, PdtMode.PD20 << 60)),
    ],
    ids=str,
)
def test_what_the_hardware_has_not_is_refused(lacks, data):
    guest = Guest(machine(**{lacks: 0}))
    assert refusal(guest.nest, data)[0] == EOPNOTSUPP
    guest.close()


# Invalidation


def test_what_is_not_invalidated_stays_and_what_is_goes(guest):
    table, nested = mapped(guest)
    assert pages(guest) == [0, 1, 2]
    table.unmap(IOVA, 3 * PAGE)
    assert pages(guest) == [0, 1, 2]
    assert guest.tell(vma(IOVA + PAGE, 1)) == 1
    assert pages(guest) == [0, None, 2]
    assert guest.tell(vma(IOVA, 2), vma(IOVA, 1, GV=1, GSCID=0xFFFF)) == 2  # a GSCID of the guest's is not looked at
    assert pages(guest) == [None, None, 2]
    assert nested.invalidate(INVALIDATE_DATA, [RiscvCommand(*map(int, vma()))]) == 1
    assert pages(guest) == [None, None, None]


def test_a_range_and_links_to_tables(guest):
    table, _ = mapped(guest)
    assert pages(guest) == [0, 1, 2]
    table.unmap(IOVA, 3 * PAGE)
    low, _ = vma(IOVA, 1, NL=1)
    assert guest.tell((low, Iotinval1.of(S=1, PAGE=IOVA >> 12 | 0))) == 1  # two pages
    assert pages(guest) == [None, None, 2]


def test_a_process_context_is_cached_until_its_command(guest):
    tables, _ = processes(guest)
    assert guest.reach(IOVA, 1) == 1
    guest.process(1, tables[2], 12)
    assert guest.reach(IOVA, 1) == 1
    assert guest.tell(pdt(2), vma()) == 2
    assert guest.reach(IOVA, 1) == 1
    assert guest.tell(pdt(1)) == 1
    assert guest.reach(IOVA, 1) == 2
    guest.process(1, None, 0)
    guest.tell(pdt(1))
    assert guest.reach(IOVA, 1) is None


def test_a_name_stands_for_every_id_of_a_device_behind_a_bridge():
    guest = Guest(
        Machine(
            parse(
                'name = "lab"\n[[iommu]]\nname = "riscv0"\nmodel = "riscv"\n'
                '[[bridge]]\nname = "bridge0"\naddress = "0000:00:06.0"\nbus = 2\n'
                '[[device]]\nname = "dev0"\naddress = "0000:02:01.0"\nmodel = "edu"\ndma_bits = 64\n',
                "lab.toml",
            )
        )
    )
    sids = guest.wired.device.function.sids
    tables, _ = processes(guest)
    unit = guest.machine.hardware.iommus["riscv0"].unit

    def found(sid):
        return guest.machine.hardware.memory.read_u64(unit.translate(sid, IOVA, READ, 1).pa)

    assert len(sids) > 1
    assert [found(sid) for sid in sids] == [1] * len(sids)
    guest.process(1, tables[2], 12)
    assert [found(sid) for sid in sids] == [1] * len(sids)
    assert guest.tell(pdt(1)) == 1
    assert [found(sid) for sid in sids] == [2] * len(sids)
    guest.close()


REFUSED = [
    (Iotinval0.of(COMMAND=Command.IOTINVAL_GVMA), 0),
    (Iofence0.of(COMMAND=Command.IOFENCE_C), 0),
    (Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT), 0),
    (Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT, DV=1, DID=NAME), 0),
    (ats(name=NAME + 1)[0].replace(COMMAND=Command.ATS_PRGR), 0),
    ats(name=NAME + 1),
    (ats()[0].replace(DSV=0), 0),  # the low half of the name alone
    pdt(1, name=NAME + 1),
    pdt(1, name=0x20),  # the host's name for the device
    pdt(1, DV=0),
    (pdt(1)[0] | 1 << 32, 0),
    (pdt(1)[0], 1),
    (vma()[0] | 1 << 35, 0),
    (vma()[0], 1),
    (vma()[0], 1 << 62),
    (0, 0),
    (0x3FF, 0),
]


@pytest.mark.parametrize("command", REFUSED, ids=str)
def test_a_command_that_no_guest_may_give_is_refused_at_its_entry(guest, command):
    table, _ = mapped(guest)
    assert pages(guest) == [0, 1, 2]
    table.unmap(IOVA, 3 * PAGE)
    assert refusal(guest.tell, vma(IOVA, 1), vma(IOVA + PAGE, 1), command, vma()) == (EIO, 2)
    assert pages(guest) == [None, None, 2]
    assert guest.tell(vma()) == 1


@pytest.mark.parametrize(
    ("lacks", "command"),
    [
        ({"NL": 0}, vma(IOVA, NL=1)),
        ({"S": 0}, (vma(IOVA)[0], Iotinval1.of(S=1))),
        ({"PD20": 0}, pdt(1 << 17)),
        ({"ATS": 0, "T2GPA": 0}, ats()),
    ],
    ids=str,
)
def test_commands_that_the_hardware_has_not_never_reach_it(lacks, command):
    guest = Guest(machine(**lacks))
    assert refusal(guest.tell, vma(), command) == (EIO, 1)
    assert guest.tell(vma()) == 1
    guest.close()


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=6), st.data())
@settings(max_examples=15, deadline=None)
def test_no_command_stops_the_hosts_queue(raw, data):
    guest = Guest()
    table, _ = mapped(guest)
    commands = [
        (low & ~0x3FF | data.draw(st.sampled_from([*map(int, Command), low & 0x3FF])), high) for low, high in raw
    ]
    number, handled = refusal(guest.tell, *commands) if commands else (0, None)
    assert number in (0, EIO)
    assert number == 0 or 0 <= handled < len(commands)
    table.unmap(IOVA, PAGE)
    guest.tell(vma())
    assert pages(guest) == [None, 1, 2]
    guest.close()


def test_arrays_that_are_wrong(guest):
    _, nested = mapped(guest)
    good = RiscvCommand(*map(int, vma()))
    for target in (guest.viommu, nested):
        assert refusal(target.invalidate, INVALIDATE_DATA + 1, [good]) == (EINVAL, 0)
        assert refusal(target.invalidate, 0, [abi.HwptVtdS1Invalidate()]) == (EINVAL, 0)
        assert refusal(target.invalidate, INVALIDATE_DATA, [Raw(bytes(15))]) == (EINVAL, 0)
        long = [Raw(good.to_bytes() + tail.to_bytes(8, "little")) for tail in (0, 1)]
        assert refusal(target.invalidate, INVALIDATE_DATA, long) == (E2BIG, 1)
        assert target.invalidate(INVALIDATE_DATA, []) == 0
    cmd = abi.HwptInvalidate(32, guest.viommu.id, 8, INVALIDATE_DATA, 16, 2, 0)
    assert refusal(guest.iommufd.backend.call, "", abi.HWPT_INVALIDATE, cmd)[0] == EFAULT
    assert cmd.entry_num == 0
    assert refusal(guest.parent.invalidate, INVALIDATE_DATA, [good])[0] in (EINVAL, ENOENT)


# The generic form


def test_generic_entries_of_a_table(guest):
    table, nested = mapped(guest)
    assert pages(guest) == [0, 1, 2]
    table.unmap(IOVA, 3 * PAGE)
    where = {"scope": Scope.RANGE_NO_PASID, "granule_lg2": 12, "addr": IOVA}
    assert generic(nested, **where, count=1, targets=Target.LEAF) == 1
    assert pages(guest) == [None, 1, 2]
    assert generic(nested, **where, count=2, targets=Target.LEAF | Target.TABLES) == 1
    assert pages(guest) == [None, None, 2]
    assert generic(nested, scope=Scope.PASID, pasid=1, targets=Target.LEAF) == 1  # there is no such process
    assert pages(guest) == [None, None, 2]
    assert generic(nested, scope=Scope.NO_PASID, targets=Target.CONFIG | Target.DEVICE_TLB) == 1
    assert pages(guest) == [None, None, 2]
    assert generic(guest.viommu, scope=Scope.DOMAIN, targets=Target.LEAF) == 1
    assert pages(guest) == [None, None, None]


def test_generic_entries_of_processes(guest):
    tables, nested = processes(guest)
    assert [guest.reach(IOVA, pasid) for pasid in (None, 1, 2)] == [0, 1, 2]
    for table in tables:
        table.unmap(IOVA, PAGE)
    here = {"scope": Scope.RANGE, "granule_lg2": 12, "addr": IOVA, "count": 1, "targets": Target.LEAF}
    assert generic(guest.viommu, **here, pasid=1, valid=1, arch_id=11) == 1
    assert [guest.reach(IOVA, pasid) for pasid in (None, 1, 2)] == [0, None, 2]
    assert generic(nested, **here, pasid=2) == 1  # nobody says which address space that is
    assert [guest.reach(IOVA, pasid) for pasid in (None, 1, 2)] == [None, None, None]
    tables[1].map(IOVA, page(5), PAGE, RW)
    guest.process(2, tables[1], 11)
    assert (guest.reach(IOVA, 1), guest.reach(IOVA, 2)) == (5, None)
    assert generic(nested, scope=Scope.PASID, pasid=2, targets=Target.CONFIG) == 1
    assert guest.reach(IOVA, 2) == 5
    guest.process(2, None, 0)
    assert generic(guest.viommu, scope=Scope.DOMAIN, targets=Target.CONFIG, valid=2, device=NAME) == 1
    assert guest.reach(IOVA, 2) is None
    assert generic(nested, scope=Scope.PASID, pasid=(1 << 20) - 1, targets=Target.CONFIG) == 1


def test_generic_entries_that_are_wrong(guest):
    _, nested = mapped(guest)
    for target in (nested, guest.viommu):
        assert refusal(generic, target, scope=6, targets=1) == (EOPNOTSUPP, 0)
        assert refusal(generic, target, scope=0, targets=0) == (EINVAL, 0)
        assert refusal(generic, target, scope=0, targets=1, valid=2, device=NAME + 1) == (EINVAL, 0)
        assert refusal(generic, target, scope=0, targets=1, valid=1, arch_id=1 << 20) == (EINVAL, 0)


@pytest.mark.parametrize("lacks", [{}, {"S": 0}, {"NL": 0}, {"S": 0, "NL": 0}], ids=str)
@pytest.mark.parametrize(("count", "hints"), [(3, 0), (3, Hint.GLOBAL), (100, 0), (1 << 51, 0), ((1 << 51) - 1, 0)])
@pytest.mark.parametrize("targets", [Target.LEAF, Target.LEAF | Target.TABLES])
def test_generic_ranges_with_and_without_the_hardwares_help(lacks, count, hints, targets):
    guest = Guest(machine(**lacks) if lacks else "riscv")
    table, nested = mapped(guest)
    assert pages(guest) == [0, 1, 2]
    table.unmap(IOVA, 3 * PAGE)
    addr = IOVA if count < 1 << 50 else 0
    generic(
        nested, scope=Scope.RANGE_ALL_PASIDS, granule_lg2=12, addr=addr, count=count, targets=targets, hints=int(hints)
    )
    assert pages(guest) == [None, None, None]
    guest.close()


@pytest.mark.parametrize("targets", [Target.LEAF, Target.TABLES, Target.LEAF | Target.TABLES])
def test_links_to_tables_are_named_only_where_they_are_meant(guest, targets):
    _, nested = mapped(guest)
    here = {"scope": Scope.RANGE_NO_PASID, "granule_lg2": 12, "addr": IOVA, "count": 1}
    ((low, high),) = guest.commands(generic, nested, **here, targets=targets)
    asked = Iotinval0(low)
    assert (asked.COMMAND, asked.GV, asked.AV, asked.PSCV, asked.PSCID) == (Command.IOTINVAL_VMA, 1, 1, 1, 1)
    assert (asked.NL, Iotinval1(high).PAGE) == (int(bool(targets & Target.TABLES)), IOVA >> 12)


@pytest.mark.parametrize(
    ("fields", "pscid"),
    [
        ({"scope": Scope.NO_PASID}, 1),
        ({"scope": Scope.NO_PASID, "hints": int(Hint.GLOBAL)}, None),
        ({"scope": Scope.DOMAIN}, None),
        ({"scope": Scope.RANGE_ALL_PASIDS, "granule_lg2": 12, "count": 1, "valid": 1, "arch_id": 9}, 9),
    ],
    ids=str,
)
def test_a_pscid_is_named_where_global_pages_may_stay(guest, fields, pscid):
    _, nested = mapped(guest)
    ((low, _),) = guest.commands(generic, nested, **fields, targets=Target.LEAF)
    asked = Iotinval0(low)
    assert (asked.PSCID if asked.PSCV else None) == pscid


# Device TLBs


def test_a_guest_empties_the_tlb_of_its_device():
    guest = Guest(machine("pcitest"))
    table, nested = mapped(guest, EN_ATS=1)
    assert guest.wired.function.ats.ATS_CONTROL.ENABLE
    assert pages(guest) == [0, 1, 2]
    table.unmap(IOVA, 3 * PAGE)
    guest.tell(vma())
    assert pages(guest) == [0, 1, 2]
    low, _ = ats()
    assert guest.tell((low, IOVA)) == 1
    assert pages(guest) == [None, 1, 2]
    here = {"scope": Scope.RANGE_NO_PASID, "granule_lg2": 12, "addr": IOVA + PAGE, "count": 1}
    assert generic(nested, **here, targets=Target.LEAF) == 1
    assert pages(guest) == [None, 1, 2]
    assert generic(nested, **here, targets=Target.DEVICE_TLB) == 1
    assert pages(guest) == [None, None, 2]
    assert generic(nested, scope=Scope.PASID, targets=Target.DEVICE_TLB) == 1  # a TLB of requests with a PASID
    assert pages(guest) == [None, None, 2]
    assert guest.tell(ats()) == 1
    assert pages(guest) == [None, None, None]
    guest.close()


def test_a_page_that_the_host_takes_away_leaves_the_tlb_of_the_device_too():
    guest = Guest(machine("pcitest"))
    mapped(guest, EN_ATS=1)
    assert pages(guest) == [0, 1, 2]
    guest.hide(1)
    assert pages(guest) == [0, None, 2]
    guest.close()


def test_a_guest_that_says_nothing_of_ats_has_a_device_without():
    guest = Guest(machine("pcitest"))
    table, nested = mapped(guest)
    control = guest.wired.function.ats
    assert not control.ATS_CONTROL.ENABLE
    assert pages(guest) == [0, 1, 2]
    table.unmap(IOVA, PAGE)
    guest.tell(vma())
    assert pages(guest) == [None, 1, 2]
    guest.device.attach(guest.parent)
    assert control.ATS_CONTROL.ENABLE
    assert guest.reach(page(3)) == 3
    guest.device.attach(nested)
    assert not control.ATS_CONTROL.ENABLE
    assert pages(guest) == [None, 1, 2]
    guest.device.detach()
    assert not control.ATS_CONTROL.ENABLE
    guest.close()


def test_a_device_without_a_tlb_has_nothing_to_forget(guest):
    mapped(guest, EN_ATS=1)
    assert pages(guest) == [0, 1, 2]
    assert guest.tell(ats()) == 1


def test_a_tlb_that_does_not_answer_is_told():
    guest = Guest(machine("pcitest"))
    _, nested = mapped(guest, EN_ATS=1)
    assert pages(guest, 1) == [0]
    guest.wired.function.port.iommu.invalidate = lambda pasid, first, last: False
    entry = InvalidateV2(scope=Scope.DOMAIN, targets=Target.DEVICE_TLB, out_errno=7)
    raw = ctypes.create_string_buffer(entry.to_bytes())
    cmd = abi.HwptInvalidate(32, nested.id, ctypes.addressof(raw), GENERIC, entry.SIZE, 1, 0)
    guest.iommufd.backend.call("HWPT_INVALIDATE", abi.HWPT_INVALIDATE, cmd)
    answer = InvalidateV2.from_bytes(raw.raw)
    assert (cmd.entry_num, answer.out_errno, answer.out_fault) == (1, 0, Outcome.DEVICE_TIMEOUT)
    guest.close()


# Faults


def heard(queue):
    """What the guest hears: the cause, the device, the process, and the address."""
    faults = [RiscvFault.from_bytes(event.data) for event in queue.read()]
    words = [Fault0(fault.word0) for fault in faults]
    return [
        (word.CAUSE, word.DID, word.PID if word.PV else None, fault.iotval)
        for word, fault in zip(words, faults, strict=True)
    ]


def test_a_guest_hears_of_faults_of_its_own_tables(guest):
    queue = guest.viommu.event_queue(VEVENTQ, 16, RiscvFault.SIZE)
    mapped(guest)
    assert pages(guest) == [0, 1, 2]
    assert guest.reach(IOVA + 7 * PAGE) is None
    assert guest.reach(IOVA, 4) is None
    assert heard(queue) == [
        (Cause.READ_PAGE_FAULT, NAME, None, IOVA + 7 * PAGE),
        (Cause.TRANSACTION_TYPE_DISALLOWED, NAME, 4, IOVA),
    ]
    processes(guest)
    guest.memory.write_u64(guest.directory + 16 * 4, 1 << 5 | 1)  # a reserved bit
    assert [guest.reach(IOVA + PAGE, pasid) for pasid in (1, 3, 4)] == [None] * 3
    assert [fault[0::2] for fault in heard(queue)] == [
        (Cause.READ_PAGE_FAULT, 1),
        (Cause.PDT_NOT_VALID, 3),
        (Cause.PDT_MISCONFIGURED, 4),
    ]
    guest.device.attach(guest.nest(HwptRiscv()))
    assert guest.reach(IOVA) is None
    assert heard(queue) == [(Cause.DDT_NOT_VALID, NAME, None, IOVA)]
    assert guest.machine.messages == []


def test_the_host_hears_of_what_is_not_the_guests(guest):
    queue = guest.viommu.event_queue(VEVENTQ, 16, RiscvFault.SIZE)
    _, nested = mapped(guest)
    guest.hide(1)
    assert pages(guest) == [0, None, 2]
    guest.device.detach()
    assert pages(guest, 1) == [None]
    guest.device.attach(guest.parent)
    assert guest.reach(IOVA << 8) is None
    guest.device.attach(nested)
    assert pages(guest, 1) == [0]
    guest.vdevice.destroy()
    assert guest.reach(IOVA + 7 * PAGE) is None  # the guest has no name for the device
    assert heard(queue) == []
    guest.device.attach(guest.nest(guest.context(guest.table()), parent=guest.parent))
    assert pages(guest, 1) == [None]
    assert causes(guest) == [
        Cause.READ_GUEST_PAGE_FAULT,
        Cause.DDT_NOT_VALID,
        Cause.READ_GUEST_PAGE_FAULT,
        Cause.READ_PAGE_FAULT,
        Cause.READ_PAGE_FAULT,
    ]


def test_a_guest_that_does_not_listen_loses_faults_and_is_told(guest):
    queue = guest.viommu.event_queue(VEVENTQ, 1, RiscvFault.SIZE)
    mapped(guest)
    for number in range(3, 6):
        assert guest.reach(IOVA + number * PAGE) is None
    first, lost = queue.read()
    assert (first.sequence, RiscvFault.from_bytes(first.data).iotval) == (0, IOVA + 3 * PAGE)
    assert (lost.sequence, lost.data) == (2, None)


# Any order


class _Processes(Guest):
    """Processes 0, 1 and 2 of a directory; the first is that of requests without a PASID."""

    def __init__(self):
        super().__init__()
        self.nested = self.nest(self.context(DPE=1))
        self.device.attach(self.nested)

    def route(self, process, table):
        self.process(process, table, 10 + process)

    def forget_page(self, process, iova, plain):
        if plain:
            self.tell(vma(iova, 10 + process))
        else:
            here = {"granule_lg2": 12, "addr": iova, "count": 1, "targets": Target.LEAF}
            generic(self.viommu, scope=Scope.RANGE, pasid=process, valid=1, arch_id=10 + process, **here)

    def forget_process(self, process, plain):
        if plain:
            self.tell(vma(None, 10 + process))
        else:
            generic(self.nested, scope=Scope.PASID, pasid=process, targets=3, valid=1, arch_id=10 + process)

    def forget_route(self, process, plain):
        if plain:
            self.tell(pdt(process), vma(None, 10 + process))
        else:
            generic(self.nested, scope=Scope.PASID, pasid=process, targets=7, valid=1, arch_id=10 + process)

    def forget_everything(self, plain):
        if plain:
            self.tell(vma(), *(pdt(process) for process in range(3)))
        else:
            generic(self.viommu, scope=Scope.DOMAIN, targets=7)


class RiscvAnyOrder(AnyOrder):
    """On RISC-V the stages are cached one by one."""

    def make(self):
        return _Processes()


def test_a_guest_in_any_order_sees_what_is_cached_until_it_invalidates_it():
    check(RiscvAnyOrder, 25, 40)
