"""RISC-V IOMMU contexts: each is found where the formats say, and each wrong bit has its cause."""

import pytest
from hypothesis import given, settings, strategies as st
from riscv_rig import GSCID, PSCID, SID, Rig, context, hgatp, satp

from softiommu.errors import ModelError
from softiommu.hardware.riscv import tables
from softiommu.hardware.riscv.contexts import InterruptFiles
from softiommu.hardware.riscv.events import Cause, Fault0, Ttyp
from softiommu.hardware.riscv.presets import FULL, QEMU, SMALL, check
from softiommu.hardware.riscv.registers import Capabilities, DdtpMode
from softiommu.hardware.riscv.tables import PdtMode, Tc
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

BASE = FULL.replace(MSI_FLAT=0, MSI_MRIF=0, AMO_MRIF=0)


@pytest.mark.parametrize("capabilities", [FULL, BASE], ids=["extended", "base"])
@pytest.mark.parametrize(
    ("mode", "bits", "wide"),
    [(DdtpMode.LEVEL1, (7, 6), 2), (DdtpMode.LEVEL2, (16, 15), 3), (DdtpMode.LEVEL3, (24,) * 2, 4)],
)
def test_a_device_context_is_found_by_the_device_id(capabilities, mode, bits, wide):
    rig = Rig(capabilities, mode=mode)
    width = bits[capabilities.MSI_FLAT]
    pages = rig.pages("riscv-sv39")
    pages.map(0x5000, 0x9000, 0x1000, READ)
    words = context(pages)[: 8 if capabilities.MSI_FLAT else 4]
    for sid in {(1 << width) - 1, 0x2A & (1 << width) - 1, 0xB3C5A7 & (1 << width) - 1}:
        assert rig.pa(0x5008, sid=sid) is Cause.DDT_NOT_VALID
        rig.device(words, sid)
        assert rig.pa(0x5008, sid=sid) == 0x9008
    if width < 24:
        assert rig.pa(0x5008, sid=1 << width) is Cause.TRANSACTION_TYPE_DISALLOWED
        assert rig.pa(0x5008, sid=1 << 23) is Cause.TRANSACTION_TYPE_DISALLOWED


def test_off_blocks_everything_and_bare_passes_untranslated_requests():
    rig = Rig(mode=DdtpMode.OFF)
    assert rig.pa(0x1234) is Cause.ALL_INBOUND_DISALLOWED
    rig.write(0x10, 8, DdtpMode.BARE)
    assert rig.pa(1 << 63 | 0x1234) == 1 << 63 | 0x1234
    with pytest.raises(Exception, match="DISALLOWED"):
        rig.iommu.admit_translated(SID, 0x1000, READ)
    with pytest.raises(Exception, match="DISALLOWED"):
        rig.iommu.ats_translate(SID, 0x1000, READ)
    causes = [record.CAUSE for record, _, _ in rig.faults()]
    assert causes == [256, 260, 260]


@pytest.mark.parametrize("bit", [*range(1, 10), *range(54, 64)])
def test_reserved_bits_of_directory_entries_are_misconfigured(bit):
    rig = Rig()
    rig.device(context())
    level2 = rig.root + 8 * tables.directory_index(2, SID, tables.EXTENDED_DDI)
    rig.memory.write_u64(level2, rig.memory.read_u64(level2) | 1 << bit)
    assert rig.pa(0) is Cause.DDT_MISCONFIGURED


def test_directories_outside_memory_are_access_faults():
    rig = Rig(FULL.replace(PAS=40))
    level2 = tables.directory_index(2, SID, tables.EXTENDED_DDI)
    for ppn in (1 << 20, 1 << 43):
        rig.memory.write_u64(rig.root + 8 * level2, tables.DirectoryEntry.of(V=1, PPN=ppn))
        assert rig.pa(0) is Cause.DDT_LOAD_ACCESS_FAULT


def wrong_contexts():
    """(capabilities, what is changed in a right context, number of the check)"""
    no_hwad, no_ats, no_t2gpa = FULL.replace(AMO_HWAD=0), FULL.replace(ATS=0, T2GPA=0), FULL.replace(T2GPA=0)
    yield from ((FULL, {0: 1 << bit}, f"1 tc[{bit}]") for bit in (12, 23, 32, 63))
    yield from ((FULL, {2: 1 << bit}, f"1 ta[{bit}]") for bit in (0, 11, 32, 39))
    yield from ((FULL.replace(QOSID=0), {2: 1 << bit}, f"1 qos[{bit}]") for bit in (40, 51, 52, 63))
    yield from ((FULL, {3: 1 << bit}, f"1 fsc[{bit}]") for bit in (44, 59))
    yield from ((FULL, {4: 1 << bit}, f"1 msiptp[{bit}]") for bit in (44, 59))
    yield from ((FULL, {word: 1 << bit}, f"1 word {word}[{bit}]") for word in (5, 6) for bit in (47, 52, 63))
    yield from ((FULL, {7: 1 << bit}, f"1 word 7[{bit}]") for bit in (0, 63))
    yield from ((no_ats, {0: Tc.of(**{name: 1}) | 2}, f"2 {name}") for name in ("EN_PRI", "PRPR"))
    yield no_ats, {0: Tc.of(EN_ATS=1)}, "2 EN_ATS"
    yield FULL, {0: Tc.of(T2GPA=1)}, "3 T2GPA"
    yield FULL, {0: Tc.of(EN_PRI=1)}, "3 EN_PRI"
    yield FULL, {0: Tc.of(EN_ATS=1, PRPR=1)}, "4"
    yield no_t2gpa, {0: Tc.of(EN_ATS=1, T2GPA=1)}, "5 capability"
    yield FULL, {0: Tc.of(EN_ATS=1, T2GPA=1), 1: None}, "5 bare"
    for mode in (*range(4, 16), 8):
        yield FULL, {0: Tc.of(PDTV=1), 3: mode << 60, "fsc": 0}, f"6 mode {mode}"
    for mode, name in ((1, "PD8"), (2, "PD17"), (3, "PD20")):
        yield FULL.replace(**{name: 0}), {0: Tc.of(PDTV=1), 3: mode << 60, "fsc": 0}, f"6 {name}"
    for mode in (*range(1, 8), *range(11, 16)):
        yield FULL, {3: mode << 60, "fsc": 0}, f"7 mode {mode}"
        yield FULL, {1: mode << 60 | 4}, f"9 mode {mode}"
    yield FULL.replace(SV57=0), {3: 10 << 60, "fsc": 0}, "7 Sv57"
    yield FULL.replace(SV57X4=0), {1: 10 << 60 | 4}, "9 Sv57x4"
    yield FULL, {0: Tc.of(DPE=1)}, "8"
    yield FULL, {1: 8 << 60 | 5}, "10"
    yield FULL, {4: 2 << 60}, "11 mode 2"
    yield FULL, {4: 15 << 60}, "11 mode 15"
    yield no_hwad, {0: Tc.of(SADE=1)}, "12 SADE"
    yield no_hwad, {0: Tc.of(GADE=1)}, "12 GADE"
    yield FULL, {0: Tc.of(SBE=1)}, "13"
    yield FULL, {0: Tc.of(SXL=1)}, "14"
    yield FULL, {1: None, 4: 1 << 60}, "16"


WRONG = list(wrong_contexts())


@pytest.mark.parametrize(("capabilities", "changes", "check"), WRONG, ids=[name for _, _, name in WRONG])
def test_each_check_of_a_device_context_finds_its_mistake(capabilities, changes, check):
    """The table "DC misconfigured" of the specification, one mistake at a time."""
    rig = Rig(capabilities)
    second = rig.pages("riscv-sv39x4")
    words = context(rig.pages("riscv-sv39"), second)
    at = rig.device(words)
    assert rig.pa(0x1000) is not Cause.DDT_MISCONFIGURED, "the context is right before the mistake"
    rig.submit(3)
    for word, bits in changes.items():
        if word == "fsc":
            continue
        if bits is None:
            words[word] = 0
        elif (word == 3 and "fsc" in changes) or word == 1:
            words[word] = bits
        else:
            words[word] |= bits
    for number, word in enumerate(words):
        rig.memory.write_u64(at + 8 * number, int(word))
    assert rig.pa(0x1000) is Cause.DDT_MISCONFIGURED
    assert rig.faults()[-1][0] == Fault0.of(CAUSE=259, TTYP=Ttyp.UNTRANSLATED_READ, DID=SID)


def test_custom_bits_of_a_context_are_nobodys_business():
    rig = Rig()
    words = context(pscid=1)
    words[0] |= 0xFF << 24
    rig.device(words)
    assert rig.pa(0x1000) == 0x1000


@pytest.mark.parametrize(("mode", "width"), [(PdtMode.PD8, 8), (PdtMode.PD17, 17), (PdtMode.PD20, 20)])
def test_a_process_context_is_found_by_the_process_id(mode, width):
    rig = Rig()
    pages = rig.pages("riscv-sv39")
    pages.map(0x5000, 0x9000, 0x1000, READ)
    rig.device(context(rig.processes(mode), PDTV=1))
    for pid in {0, 0xA5, 0x1_A5A5 & (1 << width) - 1, 0xF_FFFF >> 20 - width}:
        assert rig.pa(0x5000, pasid=pid) is Cause.PDT_NOT_VALID
        rig.process(pid, (tables.ProcessTa.of(V=1, PSCID=PSCID), satp(pages)))
        assert rig.pa(0x5000, pasid=pid) == 0x9000
    if width < 20:
        assert rig.pa(0x5000, pasid=1 << width) is Cause.TRANSACTION_TYPE_DISALLOWED
    assert rig.pa(0x5000) == 0x5000, "without a process id and default, the first stage is Bare"


def test_a_default_process_serves_requests_without_one():
    rig = Rig()
    pages = rig.pages("riscv-sv39")
    pages.map(0x5000, 0x9000, 0x1000, READ)
    rig.device(context(rig.processes(), PDTV=1, DPE=1))
    assert rig.pa(0x5000) is Cause.PDT_NOT_VALID
    rig.process(0, (tables.ProcessTa.of(V=1), satp(pages)))
    assert rig.pa(0x5000) == 0x9000
    record = rig.faults()[0][0]
    assert (record.PV, record.PID, record.PRIV) == (1, 0, 0)


def test_a_bare_process_directory_is_a_bare_first_stage():
    rig = Rig()
    rig.device(context(PDTV=1, DPE=1))
    assert rig.pa(0x5000, pasid=0xFFFFF, privileged=True) == 0x5000


@pytest.mark.parametrize("bit", [(0, 3), (0, 11), (0, 32), (0, 63), (1, 44), (1, 59), (1, 60), (1, 62)])
def test_reserved_bits_of_process_contexts_are_misconfigured(bit):
    rig = Rig()
    rig.device(context(rig.processes(), PDTV=1))
    words = [tables.ProcessTa.of(V=1), 0]
    words[bit[0]] |= 1 << bit[1]
    rig.process(3, words)
    assert rig.pa(0, pasid=3) is Cause.PDT_MISCONFIGURED


def test_reserved_bits_of_process_directories_are_misconfigured_and_missing_memory_faults():
    rig = Rig()
    rig.device(context(rig.processes(), PDTV=1))
    rig.process(3, (1, 0))
    assert rig.pa(0x77, pasid=3) == 0x77
    entry = rig.memory.read_u64(rig.pdt)
    rig.submit(3)
    rig.memory.write_u64(rig.pdt, entry | 2)
    assert rig.pa(0, pasid=3) is Cause.PDT_MISCONFIGURED
    rig.memory.write_u64(rig.pdt, 1 | 1 << 50)
    assert rig.pa(0, pasid=3) is Cause.PDT_LOAD_ACCESS_FAULT
    rig.memory.write_u64(rig.pdt, entry & ~1)
    assert rig.pa(0, pasid=3) is Cause.PDT_NOT_VALID


def test_a_process_directory_of_a_guest_lies_at_guest_addresses():
    rig = Rig()
    second, first = rig.pages("riscv-sv39x4"), rig.pages("riscv-sv39")
    pdtp = rig.processes()
    rig.process(3, (tables.ProcessTa.of(V=1, PSCID=PSCID), satp(first)))
    first.map(0x5000, 0x9000, 0x1000, READ)
    second.map(1 << 30, 0, 64 << 20, READ | WRITE)

    rig.device(context(pdtp.replace(PPN=pdtp.PPN + (1 << 30 >> 12)), second, PDTV=1))
    assert rig.pa(0x5000, EXECUTE, pasid=3) is Cause.INSTRUCTION_GUEST_PAGE_FAULT
    record, iova, iotval2 = rig.faults()[-1]
    below = tables.DirectoryEntry(rig.memory.read_u64(rig.pdt)).PPN << 12
    assert (record.PID, record.PV, iova, iotval2) == (3, 1, 0x5000, below | 1)
    # The directory's own links and the first stage's are guest-physical, too: show them where they say they are.
    second.map(0, 0, 64 << 20, READ | WRITE)
    assert rig.pa(0x5000, pasid=3) == 0x9000
    assert rig.pa(0x5000, pasid=4) is Cause.PDT_NOT_VALID


def test_supervisors_need_ens():
    rig = Rig()
    rig.device(context(rig.processes(), PDTV=1))
    at = rig.process(3, (tables.ProcessTa.of(V=1), 0))
    assert rig.pa(0x5000, pasid=3, privileged=True) is Cause.TRANSACTION_TYPE_DISALLOWED
    record = rig.faults()[-1][0]
    assert (record.PRIV, record.PID) == (1, 3)
    rig.memory.write_u64(at, tables.ProcessTa.of(V=1, ENS=1))
    assert rig.pa(0x5000, pasid=3, privileged=True) is Cause.TRANSACTION_TYPE_DISALLOWED, "the context is cached"
    rig.submit(3 | 1 << 7 | 1 << 33 | SID << 40 | 3 << 12)
    assert rig.pa(0x5000, pasid=3, privileged=True) == 0x5000


def test_a_process_id_without_a_directory_is_disallowed():
    rig = Rig()
    rig.device(context())
    assert rig.pa(0, pasid=0) is Cause.TRANSACTION_TYPE_DISALLOWED


def test_dtf_hides_what_it_may_and_shows_what_it_must():
    rig = Rig()
    pages = rig.pages("riscv-sv39")
    at = rig.device(context(pages, DTF=1))
    assert rig.pa(0x5000) is Cause.READ_PAGE_FAULT
    assert rig.pa(0, pasid=3) is Cause.TRANSACTION_TYPE_DISALLOWED
    assert rig.faults() == []
    rig.memory.write_u64(at + 8, 7 << 60)
    rig.submit(3)
    assert rig.pa(0x5000) is Cause.DDT_MISCONFIGURED
    assert len(rig.faults()) == 1


@given(mask=st.integers(0, 2**20 - 1), pattern=st.integers(0, 2**20 - 1), page=st.integers(0, 2**20 - 1))
def test_an_interrupt_files_number_is_the_pages_masked_bits_packed(mask, pattern, page):
    files = InterruptFiles(0, mask, pattern)
    places = [place for place in range(20) if mask >> place & 1]
    expected = sum((page >> place & 1) << at for at, place in enumerate(places))
    assert files.file(page << 12) == expected
    assert files.covers(page << 12) == all(
        page >> place & 1 == pattern >> place & 1 for place in range(20) if place not in places
    )


@given(mask=st.integers(0, 255), pattern=st.integers(0, 255), page=st.integers(0, 255), lg2=st.integers(12, 20))
def test_a_leaf_meets_interrupt_files_when_a_page_of_it_is_one(mask, pattern, page, lg2):
    files = InterruptFiles(0, mask, pattern)
    first = page >> lg2 - 12 << lg2 - 12
    inside = range(first, first + (1 << lg2 - 12))
    assert files.meets(page << 12, lg2) == any(files.covers(number << 12) for number in inside)


@pytest.mark.parametrize(
    ("capabilities", "rule"),
    [
        (SMALL.replace(SV48=1, SV39=0), "SV48 needs capabilities.SV39"),
        (QEMU.replace(SV57X4=1, SV48X4=0), "SV57X4 needs"),
        (QEMU.replace(T2GPA=1, ATS=0), "T2GPA needs"),
        (SMALL.replace(ATS=1, T2GPA=1), "second stage"),
        (QEMU.replace(MSI_MRIF=1, MSI_FLAT=0), "MSI_MRIF needs"),
        (QEMU.replace(IGS=3), "IGS"),
        (QEMU.replace(PAS=57), "PAS"),
        (QEMU.replace(END=1), "END is not modelled"),
        (QEMU.replace(SV32=1), "SV32 is not modelled"),
        (Capabilities(QEMU | 1 << 12), "reserved"),
    ],
)
def test_capabilities_that_no_hardware_has_are_refused(capabilities, rule):
    with pytest.raises(ModelError, match=rule):
        check(capabilities)


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_whatever_the_structures_hold_a_request_ends(data):
    """Hostile words in contexts, directories and tables, which lead back into this memory."""
    rig = Rig(data.draw(st.sampled_from([FULL, BASE, QEMU, SMALL])))
    pages = [rig.memory.alloc(16384, 16384) for _ in range(4)]
    links = st.builds(lambda page, low: page >> 2 | low, st.sampled_from(pages), st.integers(0, 1023))
    modes = st.sampled_from([0, 1, 2, 3, 8, 9, 10, 15])
    roots = st.builds(lambda page, mode: page >> 12 | mode << 60, st.sampled_from(pages), modes)
    words = st.one_of(links, links, roots, st.integers(0, 0x3FF), st.integers(0, 2**64 - 1))
    for page in pages:
        for number in data.draw(st.lists(st.integers(0, 63), max_size=24)):
            rig.memory.write_u64(page + 8 * number, data.draw(words))
    for sid in range(2):
        tc = data.draw(st.sampled_from([0x1, 0x21, 0x221, 0x181, 0x1A3, 0x3]))
        context_words = [tc, data.draw(st.one_of(st.just(0), roots)), PSCID << 12, data.draw(roots)]
        msi = [data.draw(st.one_of(st.just(0), roots)), data.draw(st.integers(0, 7)), data.draw(st.integers(0, 7)), 0]
        rig.device(context_words + (msi if rig.iommu.registers.CAPABILITIES.MSI_FLAT else []), sid)
    for sid in data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)):
        pasid = data.draw(st.one_of(st.none(), st.integers(0, 7)))
        iova = data.draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**18)))
        got = rig.pa(iova, data.draw(st.integers(0, 7)), pasid, data.draw(st.booleans()), sid)
        assert got in list(Cause) if isinstance(got, Cause) else got >= 0
    assert all(record.CAUSE in list(Cause) for record, _, _ in rig.faults())


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8), pids=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes_of_contexts_translate_or_fault(words, pids):
    rig = Rig()
    second = rig.pages("riscv-sv39x4")
    rig.device([words[0] & 0x3FF | 1, hgatp(second, GSCID), words[2] & ~0xFF00000FFF, words[3], *words[4:7], 0])
    assert isinstance(rig.pa(words[7], pasid=words[7] & 0xFFFFF if pids else None), int)
    rig.submit(3)
    rig.device(context(rig.processes(), PDTV=1))
    rig.process(5, (words[0] | 1, words[1]))
    assert isinstance(rig.pa(words[7], pasid=5), int)
