"""Which STEs and CDs an SMMUv3 refuses, and that none of them, whatever its bytes, is more than a fault."""

import pytest
from hypothesis import given, settings, strategies as st
from smmuv3_rig import SID, Rig, context, mapped, reach, second

from softiommu.errors import ModelError
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.faults import Response, SmmuFaultError
from softiommu.hardware.smmuv3.presets import FULL, QEMU
from softiommu.hardware.smmuv3.tables import Cd0, Cd1, Config, Ste0, Ste1, Ste2, Ste3

EL2 = FULL._replace(idr0=FULL.idr0.replace(HYP=1))


def less(identity=FULL, **fields):
    """An SMMU with other features."""
    changed = {}
    for name in ("idr0", "idr1", "idr3", "idr5"):
        word = getattr(identity, name)
        changed[name] = word.replace(**{field: value for field, value in fields.items() if field in word.FIELDS})
    return identity._replace(**changed)


NO_STAGE2 = less(S2P=0, VMID16=0)
NO_STAGE1 = less(S1P=0, ASID16=0, CD2L=0, SSIDSIZE=0)


def of_ste(identity, changes, config=Config.NEST):
    """What a transaction meets with a good STE of stage 1 and 2 that is changed by word."""
    rig = Rig(identity)
    pages1, pages2 = rig.pages("arm64-4k-48-s1"), rig.pages("arm64-4k-40-s2")
    mapped(pages2, 0, 0, 32 << 20)
    mapped(pages1, 0x1000, 0x100000)
    rig.cd(*context(pages1, IPS=1))
    tags, root = second(pages2)
    words = [Ste0.of(V=1, CONFIG=config, S1CONTEXTPTR=rig.cds >> 6), Ste1(0), tags, root]
    for number, fields in changes.items():
        words[number] = words[number].replace(**fields)
    rig.ste(*words)
    return reach(rig.smmu, 0x1000)


@pytest.mark.parametrize("config", [Config.S1, Config.S2, Config.NEST])
def test_the_entry_that_is_changed_is_good(config):
    assert of_ste(FULL, {}, config) == (0x1000 if config == Config.S2 else 0x100000)


@pytest.mark.parametrize(
    ("identity", "changes", "config"),
    [
        (FULL, {0: {"V": 0}}, Config.NEST),
        (NO_STAGE1, {}, Config.S1),
        (NO_STAGE1, {}, Config.NEST),
        (NO_STAGE2, {}, Config.S2),
        (FULL, {1: {"EATS": 2}}, Config.S1),
        (FULL, {1: {"EATS": 2}}, Config.S2),
        (FULL, {1: {"EATS": 2}, 2: {"S2S": 1}}, Config.NEST),
        (less(NS1ATS=1), {1: {"EATS": 2}}, Config.NEST),
        (FULL, {1: {"EATS": 1}, 2: {"S2S": 1}}, Config.NEST),
        (EL2, {1: {"STRW": 1}}, Config.S1),
        (EL2, {1: {"STRW": 3}}, Config.S1),
        (less(STALL_MODEL=1), {1: {"S1STALLD": 1}}, Config.S1),
        (less(SSIDSIZE=4), {0: {"S1CDMAX": 5}}, Config.S1),
        (less(CD2L=0), {0: {"S1CDMAX": 2, "S1FMT": 1}}, Config.S1),
        (less(OAS=5, VAX=0, DS=0), {0: {"S1CONTEXTPTR": 1 << 42}}, Config.S1),
        (less(STALL_MODEL=1), {2: {"S2S": 1}}, Config.S2),
        (less(STALL_MODEL=2), {2: {"S2S": 0}}, Config.S2),
        (FULL, {2: {"S2AA64": 0}}, Config.S2),
        (less(HTTU=0), {2: {"S2HA": 1}}, Config.S2),
        (less(HTTU=1), {2: {"S2HD": 1}}, Config.S2),
        (less(GRAN4K=0), {}, Config.S2),
        (FULL, {2: {"S2TG": 3}}, Config.S2),
        (FULL, {2: {"S2ENDI": 1}}, Config.S2),
        (less(OAS=2, VAX=0, DS=0), {2: {"S2T0SZ": 23}}, Config.S2),
        (less(STT=0), {2: {"S2T0SZ": 40, "S2SL0": 0}}, Config.S2),
        (FULL, {2: {"S2T0SZ": 16, "S2SL0": 1}}, Config.S2),
        (FULL, {2: {"S2SL0": 3}}, Config.S2),
        (FULL, {2: {"S2PS": 0}, 3: {"S2TTB": 1 << 28}}, Config.S2),
        (less(VMID16=0), {2: {"S2VMID": 0x100}}, Config.S2),
        (less(VMID16=0), {2: {"S2VMID": 0x100}}, Config.S1),
    ],
)
def test_an_illegal_ste_is_told(identity, changes, config):
    assert of_ste(identity, changes, config) is Event.C_BAD_STE


@pytest.mark.parametrize(
    ("identity", "changes", "config"),
    [
        (less(ATS=0, PRI=0), {1: {"EATS": 2}}, Config.S1),
        (FULL, {1: {"STRW": 1}}, Config.S1),
        (EL2, {1: {"STRW": 1}}, Config.NEST),
        (less(SSIDSIZE=0), {0: {"S1CDMAX": 5, "S1FMT": 1}}, Config.S1),
        (FULL, {1: {"EATS": 3}}, Config.S1),
        (NO_STAGE2, {2: {"S2VMID": 0xFFFF}}, Config.S1),
        (less(EL2, VMID16=0), {1: {"STRW": 2}, 2: {"S2VMID": 0xFFFF}}, Config.S1),
    ],
)
def test_what_an_ste_does_not_use_is_ignored(identity, changes, config):
    assert of_ste(identity, changes, config) == 0x100000


def test_a_bypassing_ste_has_no_ats_to_be_wrong_about():
    assert of_ste(FULL, {1: {"EATS": 2}}, Config.BYPASS) == 0x1000


def of_cd(identity, changes, ste1=0):
    """What a transaction meets with a good CD that is changed by word."""
    rig = Rig(identity)
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0x1000, 0x100000)
    rig.stage1(pages, ste1=Ste1(ste1))
    words = list(context(pages))
    for number, fields in changes.items():
        words[number] = words[number].replace(**fields)
    rig.cd(*words)
    return reach(rig.smmu, 0x1000)


@pytest.mark.parametrize(
    ("identity", "changes", "ste1"),
    [
        (FULL, {0: {"V": 0}}, 0),
        (FULL, {0: {"AA64": 0}}, 0),
        (FULL, {0: {"S": 1}}, Ste1.S1STALLD.mask),
        (less(STALL_MODEL=1), {0: {"S": 1}}, 0),
        (less(STALL_MODEL=2), {0: {"S": 0}}, 0),
        (less(TERM_MODEL=1), {0: {"A": 0}}, 0),
        (FULL, {0: {"ENDI": 1}}, 0),
        (less(HTTU=0), {0: {"HA": 1}}, 0),
        (less(HTTU=1), {0: {"HA": 1, "HD": 1}}, 0),
        (less(ASID16=0), {0: {"ASID": 0x100}}, 0),
        (FULL, {0: {"T0SZ": 15}}, 0),
        (less(STT=0), {0: {"T0SZ": 40}}, 0),
        (FULL, {0: {"T0SZ": 49}}, 0),
        (less(VAX=0), {0: {"T0SZ": 15}, 2: {"DS": 1}}, 0),
        (FULL, {0: {"TG0": 3}}, 0),
        (less(GRAN64K=0), {0: {"TG0": 1}}, 0),
        (FULL, {0: {"TG0": 1, "T0SZ": 48}}, 0),
        (FULL, {0: {"EPD1": 0, "TG1": 0, "T1SZ": 16}}, 0),
        (FULL, {0: {"EPD1": 0, "TG1": 2, "T1SZ": 5}}, 0),
        (FULL, {0: {"IPS": 0}, 1: {"TTB0": 1 << 28}}, 0),
        (FULL, {1: {"TTB0": 1 << 44}}, 0),
    ],
)
def test_an_illegal_cd_is_told(identity, changes, ste1):
    assert of_cd(identity, changes, ste1) is Event.C_BAD_CD


@pytest.mark.parametrize(
    ("identity", "changes"),
    [
        (FULL, {}),
        (FULL, {0: {"EPD1": 1, "TG1": 0, "T1SZ": 63}, 2: {"TTB1": (1 << 52) - 1}}),
        (less(OAS=5, DS=0, VAX=0), {0: {"IPS": 7}}),
        (FULL, {0: {"ASET": 1, "UWXN": 1}, 1: {"HAD0": 1}}),
    ],
)
def test_a_legal_cd_translates(identity, changes):
    assert of_cd(identity, changes) == 0x100000


@pytest.mark.parametrize(
    ("fields", "event", "raz_wi"),
    [({"R": 1}, True, False), ({"R": 0}, False, False), ({"R": 1, "A": 0}, True, True)],
)
def test_a_context_says_whether_faults_are_recorded_and_abort(fields, event, raz_wi):
    rig = Rig()
    rig.stage1(rig.pages("arm64-4k-48-s1"), **fields)
    with pytest.raises(SmmuFaultError) as caught:
        rig.smmu.translate(SID, 0x1000, 1)
    assert caught.value.response is (Response.RAZ_WI if raz_wi else Response.ABORT)
    assert len(rig.take_events()) == event


def test_stage_2_faults_are_recorded_by_s2r():
    rig = Rig()
    rig.stage2(rig.pages("arm64-4k-40-s2"), S2R=0)
    assert reach(rig.smmu, 0x1000) is Event.F_TRANSLATION
    assert rig.take_events() == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"TTF": 3}, "only AArch64"),
        ({"TTENDIAN": 0}, "little-endian"),
        ({"ATS": 0}, r"IDR0\.PRI needs IDR0\.ATS"),
        ({"S1P": 0, "S2P": 0, "ASID16": 0, "VMID16": 0, "CD2L": 0}, "stage 1 or stage 2"),
        ({"S1P": 0, "ASID16": 0, "CD2L": 0}, "substreams need stage 1"),
        ({"SSIDSIZE": 21}, "20 bits"),
        ({"SIDSIZE": 33}, "32 bits"),
        ({"CMDQS": 20}, r"2\*\*19"),
        ({"GRAN4K": 0, "GRAN16K": 0, "GRAN64K": 0}, "granule"),
        ({"STALL_MAX": 0}, "STALL_MAX"),
        ({"VATOS": 1}, "VATOS is not modelled"),
        ({"HTTU": 3}, "HTTU 3"),
    ],
)
def test_features_that_cannot_be_are_refused_by_their_rule(changes, rule):
    with pytest.raises(ModelError, match=rule):
        Rig(less(**changes))


word = st.integers(0, 2**64 - 1)


@settings(max_examples=200, deadline=None)
@given(
    ste=st.lists(word, min_size=8, max_size=8),
    cd=st.lists(word, min_size=8, max_size=8),
    identity=st.sampled_from([FULL, QEMU, EL2, NO_STAGE1, NO_STAGE2]),
    good=st.integers(0, 63),
    requests=st.lists(st.tuples(word, st.integers(1, 7), st.one_of(st.none(), st.integers(0, (1 << 20) - 1)))),
)
def test_whatever_an_ste_and_a_cd_hold_a_request_ends(ste, cd, identity, good, requests):
    """Random words, of which the fields that decide most are often good ones."""
    rig = Rig(identity)
    pages = rig.pages("arm64-4k-48-s1")
    mapped(pages, 0, 0, 32 << 20)
    if good & 1:
        ste[0] = Ste0(ste[0]).replace(V=1, S1CONTEXTPTR=rig.cds >> 6, S1CDMAX=ste[0] >> 59 & 3)
    if good & 2:
        ste[2] = Ste2(ste[2] & ~Ste2.S2TG.mask).replace(S2AA64=1, S2ENDI=0, S2T0SZ=16 + (ste[2] >> 32 & 31))
        ste[3] = Ste3(ste[3]).replace(S2TTB=pages.root >> 4)
    if good & 4:
        cd[0] = Cd0(cd[0]).replace(V=1, AA64=1, ENDI=0, S=0, A=1, TG0=0, T0SZ=16 + (cd[0] & 31), EPD1=1)
        cd[1] = Cd1(cd[1]).replace(TTB0=pages.root >> 4)
    if good & 8:
        ste[1] = Ste1(ste[1]).replace(EATS=ste[1] & 1, S1STALLD=0, STRW=ste[1] >> 8 & 2)
    rig.ste(*ste)
    for ssid in range(4):
        rig.cd(*cd, ssid=ssid)
    for iova, want, pasid in requests:
        reach(rig.smmu, iova if good & 16 else iova & 0x1FFFFFF, want, pasid=pasid)
        ats(rig.smmu, iova, want, pasid)


def ats(smmu, iova, want, pasid):
    for ask in (smmu.ats_translate, smmu.admit_translated):
        try:
            assert ask(SID, iova, want, pasid).allowed >= 0
        except SmmuFaultError as fault:
            Response(fault.response)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_hostile_tables_reach_nothing_but_what_they_name(data):
    """Tables that lead back into themselves and into the configuration, with every second stage or none."""
    rig = Rig()
    pages = [rig.memory.alloc(4096) for _ in range(4)]
    targets = st.sampled_from([*pages, rig.strtab, rig.cds, 1 << 40])
    for page in pages:
        for number in data.draw(st.lists(st.integers(0, 511), max_size=12)):
            low = data.draw(st.integers(0, 0xFFF))
            high = data.draw(st.sampled_from([0, 1 << 51, 1 << 52, 1 << 54, 3 << 61]))
            rig.memory.write_u64(page + 8 * number, data.draw(targets) | low | high)
    cd = Cd0.of(V=1, AA64=1, A=1, IPS=5, T0SZ=data.draw(st.sampled_from([16, 25])), EPD1=1, HA=1, HD=1)
    rig.cd(cd, Cd1.of(TTB0=pages[0] >> 4))
    config = data.draw(st.sampled_from([Config.S1, Config.S2, Config.NEST]))
    tags = Ste2.of(S2T0SZ=24, S2SL0=1, S2AA64=1, S2PS=5, S2HA=1, S2HD=1)
    rig.ste(Ste0.of(V=1, CONFIG=config, S1CONTEXTPTR=rig.cds >> 6), 0, tags, Ste3.of(S2TTB=pages[1] >> 4))
    for iova in data.draw(st.lists(st.integers(0, 2**48), min_size=1, max_size=4)):
        got = reach(rig.smmu, iova, data.draw(st.integers(1, 7)))
        assert isinstance(got, Event) or got >> 52 == 0
