"""A guest's STE on the SMMUv3 driver: what the hardware reads and translates, and what becomes of ATS."""

import errno

import pytest
from hypothesis import given, settings, strategies as st

from drivers.smmuv3_guest import (
    RAM,
    RAM_SIZE,
    Guest,
    atc_inv,
    context,
)
from drivers.smmuv3_nest_rig import (
    HOST_RAM,
    OTHER,
    SID,
    STE,
    VSID,
    Bytes,
    Endpoint,
    Rig,
    errno_of,
)
from softiommu.abi.iommufd import HwptArmSmmuv3, HwptDataType
from softiommu.drivers.driver import DomainFlags
from softiommu.drivers.function import Function
from softiommu.drivers.smmuv3 import entries as smmuv3_entries, routes as smmuv3_routes
from softiommu.drivers.smmuv3.driver import LINUX_6_12, SmmuDriver
from softiommu.drivers.smmuv3.nested import GuestSte0, GuestSte1
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL, QEMU
from softiommu.hardware.smmuv3.tables import Config, Eats, Ste0, Ste1, Ste2, Ste3
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import WRITE

# Entries


def test_the_hardware_reads_the_guests_stage_1_over_the_parents_stage_2():
    rig = Rig()
    rig.device.attach(rig.nested(S1CIR=1, S1COR=2, S1CSH=3), None)
    words = rig.entry()
    tags, root = rig.parent.entry(ats=True)[2:4]
    assert (Ste2(words[2]), Ste3(words[3]), words[4:]) == (tags, root, [0] * 4)
    assert tags.S2VMID == rig.parent.id
    how = Ste0(words[0])
    assert (how.V, how.CONFIG, how.S1CONTEXTPTR << 6, how.S1CDMAX) == (1, Config.NEST, rig.guest.contexts, 2)
    attributes = Ste1(words[1])
    assert (attributes.S1DSS, attributes.S1CIR, attributes.S1COR, attributes.S1CSH) == (2, 1, 2, 3)
    assert (attributes.EATS, attributes.MEV, attributes.SHCFG, attributes.S1STALLD) == (Eats.FULL, 1, 1, 0)


def test_bypass_is_stage_2_alone_and_the_rest_is_blocked():
    rig = Rig(named=False)
    rig.device.attach(rig.nested(CONFIG=Config.BYPASS), None)
    assert rig.entry() == [int(word) for word in rig.parent.entry(ats=True)]
    assert rig.reach(RAM + 0x123) == HOST_RAM + 0x123
    for fields in ({"CONFIG": Config.ABORT}, {"V": 0}):
        rig.device.attach(rig.nested(**fields), None)
        assert rig.entry() == [Ste0.of(V=1), *[0] * 7]
        assert rig.reach(RAM) is Event.SILENT


def test_an_invalid_ste_is_taken_whatever_it_has():
    rig = Rig()
    rig.device.attach(rig.nested(HwptArmSmmuv3(2**64 - 2, 2**64 - 1)), None)
    assert rig.entry() == [Ste0.of(V=1), *[0] * 7]


@pytest.mark.parametrize("bit", range(64))
def test_a_bit_of_word_0_that_is_no_guests_is_refused(bit):
    given = HwptArmSmmuv3(Ste0.of(V=1, CONFIG=Config.BYPASS) | 1 << bit, 0)
    allowed = bit < 2 or 3 <= bit <= 51 or bit >= 59
    rig = Rig()
    if allowed:
        rig.nested(given)
    else:
        assert errno_of(rig.nested, given) == errno.EIO


@pytest.mark.parametrize("bit", range(64))
def test_a_bit_of_word_1_that_is_no_guests_is_refused(bit):
    given = HwptArmSmmuv3(Ste0.of(V=1, CONFIG=Config.BYPASS), 1 << bit)
    rig = Rig()
    if bit < 8 or bit in (27, 28):
        rig.nested(given)
    else:
        assert errno_of(rig.nested, given) == errno.EIO


@pytest.mark.parametrize("config", range(8))
def test_a_guest_can_abort_bypass_or_have_a_stage_1(config):
    rig = Rig()
    if config in (0, 4, 5):
        assert rig.nested(HwptArmSmmuv3(1 | config << 1, 0)).config == config
    else:
        assert errno_of(rig.nested, HwptArmSmmuv3(1 | config << 1, 0)) == errno.EIO


def test_flags_types_and_lengths_are_checked():
    rig = Rig()
    good = rig.guest.ste()
    alloc = rig.viommu.alloc_nested
    assert errno_of(alloc, rig.device, 8, Bytes.struct(good, STE)) == errno.EOPNOTSUPP
    assert errno_of(alloc, rig.device, 0, Bytes.struct(good, HwptDataType.VTD_S1)) == errno.EINVAL
    for length in (15, 17, 24):
        assert errno_of(alloc, rig.device, 0, Bytes.struct(good, STE, length)) == errno.EINVAL
    assert errno_of(rig.device.alloc_nested, rig.parent, 0, Bytes.struct(good, STE)) == errno.EOPNOTSUPP


def test_a_stage_1_needs_a_name_a_device_of_the_same_smmu_and_no_pasids():
    rig, stranger = Rig(named=False, function=Function("edu", (SID,), pasid_bits=8)), Rig()
    nested = rig.nested()
    assert errno_of(rig.device.attach, nested, None) == errno.ENOENT
    rig.viommu.add_vdevice(rig.device, VSID)
    assert errno_of(stranger.device.attach, nested, None) == errno.EINVAL
    assert errno_of(stranger.device.alloc_viommu, 1, rig.parent, rig.host, None) == errno.EINVAL
    own = rig.device.alloc_paging(DomainFlags.PASID, None)
    rig.device.attach(own, 3)
    assert errno_of(rig.device.attach, nested, None) == errno.EBUSY
    rig.device.detach(3)
    rig.device.attach(nested, None)
    assert errno_of(rig.device.attach, own, 3) == errno.EINVAL
    assert errno_of(rig.device.attach, nested, 3) == errno.EINVAL


def test_there_is_a_viommu_where_stages_nest():
    assert list(Rig().device.viommu_types()) == [1]
    assert list(Rig().viommu.hw_queue_types()) == []
    for idr0 in (FULL.idr0.replace(S2P=0, VMID16=0), FULL.idr0.replace(COHACC=0)):
        memory = PhysicalMemory(32 << 20)
        device = SmmuDriver(memory, Smmu(memory, FULL._replace(idr0=idr0))).device(Function("edu", (SID,)))
        assert (list(device.viommu_types()), device.features.nesting) == ([], False)
    memory = PhysicalMemory(32 << 20)
    assert SmmuDriver(memory, Smmu(memory), LINUX_6_12).device(Function("edu", (SID,))).viommu_types() == ()


def test_a_device_with_aliases_has_no_name_but_can_be_bypassed():
    rig = Rig(function=Function("edu", (SID, OTHER)), named=False)
    assert errno_of(rig.viommu.add_vdevice, rig.device, VSID) == errno.EOPNOTSUPP
    rig.device.attach(rig.nested(CONFIG=Config.BYPASS), None)
    assert rig.reach(RAM, sid=OTHER) == rig.reach(RAM) == HOST_RAM


def test_no_change_of_a_guests_entry_tears_it(monkeypatch):
    """Between any two stores the hardware reads the old entry, the new one, or one that is not valid."""
    rig = Rig()
    other = Guest()
    kinds = [
        rig.nested(),
        rig.nested(S1CONTEXTPTR=other.contexts >> 6, S1CDMAX=0, S1DSS=0),
        rig.nested(CONFIG=Config.BYPASS),
        rig.nested(CONFIG=Config.ABORT),
        rig.parent,
        rig.device.alloc_paging(DomainFlags.NONE, None),
    ]
    seen = []

    def seeing(memory, at, target, used, sync):
        def looked():
            seen.append(visible(rig.entry()) if at == rig.driver.routes._streams[SID].at else None)
            sync()

        smmuv3_entries.write_entry(memory, at, target, used, looked)

    monkeypatch.setattr(smmuv3_routes, "write_entry", seeing)
    for first in kinds:
        for second in kinds:
            rig.device.attach(first, None)
            before, seen[:] = visible(rig.entry()), []
            rig.device.attach(second, None)
            after = visible(rig.entry())
            assert all(entry in (None, before, after) or not entry[0] & 1 for entry in seen)


def visible(words):
    """What the hardware makes of an entry."""
    return [word & mask for word, mask in zip(words, smmuv3_entries.used_of_ste(words), strict=True)]


# Translation


def test_a_guests_stage_1_is_walked_in_its_ram_and_leads_there():
    rig = Rig()
    rig.mapped()
    rig.device.attach(rig.nested(), None)
    assert rig.reach(0x1234) == HOST_RAM + 0x100234
    assert rig.reach(0x2000) is Event.F_TRANSLATION
    rig.device.detach(None)
    assert rig.reach(0x1234) is Event.SILENT


def test_each_substream_has_its_context():
    rig = Rig(function=Function("edu", (SID,), pasid_bits=16))
    rig.mapped(0, 1, target=RAM + 0x100000)
    rig.mapped(3, 2, target=RAM + 0x180000)
    rig.device.attach(rig.nested(), None)
    assert rig.reach(0x1000) == HOST_RAM + 0x100000
    assert rig.reach(0x1000, pasid=3) == HOST_RAM + 0x180000
    assert rig.reach(0x1000, pasid=2) is Event.C_BAD_CD
    assert rig.reach(0x1000, pasid=9) is Event.C_BAD_SUBSTREAMID
    assert rig.reach(0x1000, pasid=0) is Event.F_STREAM_DISABLED


def test_what_the_parent_does_not_show_is_out_of_reach():
    rig = Rig()
    rig.mapped(target=RAM + RAM_SIZE)
    rig.device.attach(rig.nested(), None)
    assert rig.reach(0x1000) is Event.F_TRANSLATION
    rig.device.attach(rig.nested(S1CONTEXTPTR=(RAM + RAM_SIZE) >> 6), None)
    assert rig.reach(0x1000) is Event.F_TRANSLATION
    assert rig.host.events == []
    assert [blocked.sid for blocked in rig.log] == [SID, SID]


def test_a_change_of_the_parent_reaches_what_guests_have_cached():
    rig = Rig()
    endpoint = Endpoint()
    rig.unit.connect(SID, endpoint)
    rig.mapped()
    rig.device.attach(rig.nested(), None)
    assert rig.reach(0x1000) == HOST_RAM + 0x100000
    endpoint.invalidated.clear()
    rig.parent.unmap(RAM, RAM_SIZE)
    rig.parent.flush()
    assert rig.reach(0x1000) is Event.F_TRANSLATION
    assert {pasid for pasid, first, last in endpoint.invalidated if (first, last) == (0, 2**64 - 1)} == {None, 0}


# Device TLBs


def test_ats_follows_what_the_guests_entry_says():
    turned = []
    rig = Rig(function=Function("edu", (SID,), ats=True, set_ats=turned.append))
    endpoint = Endpoint()
    rig.unit.connect(SID, endpoint)
    rig.device.attach(rig.nested(EATS=Eats.OFF), None)
    assert (turned, Ste1(rig.entry()[1]).EATS) == ([False], Eats.OFF)
    rig.device.attach(rig.nested(EATS=Eats.FULL), None)
    assert (turned, Ste1(rig.entry()[1]).EATS) == ([False, True], Eats.FULL)
    rig.device.attach(rig.nested(EATS=Eats.OFF), None)
    rig.device.detach(None)
    assert turned == [False, True, False, True]


def test_a_device_that_leaves_a_guest_forgets_the_guests_addresses():
    rig = Rig()
    endpoint = Endpoint()
    rig.unit.connect(SID, endpoint)
    rig.device.attach(rig.nested(), None)
    endpoint.invalidated.clear()
    rig.device.detach(None)
    assert sorted(pasid is None for pasid, *_ in endpoint.invalidated) == [False, True]
    assert rig.parent.nested == []


def test_without_ats_nothing_is_said_of_it():
    rig = Rig(QEMU)
    rig.device.attach(rig.nested(EATS=Eats.OFF), None)
    assert Ste1(rig.entry()[1]).EATS == Eats.OFF
    assert rig.invalidate(atc_inv(VSID, 0)) == (errno.EIO, 0)
    rig.parent.unmap(RAM, RAM_SIZE)
    rig.parent.flush()


@settings(max_examples=60)
@given(
    ste=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    words=st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8),
    valid=st.booleans(),
    requests=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.sampled_from([None, 0, 1, 3])), max_size=8),
)
def test_whatever_a_guest_writes_its_device_is_translated_or_blocked(ste, words, valid, requests):
    rig = Rig(function=Function("edu", (SID,), pasid_bits=8))
    memory = rig.guest.memory
    for ssid in range(4):
        pages = rig.mapped(ssid, ssid)
        good = [int(word) for word in context(pages, ssid)]
        rig.guest.set_context(ssid, [good[n] ^ words[n] & (0xFF << 8 * n) if valid else words[n] for n in range(8)])
        memory.write(pages.root, b"".join(word.to_bytes(8, "little") for word in words) * 64)
    ours = rig.guest.ste()
    low = ste[0] & ~GuestSte0.RESERVED if not valid else ours.ste0
    high = ste[1] & ~GuestSte1.RESERVED & ~GuestSte1.EATS.mask if not valid else ours.ste1
    low = low & ~GuestSte0.CONFIG.mask | Config.S1 << GuestSte0.CONFIG.low
    rig.device.attach(rig.nested(HwptArmSmmuv3(low, high)), None)
    for iova, pasid in requests:
        found = rig.reach(iova, WRITE, pasid)
        assert isinstance(found, Event) or found >> FULL.oas == 0
    rig.device.detach(None)
