"""What a VMM may offer: rules that are complete, offers that hold, findings that are right."""

import re

import pytest
from hypothesis import given, strategies as st

from softiommu.abi import riscv_extension
from softiommu.abi.iommufd import (
    HwCapabilities,
    HwInfoAmd,
    HwInfoArmSmmuv3,
    HwInfoArmSmmuv3Flags,
    HwInfoTegra241Cmdqv,
    HwInfoType,
    HwInfoVtd,
)
from softiommu.api import HwInfo
from softiommu.hardware.amd import presets as amd
from softiommu.hardware.riscv import presets as riscv
from softiommu.hardware.riscv.registers import Capabilities
from softiommu.hardware.smmuv3 import presets as smmuv3
from softiommu.hardware.vtd import presets as vtd
from softiommu.vmm.capabilities import FAMILIES, Capability, Request, Verdict, decode, lint, negotiate, told
from softiommu.vmm.capabilities.families import ERRATA
from softiommu.vmm.capabilities.rules import (
    ASKED,
    EXTENSIONS,
    REQUEST_FLAGS,
    TOLD,
    Kind,
    at_most,
    choice,
    demand,
    equal,
    subset,
)

REGISTERS = [(family, register) for family in FAMILIES.values() for register in family.registers]
NAMES = [f"{family.kind.name}-{register.name}" for family, register in REGISTERS]
EVERYTHING = ~Capability(0)
#: What the kernel's documentation says to take for granted.
ASSUMED = {("IDR0", "COHACC")}
NOTHING = Request(0)


def info(struct, type, capabilities=0, pasid_bits=0):
    return HwInfo(int(type), struct.to_bytes(), capabilities, pasid_bits)


def smmuv3_info(identity=smmuv3.FULL, **changes):
    values = {name: int(getattr(identity, name)) for name in ("idr0", "idr1", "idr3", "idr5", "iidr", "aidr")}
    return info(HwInfoArmSmmuv3(**{**values, **changes}), HwInfoType.ARM_SMMUV3)


def vtd_info(preset, **more):
    return info(HwInfoVtd(0, 0, int(preset.cap), int(preset.ecap)), HwInfoType.INTEL_VTD, **more)


def amd_info(preset, **more):
    return info(HwInfoAmd(int(preset.efr), int(preset.efr2)), HwInfoType.AMD, **more)


def words(*sizes):
    return st.tuples(*(st.integers(0, (1 << size) - 1) for size in sizes))


INFOS = st.one_of(
    words(64, 64).map(lambda raw: info(HwInfoVtd(0, 0, *raw), HwInfoType.INTEL_VTD)),
    words(*[32] * 8).map(lambda raw: info(HwInfoArmSmmuv3(0, 0, *raw), HwInfoType.ARM_SMMUV3)),
    words(64, 64).map(lambda raw: info(HwInfoAmd(*raw), HwInfoType.AMD)),
    words(8, 8, 8, 8).map(lambda raw: info(HwInfoTegra241Cmdqv(0, *raw), HwInfoType.TEGRA241_CMDQV)),
)
KERNELS = st.integers(0, EVERYTHING.value).map(Capability)
REQUESTS = st.integers(0, (~Request(0)).value).map(Request)


# The tables


@pytest.mark.parametrize(("family", "register"), REGISTERS, ids=NAMES)
def test_each_field_of_each_register_has_one_rule(family, register):
    assert list(register.rules) == list(register.word.FIELDS)


@pytest.mark.parametrize(("family", "register"), REGISTERS, ids=NAMES)
def test_each_rule_says_why_and_where_that_is_written(family, register):
    cited = re.compile(
        r"^(Linux 7\.1, |QEMU, hw/|Arm IHI 0070, |Intel VT-d, |AMD 48882, |RISC-V IOMMU 1\.0, |docs/extensions\.md: |https://lore\.kernel\.org/)"
    )
    for rule in register.rules.values():
        assert rule.why
        assert cited.match(rule.source)
        assert rule.kind is Kind.READ or not rule.needs


def test_the_lists_of_the_kernel_are_what_is_forwarded():
    """What the kernel's documentation lists is forwarded by a kernel that does everything; what else is, has a source
    of its own."""
    listed = {
        "IDR0": {"ST_LEVEL", "TERM_MODEL", "STALL_MODEL", "TTENDIAN", "CD2L", "ASID16", "TTF"},
        "IDR1": {"SIDSIZE", "SSIDSIZE"},
        "IDR3": {"BBML", "RIL"},
        "IDR5": {"VAX", "GRAN64K", "GRAN16K", "GRAN4K"},
        "EFR": {"GTSup", "GASup", "GIoSup", "PPRSup", "EPHSup", "GATS", "GLXSup", "PASmax"},
        "EFR2": set(),
    }
    extra = {"IDR0": {"S1P", "COHACC", "ATS", "PRI", "BTM", "HTTU"}, "IDR5": {"OAS"}}
    for _, register in REGISTERS:
        if register.name in listed:
            read = {name for name, rule in register.rules.items() if rule.kind is Kind.READ}
            assert read == listed[register.name] | extra.get(register.name, set())


def test_each_capability_and_request_says_how_it_is_known():
    assert list(TOLD) == list(Capability)
    assert list(ASKED) == list(Request)
    assert all(mask >= 1 << 62 for mask in EXTENSIONS.values())
    assert all(f"bit {mask.bit_length() - 1}," in TOLD[one] for one, mask in EXTENSIONS.items())
    assert all(f"bit {flag.bit_length() - 1} " in ASKED[one] for one, flag in REQUEST_FLAGS.items())


def test_orders():
    assert subset(0b101, 0b111)
    assert not subset(0b1000, 0b111)
    assert at_most(3, 3)
    assert not at_most(4, 3)
    assert demand(1, 0)
    assert not demand(0, 1)
    assert equal(2, 2)
    assert not equal(1, 2)
    byte_order = choice(0, 2, 3)
    assert [byte_order(value, 0) for value in range(4)] == [True, False, True, True]
    assert [byte_order(value, 2) for value in range(4)] == [False, False, True, False]


# Offers


@given(INFOS, KERNELS, REQUESTS)
def test_an_offer_is_complete_and_never_has_what_the_hardware_lacks(seen, kernel, requests):
    offer = negotiate(seen, kernel, requests)
    hardware, family = decode(seen).words, decode(seen).family
    assert list(offer.words) == [register.name for register in family.registers]
    for register in family.registers:
        raw, given_ = hardware[register.name], offer.words[register.name]
        assert given_.reserved == 0
        assert type(given_) is type(raw) is register.word
        for field, rule in register.rules.items():
            answer = offer.answer(register.name, field)
            seen_, offered = int(getattr(raw, field)), int(getattr(given_, field))
            assert (answer.hardware, answer.offered) == (seen_, offered)
            if (register.name, field) in ASSUMED:
                assert offered == 1
            elif answer.verdict is Verdict.FORWARD:
                assert offered == seen_
            else:
                assert offered == 0
            assert (answer.verdict is Verdict.OWN) == (rule.kind is Kind.OWN)
            assert answer.verdict is not Verdict.NEEDS or answer.missing


@given(INFOS, KERNELS, REQUESTS)
def test_there_is_nothing_to_find_in_an_offer(seen, kernel, requests):
    assert lint(negotiate(seen, kernel, requests).words, seen, kernel, requests) == []


@given(INFOS, KERNELS, REQUESTS, KERNELS, REQUESTS)
def test_a_kernel_that_does_more_takes_nothing_away(seen, kernel, requests, more, asked):
    less, all_ = negotiate(seen, kernel, requests), negotiate(seen, kernel | more, requests | asked)
    assert lint(less.words, seen, kernel | more, requests | asked) == []
    forwarded = [(a.register, a.field) for a in less.answers if a.verdict is Verdict.FORWARD]
    assert all(all_.answer(*where).verdict is Verdict.FORWARD for where in forwarded)


@given(INFOS, KERNELS, REQUESTS)
def test_all_that_is_forwarded_raw_is_found_and_nothing_else(seen, kernel, requests):
    """A VMM that shows its guest the hardware's registers is told of each field that was not to be forwarded."""
    offer = negotiate(seen, kernel, requests)
    found = {(f.register, f.field) for f in lint(offer.decoded.words, seen, kernel, requests)}
    wrong = {
        (a.register, a.field)
        for a in offer.answers
        if a.verdict in (Verdict.MASK, Verdict.NEEDS) and a.hardware != a.offered
    }
    assert found == wrong


@given(st.data(), INFOS, KERNELS)
def test_any_words_of_a_vmm_can_be_looked_at(data, seen, kernel):
    family = decode(seen).family
    offered = {r.name: data.draw(st.integers(0, (1 << r.word.WIDTH) - 1)) for r in family.registers}
    offer = negotiate(seen, kernel)
    for finding in lint(offered, seen, kernel):
        assert finding.offered != finding.allowed
        if finding.field != "reserved":
            assert not family.register(finding.register).rules[finding.field].allows(finding.offered, finding.allowed)
            assert finding.allowed == offer.answer(finding.register, finding.field).offered
        assert str(finding).startswith(f"{finding.register}.{finding.field}: offered ")


@given(st.integers(0, 1 << 33), st.binary(max_size=64), KERNELS)
def test_no_answer_of_a_kernel_is_too_strange(type_, data, kernel):
    family = FAMILIES.get(type_)
    strange = HwInfo(type_, data, 0, 0)
    if family is not None and len(data) < family.struct.MIN_SIZE:
        with pytest.raises(ValueError, match="bytes of hardware information"):
            negotiate(strange, kernel)
        return
    offer = negotiate(strange, kernel)
    assert bool(offer.words) == (family is not None)


# Values with an order of their own


def field(offer, register, name):
    answer = offer.answer(register, name)
    return answer.verdict, answer.offered


def test_what_a_guest_may_be_offered_less_of():
    seen = smmuv3_info()
    offered = dict(negotiate(seen, EVERYTHING).words)
    offered["IDR1"] = offered["IDR1"].replace(SIDSIZE=8, SSIDSIZE=0)
    offered["IDR3"] = offered["IDR3"].replace(BBML=1, RIL=0)
    assert lint(offered, seen, EVERYTHING) == []
    offered["IDR1"] = offered["IDR1"].replace(SIDSIZE=20)
    (finding,) = lint(offered, seen, EVERYTHING)
    assert (finding.register, finding.field, finding.allowed) == ("IDR1", "SIDSIZE", 16)
    assert finding.reason.startswith("beyond what the hardware has")


def test_a_demand_on_software_is_not_hidden():
    raw = smmuv3.FULL.idr0.replace(TERM_MODEL=1, TTENDIAN=0)
    seen = smmuv3_info(idr0=int(raw))
    offered = negotiate(seen, EVERYTHING).words["IDR0"]
    assert offered.TERM_MODEL == 1
    assert lint({"IDR0": offered.replace(TTENDIAN=2)}, seen, EVERYTHING) == []
    (finding,) = lint({"IDR0": offered.replace(TERM_MODEL=0)}, seen, EVERYTHING)
    assert finding.field == "TERM_MODEL"
    (finding,) = lint({"IDR0": offered.replace(TTENDIAN=1)}, seen, EVERYTHING)
    assert finding.field == "TTENDIAN"


def test_what_is_the_vmms_own_is_filled_in_as_it_likes():
    seen = smmuv3_info()
    offered = negotiate(seen, EVERYTHING).words["IDR1"]
    assert (offered.CMDQS, offered.EVENTQS) == (0, 0)
    assert lint({"IDR1": offered.replace(CMDQS=31, EVENTQS=19, PRIQS=1)}, seen, EVERYTHING) == []


def test_reserved_bits_are_masked_and_found():
    seen = smmuv3_info(idr3=1 << 31)
    offer = negotiate(seen)
    assert offer.words["IDR3"] == 0
    assert offer.answer("IDR3", "reserved").hardware == 1 << 31
    (finding,) = lint({"IDR3": 1 << 31}, seen)
    assert (finding.field, finding.offered, finding.allowed) == ("reserved", 1 << 31, 0)


def test_a_name_that_is_no_register_is_told():
    with pytest.raises(ValueError, match="ARM_SMMUV3 has no register EFR: there are IDR0, IDR1"):
        lint({"EFR": 0}, smmuv3_info())
    with pytest.raises(ValueError, match="is no 32-bit Idr0"):
        lint({"IDR0": 1 << 32}, smmuv3_info())
    with pytest.raises(ValueError, match="type 0x0 has no registers"):
        lint({"IDR0": 0}, HwInfo(0, b"", 0, 0))
    assert lint({}, HwInfo(0, b"", 0, 0)) == []


# What is known of the kernel


def test_what_hardware_information_tells_of_the_kernel():
    def of(capabilities, bits=0):
        return told(HwInfo(0, b"", capabilities, bits))

    ats = Capability.ATS
    assert of(8) == Capability(0)
    assert of(0) == ats
    assert of(8 | 1) == Capability.DIRTY_TRACKING
    assert of(8 | 6, 16) == Capability.PASID_EXEC | Capability.PASID_PRIV | Capability.PASID
    assert of(8 | 1 << 62) == Capability.BTM
    assert of(8 | 1 << 63) == Capability.HTTU


def test_every_erratum_that_flags_tell_of_has_its_meaning():
    assert set(ERRATA) == {flag.name for family in FAMILIES.values() for flag in family.flags or ()}
    assert len(ERRATA) == 2, "flags of two makes have equal values"
    assert "read-only" in ERRATA["ERRATA_772415_SPR17"]
    seen = info(HwInfoArmSmmuv3(flags=1), HwInfoType.ARM_SMMUV3)
    assert decode(seen).flags == HwInfoArmSmmuv3Flags.ERRATA_REPEAT_TLBI_CFGI


def test_nothing_of_hardware_without_registers_is_forwarded():
    offer = negotiate(HwInfo(0, b"", 0, 20), EVERYTHING)
    assert (offer.words, offer.answers, offer.decoded.family) == ({}, (), None)


# Vendors


def test_a_vtd_guest_gets_first_stage_features_with_nesting_only():
    seen = vtd_info(vtd.FULL)
    without = negotiate(seen, Capability(0))
    assert field(without, "ECAP", "FSTS") == (Verdict.NEEDS, 0)
    assert "needs kernel software: nested translation" in without.answer("ECAP", "FSTS").reason
    nested = negotiate(seen, Capability.NESTING)
    given_ = {name for name in vtd.Ecap.FIELDS if getattr(nested.words["ECAP"], name)}
    assert given_ == {"SC", "SMTS", "FSTS", "SMPWCS"}
    flags = negotiate(seen, Capability.NESTING | Capability.SUPERVISOR | Capability.EXTENDED_ACCESSED)
    assert (flags.words["ECAP"].SRS, flags.words["ECAP"].EAFS) == (1, 1)
    assert nested.words["CAP"].FS1GP
    assert field(nested, "ECAP", "PSS") == (Verdict.NEEDS, 0)
    pasids = negotiate(seen, Capability.NESTING | Capability.PASID)
    assert (pasids.words["ECAP"].PASID, pasids.words["ECAP"].PSS) == (1, 19)
    assert field(negotiate(seen, EVERYTHING), "ECAP", "NEST") == (Verdict.MASK, 0)


@pytest.mark.parametrize("preset", vtd.QEMU.values(), ids=vtd.QEMU)
def test_an_offer_of_vtd_with_the_vmms_own_parts_is_hardware_that_can_be(preset):
    words_ = negotiate(vtd_info(preset), EVERYTHING).words
    cap = words_["CAP"].replace(ND=6, FRO=0x22, PSI=1, MAMV=18, SSLPS=preset.cap.SSLPS)
    ecap = words_["ECAP"].replace(QI=1, IRO=0xF, PT=1, SSTS=preset.ecap.SSTS)
    vtd.check(cap, ecap)
    assert lint({"CAP": cap, "ECAP": ecap}, vtd_info(preset), EVERYTHING) == []


def test_an_amd_guest_gets_what_the_kernel_lists():
    seen = amd_info(amd.FULL)
    assert negotiate(seen, Capability(0)).words["EFR"] == amd.Efr.of(GASup=1)
    efr = negotiate(seen, EVERYTHING).words["EFR"]
    assert efr == amd.Efr.of(PPRSup=1, GTSup=1, GASup=1, GATS=1, GLXSup=2, PASmax=19, GIoSup=1)
    amd.check(amd.Preset(efr))


def test_a_riscv_guest_gets_what_the_extension_takes():
    seen = HwInfo(
        riscv_extension.HW_INFO,
        riscv_extension.HwInfoRiscv(int(riscv.FULL)).to_bytes(),
        HwCapabilities(0),
        0,
    )
    without = negotiate(seen, Capability(0)).words["CAPABILITIES"]
    assert without == Capabilities.of(VERSION=0x10, PAS=riscv.FULL.PAS)
    nested = negotiate(seen, Capability.NESTING)
    given_ = {name for name in Capabilities.FIELDS if getattr(nested.words["CAPABILITIES"], name)}
    first = {"SV39", "SV48", "SV57", "SVRSW60T59B", "SVPBMT", "AMO_HWAD", "NL", "S"}
    assert given_ == first | {"VERSION", "PAS"}
    assert field(nested, "CAPABILITIES", "PD20") == (Verdict.NEEDS, 0)
    assert field(negotiate(seen, EVERYTHING), "CAPABILITIES", "PD20") == (Verdict.FORWARD, 1)
    assert field(negotiate(seen, EVERYTHING), "CAPABILITIES", "T2GPA") == (Verdict.MASK, 0)
    (finding,) = lint({"CAPABILITIES": nested.words["CAPABILITIES"].replace(END=1)}, seen, EVERYTHING)
    assert (finding.field, finding.allowed) == ("END", 0)


def test_an_smmuv3_guest_gets_hardware_that_can_be():
    words_ = negotiate(smmuv3_info(), EVERYTHING).words
    idr0, idr1, idr5 = words_["IDR0"], words_["IDR1"], words_["IDR5"].replace(STALL_MAX=8)
    assert (idr0.S1P, idr0.S2P, idr0.HTTU, idr0.ATS, idr0.PRI) == (1, 0, 2, 1, 0)
    smmuv3.Identity(idr0, idr1, words_["IDR3"], idr5).check()


def test_a_virtual_command_queue_is_turned_on_by_the_type_of_the_viommu():
    seen = info(HwInfoTegra241Cmdqv(0, 1, 1, 4), HwInfoType.TEGRA241_CMDQV)
    verdicts = {
        (kernel, request): negotiate(seen, kernel, request).answer("CMDQV", "LOG2VSIDS").verdict
        for kernel in (Capability(0), Capability.VCMDQ)
        for request in (NOTHING, Request.VCMDQ)
    }
    assert [v for k, v in verdicts.items() if k != (Capability.VCMDQ, Request.VCMDQ)] == [Verdict.NEEDS] * 3
    offer = negotiate(seen, Capability.VCMDQ, Request.VCMDQ)
    assert offer.words["CMDQV"] == 0x040101
    (finding,) = lint({"CMDQV": 0x040102}, seen, Capability.VCMDQ, Request.VCMDQ)
    assert finding.field == "VERSION"
