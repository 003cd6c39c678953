"""The generic typed invalidation on an SMMUv3: everything that is asked for is forgotten, of what the guest has."""

import errno

import pytest

from drivers.smmuv3_guest import RAM, context
from drivers.smmuv3_nest_rig import EDU, HOST_RAM, OTHER, RW, SID, STE, VSID, Bytes, Endpoint, Rig
from softiommu.abi.generic_invalidation import GENERIC, Hint, InvalidateV1, InvalidateV2, Outcome, Scope, Target, Valid
from softiommu.drivers.function import Function
from softiommu.drivers.user_data import Handled, UserArray
from softiommu.errors import UapiError
from softiommu.hardware.smmuv3.commands import Op
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.hardware.smmuv3.queue import CommandQueue
from softiommu.hardware.smmuv3.registers import Registers

OLD, NEW = RAM + 0x100000, RAM + 0x180000
ALL_TLBS = Target.LEAF | Target.TABLES
PAGE = {"addr": 0x1000, "count": 1, "granule_lg2": 12}


class Memory(Bytes):
    """A program's memory that can be written, too."""

    def write(self, va, data):
        self.raw = self.raw[: va - 4096] + data + self.raw[va - 4096 + len(data) :]


def ask(target, *entries):
    """The errno, how many were done, and the entries after it."""
    memory = Memory(b"".join(entry.to_bytes() for entry in entries))
    handled, number, size = Handled(), 0, entries[0].SIZE
    try:
        target.invalidate(UserArray(memory, 4096, GENERIC, size, len(entries)), handled)
    except UapiError as error:
        number = error.errno
    after = [type(entries[0]).from_bytes(memory.raw, at) for at in range(0, len(memory.raw), size)]
    return number, handled.count, after


class Stale(Rig):
    """A guest whose device has used a page of PASID 3 and one without; both have since been moved."""

    def __init__(self, **keys):
        super().__init__(function=Function("edu", (SID,), ats=True, pasid_bits=8), **keys)
        self.endpoint = Endpoint()
        self.unit.connect(SID, self.endpoint)
        self.domain = self.nested()
        self.tables = {None: self.mapped(0, 5), 3: self.mapped(3, 6)}
        self.device.attach(self.domain, None)
        self.unit.ats_translate(SID, 0x1000, 1, 3)
        for pasid, pages in self.tables.items():
            assert self.reach(0x1000, pasid=pasid) == HOST_RAM + 0x100000
            pages.unmap(0x1000, 0x1000)
            pages.map(0x1000, NEW, 0x1000, RW.value)
        self.endpoint.invalidated.clear()

    def forgotten(self):
        """The PASIDs whose translation is not stale any more."""
        return {pasid for pasid in self.tables if self.reach(0x1000, pasid=pasid) == HOST_RAM + 0x180000}


@pytest.mark.parametrize("through", ["vIOMMU", "HWPT"])
@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"scope": Scope.DOMAIN}, {None, 3}),
        ({"scope": Scope.PASID, "pasid": 3}, {3}),
        ({"scope": Scope.NO_PASID}, {None}),
        ({"scope": Scope.RANGE, "pasid": 3, **PAGE}, {3}),
        ({"scope": Scope.RANGE_NO_PASID, **PAGE}, {None}),
        ({"scope": Scope.RANGE_ALL_PASIDS, **PAGE}, {None, 3}),
        ({"scope": Scope.RANGE, "pasid": 3, "addr": 0, "count": 1, "granule_lg2": 30}, {3}),
    ],
)
def test_at_least_what_is_asked_for_is_forgotten(through, fields, least):
    rig = Stale()
    target = rig.viommu if through == "vIOMMU" else rig.domain
    assert ask(target, InvalidateV1(targets=ALL_TLBS, **fields))[:2] == (0, 1)
    assert rig.forgotten() >= least


def test_an_asid_spares_the_others():
    for fields in ({"scope": Scope.DOMAIN}, {"scope": Scope.RANGE_ALL_PASIDS, **PAGE}):
        rig = Stale()
        entry = InvalidateV2(targets=ALL_TLBS, valid=Valid.ARCH_ID, arch_id=6, **fields)
        assert ask(rig.viommu, entry)[:2] == (0, 1)
        assert rig.forgotten() == {3}
        assert ask(rig.viommu, InvalidateV2(targets=ALL_TLBS, valid=Valid.ARCH_ID, arch_id=1 << 16, **fields))[0] == 0
        assert rig.forgotten() == {3}
        everything = InvalidateV2(
            scope=Scope.DOMAIN, targets=ALL_TLBS, hints=Hint.GLOBAL, valid=Valid.ARCH_ID, arch_id=6
        )
        assert ask(rig.viommu, everything)[0] == 0
        assert rig.forgotten() == {None, 3}


def test_a_range_that_is_elsewhere_changes_nothing():
    rig = Stale()
    assert ask(rig.viommu, InvalidateV1(scope=Scope.RANGE_ALL_PASIDS, targets=ALL_TLBS, **PAGE | {"addr": 0}))[0] == 0
    assert ask(rig.viommu, InvalidateV1(scope=Scope.DOMAIN, targets=Target.CONFIG))[0] == 0
    assert rig.forgotten() == set()


@pytest.mark.parametrize(("scope", "pasid"), [(Scope.DOMAIN, 0), (Scope.PASID, 3), (Scope.NO_PASID, 0)])
def test_configuration_is_forgotten_by_name(scope, pasid):
    rig = Stale()
    moved = rig.guest.pages()
    moved.map(0x1000, RAM + 0x1C0000, 0x1000, RW.value)
    for ssid, asid in ((0, 15), (3, 16)):
        rig.guest.set_context(ssid, context(moved, asid))
    assert ask(rig.viommu, InvalidateV1(scope=scope, targets=Target.CONFIG, pasid=pasid))[0] == 0
    seen = {key for key in (None, 3) if rig.reach(0x1000, pasid=key) == HOST_RAM + 0x1C0000}
    assert seen == {Scope.DOMAIN: {None, 3}, Scope.PASID: {3}, Scope.NO_PASID: {None}}[scope]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scope": Scope.DOMAIN}, {None, 0, 3}),
        ({"scope": Scope.PASID, "pasid": 3}, {3}),
        ({"scope": Scope.RANGE_NO_PASID, **PAGE}, {None}),
        ({"scope": Scope.RANGE_ALL_PASIDS, **PAGE}, {None, 0, 3}),
    ],
)
def test_device_tlbs_are_told_which_pasids_and_where(fields, told):
    rig = Stale()
    assert ask(rig.domain, InvalidateV1(targets=Target.DEVICE_TLB, **fields))[0] == 0
    where = (0x1000, 0x1FFF) if "addr" in fields else (0, 2**64 - 1)
    assert {entry[0] for entry in rig.endpoint.invalidated} == told
    assert {entry[1:] for entry in rig.endpoint.invalidated} == {where}
    assert rig.forgotten() == set()


def test_a_device_that_does_not_answer_is_told():
    rig = Stale()
    rig.endpoint.answers = False
    entries = [InvalidateV2(scope=Scope.DOMAIN, targets=targets) for targets in (Target.LEAF, Target.DEVICE_TLB)]
    number, count, after = ask(rig.viommu, *entries)
    assert (number, count) == (0, 2)
    assert [entry.out_fault for entry in after] == [Outcome.NONE, Outcome.DEVICE_TIMEOUT]


class Fussy(Endpoint):
    """It does not answer for one page."""

    def invalidate(self, pasid, first, last):
        super().invalidate(pasid, first, last)
        return not first <= 0x3000 <= last


def test_of_many_entries_those_are_told_whose_device_does_not_answer():
    rig = Stale()
    rig.unit.connect(SID, Fussy())
    pages = [PAGE | {"addr": number << 12} for number in (1, 3, 2, 3)]
    entries = [InvalidateV2(scope=Scope.RANGE_ALL_PASIDS, targets=Target.DEVICE_TLB, **page) for page in pages]
    assert ask(rig.viommu, *entries)[:2] == (0, 4)
    after = ask(rig.viommu, *entries)[2]
    assert [entry.out_fault for entry in after] == [0, Outcome.DEVICE_TIMEOUT, 0, Outcome.DEVICE_TIMEOUT]


class Doorbells:
    """The hardware's registers, and how often a driver rings."""

    def __init__(self, bus):
        self.bus, self.rings = bus, 0

    def read(self, offset, width):
        return self.bus.read(offset, width)

    def write(self, offset, width, value):
        self.rings += offset == Registers.CMDQ_PROD.offset
        self.bus.write(offset, width, value)


@pytest.mark.parametrize(("count", "rings"), [(1, 1), (250, 1), (1000, 1), (5000, 3)])
def test_the_entries_of_a_call_go_together(monkeypatch, count, rings):
    """One SYNC for all; the queue has room for 4,096 commands at a time."""
    rig = Stale()
    synced = []
    execute = CommandQueue.execute

    def seen(queue, low, high):
        synced.append(low & 0xFF)
        return execute(queue, low, high)

    monkeypatch.setattr(CommandQueue, "execute", seen)
    monkeypatch.setattr(CommandQueue, "at_once", lambda *arguments: 0)
    rig.driver.queue._bus = bells = Doorbells(rig.unit)
    entry = InvalidateV1(scope=Scope.RANGE_ALL_PASIDS, targets=ALL_TLBS, **PAGE)
    assert ask(rig.viommu, *[entry] * count)[:2] == (0, count)
    assert (synced.count(Op.SYNC), len(synced)) == (1, count + 1)
    assert bells.rings <= rings
    assert rig.forgotten() == {None, 3}


@pytest.mark.parametrize("wrong", [{"scope": 9}, {"targets": 0}, {"valid": Valid.DEVICE, "device": OTHER}])
def test_entries_before_a_wrong_one_are_done_and_counted_and_none_behind_it(wrong):
    rig = Stale()
    good = InvalidateV2(scope=Scope.NO_PASID, targets=Target.LEAF, valid=Valid.ARCH_ID, arch_id=5)
    behind = InvalidateV2(scope=Scope.DOMAIN, targets=ALL_TLBS)
    bad = InvalidateV2(**{"scope": Scope.DOMAIN, "targets": ALL_TLBS} | wrong)
    behind.out_errno = 77
    number, count, after = ask(rig.viommu, good, bad, behind)
    assert (number, count) == (errno.EOPNOTSUPP if "scope" in wrong else errno.EINVAL, 1)
    assert [entry.out_errno for entry in after] == [0, number, 77]
    assert rig.forgotten() == {None}


def test_entries_before_memory_that_is_not_there_are_done():
    rig = Stale()
    entry = InvalidateV1(scope=Scope.DOMAIN, targets=ALL_TLBS).to_bytes()

    class Short(Memory):
        def read(self, va, length):
            if va - 4096 + length > len(self.raw):
                raise UapiError(errno.EFAULT, "no memory")
            return super().read(va, length)

    handled = Handled()
    with pytest.raises(UapiError) as error:
        rig.viommu.invalidate(UserArray(Short(entry), 4096, GENERIC, len(entry), 2), handled)
    assert (error.value.errno, handled.count) == (errno.EFAULT, 1)
    assert rig.forgotten() == {None, 3}


def test_only_a_viommu_knows_devices_and_only_its_own():
    rig = Stale()
    here = InvalidateV2(scope=Scope.DOMAIN, targets=Target.DEVICE_TLB, valid=Valid.DEVICE, device=VSID)
    unknown = InvalidateV2(scope=Scope.DOMAIN, targets=Target.DEVICE_TLB, valid=Valid.DEVICE, device=OTHER)
    assert ask(rig.domain, here)[:2] == (errno.EINVAL, 0)
    assert ask(rig.viommu, here, unknown, here)[:2] == (errno.EINVAL, 1)
    assert {entry[0] for entry in rig.endpoint.invalidated} == {None, 0, 3}


def test_hardware_with_short_asids_has_none_that_are_long():
    rig = Rig(FULL._replace(idr0=FULL.idr0.replace(ASID16=0)), EDU)
    rig.mapped()
    rig.device.attach(rig.viommu.alloc_nested(rig.device, 0, Bytes.struct(rig.guest.ste(), STE)), None)
    assert rig.reach(0x1000) == HOST_RAM + 0x100000
    rig.guest.set_context(0)
    entry = InvalidateV2(scope=Scope.DOMAIN, targets=Target.LEAF | Target.CONFIG, valid=Valid.ARCH_ID, arch_id=0x105)
    assert ask(rig.viommu, entry)[:2] == (0, 1)
    assert rig.reach(0x1000) is Event.C_BAD_CD
