"""Maps, copies, unmaps, ranges, devices, page tables and options in any order, against a brute-force model."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL
from struct import pack
from typing import NamedTuple

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iommufd.fakes import BASE, NO_LIMIT, FakeMm, memory_file
from iommufd.model import PAGE, TOP, UNIT, Area, Domain, Ledger, Model, RefusedError, Source
from iommufd.soft import APERTURE, FIXED, Soft
from softiommu.abi import iommufd as abi, iommufd_test as test, vfio
from softiommu.abi.struct import UserStruct
from softiommu.errors import UapiError
from softiommu.memory.files import HostFile
from strategies import PROTS, calm, lengths, multiples

MEMORY, FILE_PAGES = 16, 12
WINDOW = 32
WHICH = st.integers(0, 1)
#: Places worth trying: around the start of the mock's aperture, and below it.
PLACES = st.one_of(
    multiples(UNIT, (APERTURE - 2 * PAGE) // UNIT, (APERTURE + WINDOW * PAGE) // UNIT),
    multiples(PAGE, APERTURE // PAGE, APERTURE // PAGE + WINDOW),
    multiples(PAGE, 0, 8),
)
FIXED_PLACES = st.one_of(st.none(), st.none(), PLACES)
LENGTHS = lengths(UNIT, 5)
SKEWS = st.one_of(st.just(0), st.just(0), multiples(UNIT, 0, 7))


class Refusal(NamedTuple):
    """A call was refused."""

    errno: int


def outcome(side: Callable[[], object]) -> object:
    """What one side answers."""
    try:
        return side()
    except RefusedError as error:
        return Refusal(error.errno)
    except UapiError as error:
        return Refusal(error.errno)


def done(struct: UserStruct) -> None:
    """The command has no answer to compare."""


class MapMachine(RuleBasedStateMachine):
    """Two IOASes of one iommufd, and a model of each."""

    def __init__(self) -> None:
        super().__init__()
        self.soft = Soft(pages=MEMORY + 4)
        self.ledger = Ledger()
        self.ids = [self.soft.ioas(), self.soft.ioas()]
        self.models = [Model(self.ledger), Model(self.ledger)]
        #: Selftest objects: the device's id, and the HWPT it is on.
        self.devices: dict[int, tuple[int, int]] = {}
        self.hwpts: dict[int, int] = {}
        self.auto: dict[int, int] = {}
        self.memfd = memory_file(FILE_PAGES)
        self.fd = 50
        self.soft.caller.files[self.fd] = self.memfd

    # The two sides, compared

    def agree(self, expected: Callable[[], object], call: Callable[[], object]) -> bool:
        """Both refuse with the same errno, or both succeed with the same result."""
        want, got = outcome(expected), outcome(call)
        assert got == want
        return not isinstance(want, Refusal)

    def source(self, mm: FakeMm, prot: int) -> Source:
        """What a new map of the program's memory shows."""

        def trouble(page: int) -> int:
            number = (page - BASE) // PAGE
            bad = number in mm.holes or (bool(prot & 2) and number in mm.read_only)
            return EFAULT if bad else 0

        made = Source(mm.ram, bool(prot & 2), trouble)
        self.ledger.sources.append(made)
        return made

    def file_source(self, prot: int) -> Source:
        """What a new map of the file shows."""
        backing = self.memfd.backing()
        assert backing is not None
        made = Source(backing, bool(prot & 2), lambda page: EINVAL if page >= FILE_PAGES * PAGE else 0)
        self.ledger.sources.append(made)
        return made

    # Rules

    @rule(which=WHICH, page=st.integers(0, MEMORY - 1), skew=SKEWS, length=LENGTHS, iova=FIXED_PLACES, prot=PROTS)
    def map(self, which: int, page: int, skew: int, length: int, iova: int | None, prot: int) -> None:
        va = BASE + page * PAGE + skew
        source = self.source(self.soft.caller.mm, prot)
        self.agree(
            lambda: self.models[which].map([(source, va, length)], length, iova, prot),
            lambda: self.soft.map(self.ids[which], va, length, iova, prot),
        )

    @rule(which=WHICH, page=st.integers(0, MEMORY - 2), at=st.integers(0, WINDOW - 1), size=st.integers(1, 4))
    def map_pages(self, which: int, page: int, at: int, size: int) -> None:
        """What nearly always succeeds, so that there is something to work with."""
        source = self.source(self.soft.caller.mm, 6)
        va, iova, length = BASE + page * PAGE, APERTURE + at * PAGE, size * PAGE
        self.agree(
            lambda: self.models[which].map([(source, va, length)], length, iova, 6),
            lambda: self.soft.map(self.ids[which], va, length, iova),
        )

    @rule(which=WHICH, page=st.integers(0, FILE_PAGES), skew=SKEWS, length=LENGTHS, iova=FIXED_PLACES, prot=PROTS)
    def map_file(self, which: int, page: int, skew: int, length: int, iova: int | None, prot: int) -> None:
        start = page * PAGE + skew
        source = self.file_source(prot)
        flags = prot if iova is None else prot | FIXED
        cmd = abi.IoasMapFile(
            flags=flags, ioas_id=self.ids[which], fd=self.fd, start=start, length=length, iova=iova or 0
        )
        self.agree(
            lambda: self.models[which].map([(source, start, length)], length, iova, prot),
            lambda: self.soft.call(cmd).iova,
        )

    @precondition(lambda self: any(model.units for model in self.models))
    @rule(which=WHICH, to=WHICH, data=st.data(), at=FIXED_PLACES, prot=PROTS)
    def copy(self, which: int, to: int, data: st.DataObject, at: int | None, prot: int) -> None:
        iova, length = self.some_range(which, data)
        model, target = self.models[which], self.models[to]
        flags = prot if at is None else prot | FIXED
        cmd = abi.IoasCopy(
            flags=flags,
            dst_ioas_id=self.ids[to],
            src_ioas_id=self.ids[which],
            length=length,
            dst_iova=at or 0,
            src_iova=iova,
        )
        self.agree(
            lambda: target.map(model.pieces(iova, length), length, at, prot), lambda: self.soft.call(cmd).dst_iova
        )

    def some_range(self, which: int, data: st.DataObject) -> tuple[int, int]:
        """A range that often is an area, a part of one, or several."""
        areas = self.models[which].areas
        if not areas or data.draw(st.integers(0, 4)) == 0:
            return data.draw(PLACES), data.draw(LENGTHS)
        first = data.draw(st.sampled_from(areas))
        shape = data.draw(st.sampled_from(("whole", "part", "many")))
        if shape == "whole":
            return first.iova, first.length
        skip = data.draw(multiples(UNIT, 0, first.length // UNIT - 1))
        if shape == "part":
            return first.iova + skip, data.draw(multiples(UNIT, 1, (first.length - skip) // UNIT))
        last = data.draw(st.sampled_from(areas))
        low, high = min(first, last, key=_start), max(first, last, key=_start)
        return low.iova, min(high.iova + high.length - low.iova, 64 * PAGE)

    @precondition(lambda self: any(model.units for model in self.models))
    @rule(which=WHICH, data=st.data())
    def unmap(self, which: int, data: st.DataObject) -> None:
        iova, length = self.some_range(which, data)
        self.agree(
            lambda: self.models[which].unmap(iova, length),
            lambda: self.soft.unmap(self.ids[which], iova, length),
        )

    @precondition(lambda self: any(model.units for model in self.models))
    @rule(which=WHICH, data=st.data())
    def vfio_unmap(self, which: int, data: st.DataObject) -> None:
        iova, length = self.some_range(which, data)
        self.soft.call(abi.VfioIoas(ioas_id=self.ids[which], op=abi.VfioIoasOp.SET))
        raw = vfio.IommuType1DmaUnmap(argsz=24, iova=iova, size=length).to_bytes()
        self.agree(
            lambda: self.models[which].vfio_unmap(iova, length),
            lambda: vfio.IommuType1DmaUnmap.from_bytes(self.soft.ioctl(vfio.IOMMU_UNMAP_DMA, raw)).size,
        )

    @precondition(lambda self: sum(len(model.areas) for model in self.models) > 6)
    @rule(which=WHICH)
    def unmap_everything(self, which: int) -> None:
        model = self.models[which]
        size = sum(area.length for area in model.areas)
        assert self.soft.unmap(self.ids[which], 0, TOP) == size
        for area in model.areas:
            model.remove(area)

    @rule(which=WHICH, ranges=st.lists(st.tuples(PLACES, PLACES), max_size=3))
    def allow(self, which: int, ranges: list[tuple[int, int]]) -> None:
        wanted = [(min(pair), max(pair) - 1) for pair in ranges]
        wanted = [(first, last) for first, last in wanted if last >= 0]
        at = self.soft.store(b"".join(pack("<QQ", *pair) for pair in wanted) or b"\0")
        cmd = abi.IoasAllowIovas(ioas_id=self.ids[which], num_iovas=len(wanted), allowed_iovas=at)
        self.agree(
            lambda: self.models[which].allow(wanted),
            lambda: done(self.soft.call(cmd)),
        )

    @rule(which=WHICH, place=PLACES, length=LENGTHS)
    def reserve(self, which: int, place: int, length: int) -> None:
        cmd = test.AddReserved(start=place, length=length)
        self.agree(
            lambda: self.models[which].reserve(place, place + length - 1, None),
            lambda: done(self.soft.op(test.TestOp.ADD_RESERVED, self.ids[which], cmd)),
        )

    @rule(which=WHICH, value=st.sampled_from((0, 0, 0, 1, 2)))
    def large_pages(self, which: int, value: int) -> None:
        cmd = abi.Option(option_id=1, op=0, object_id=self.ids[which], val64=value)
        self.agree(
            lambda: self.models[which].set_large_pages(value),
            lambda: done(self.soft.call(cmd)),
        )

    @rule(pages=st.one_of(st.none(), st.integers(0, 20)))
    def limit(self, pages: int | None) -> None:
        self.soft.caller.mm.limit = NO_LIMIT if pages is None else pages * PAGE + 100
        self.ledger.limit = NO_LIMIT if pages is None else pages

    @rule(holes=st.sets(st.integers(0, MEMORY - 1), max_size=2), fixed=st.sets(st.integers(0, MEMORY - 1), max_size=2))
    def protect(self, holes: set[int], fixed: set[int]) -> None:
        mm = self.soft.caller.mm
        mm.holes, mm.read_only = holes, fixed

    @precondition(lambda self: len(self.devices) < 3)
    @rule(which=WHICH)
    def attach(self, which: int) -> None:
        made: list[test.MockDomainFlags] = []

        def call() -> None:
            made.append(self.soft.mock(self.ids[which]))

        if self.agree(lambda: self.expect_auto(which), call):
            self.took_auto(which, made[0].out_hwpt_id)
            self.devices[made[0].out_stdev_id] = made[0].out_idev_id, made[0].out_hwpt_id

    def expect_auto(self, which: int) -> None:
        """An automatic HWPT of the IOAS is used, or one is made."""
        if which not in self.auto.values():
            self.models[which].add_domain(Domain(-1, 2048, APERTURE, int(test.Mock.APERTURE_LAST)))

    def took_auto(self, which: int, hwpt: int) -> None:
        """Its id is known now."""
        model = self.models[which]
        self.auto[hwpt] = which
        model.domains = [d._replace(hwpt=hwpt) if d.hwpt < 0 else d for d in model.domains]
        model.reserved = [(a, b, hwpt if owner == -1 else owner) for a, b, owner in model.reserved]

    def left_auto(self, hwpt: int) -> None:
        """It vanishes with its last device."""
        if hwpt in self.auto and all(used != hwpt for _, used in self.devices.values()):
            self.models[self.auto.pop(hwpt)].remove_domain(hwpt)

    @precondition(lambda self: self.devices)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.devices)))
        self.soft.destroy(number)
        _, hwpt = self.devices.pop(number)
        self.left_auto(hwpt)

    @precondition(lambda self: self.devices)
    @rule(data=st.data(), which=WHICH)
    def replace(self, data: st.DataObject, which: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.devices)))
        device, old = self.devices[number]
        cmd = test.MockDomainReplace(pt_id=self.ids[which])
        got: list[int] = []

        def call() -> None:
            got.append(self.soft.op(test.TestOp.MOCK_DOMAIN_REPLACE, number, cmd).pt_id)

        if self.agree(lambda: self.expect_auto(which), call):
            self.took_auto(which, got[0])
            self.devices[number] = device, got[0]
            self.left_auto(old)

    @precondition(lambda self: self.devices and len(self.hwpts) < 3)
    @rule(data=st.data(), which=WHICH, huge=st.booleans())
    def alloc_hwpt(self, data: st.DataObject, which: int, huge: bool) -> None:
        device = self.devices[data.draw(st.sampled_from(sorted(self.devices)))][0]
        at = self.soft.store(test.HwptSelftest(pagetable_type=int(huge)).to_bytes())
        cmd = abi.HwptAlloc(dev_id=device, pt_id=self.ids[which], data_type=0xDEAD, data_len=8, data_uptr=at)
        domain = Domain(-1, 2048, APERTURE, int(test.Mock.APERTURE_LAST))
        if huge:
            domain = Domain(-1, PAGE, 0, (1 << 54) - 1)
        model = self.models[which]
        if self.agree(lambda: model.add_domain(domain), lambda: done(self.soft.call(cmd))):
            hwpt = cmd.out_hwpt_id
            self.hwpts[hwpt] = which
            model.domains[-1] = domain._replace(hwpt=hwpt)
            model.reserved = [(a, b, hwpt if owner == -1 else owner) for a, b, owner in model.reserved]

    @precondition(lambda self: self.hwpts)
    @rule(data=st.data())
    def destroy_hwpt(self, data: st.DataObject) -> None:
        hwpt = data.draw(st.sampled_from(sorted(self.hwpts)))
        self.soft.destroy(hwpt)
        self.models[self.hwpts.pop(hwpt)].remove_domain(hwpt)

    # What always holds

    @invariant()
    def areas_are_the_models(self) -> None:
        for number, model in zip(self.ids, self.models, strict=True):
            areas = self.soft.table(number).map.areas.values()
            assert [(a.iova, a.length, a.prot.value) for a in areas] == [
                (area.iova, area.length, (area.prot >> 2 & 1) | (area.prot & 2)) for area in model.areas
            ]

    @invariant()
    def every_domain_translates_what_is_mapped_and_nothing_else(self) -> None:
        frames = self.soft.machine.physical.frames
        for model in self.models:
            places = {*range(APERTURE - PAGE, APERTURE + (WINDOW + 8) * PAGE, UNIT), *range(0, 8 * PAGE, UNIT)}
            places |= {at for area in model.areas for at in (area.iova - 1, area.iova + area.length)}
            wanted = {at: (a.source.backing, a.va + at - a.iova) for at, a in model.units.items()}
            places |= set(wanted)
            for domain in model.domains:
                table = self.soft.paging(domain.hwpt).domain
                for at in places:
                    pa = table.iova_to_pa(at)
                    unit, rest = at - at % UNIT, at % UNIT
                    assert (pa is None) == (unit not in wanted), hex(at)
                    if pa is not None:
                        backing, offset = wanted[unit]
                        assert pa == frames.pa(backing, offset) + rest

    @invariant()
    def pins_are_the_union_of_what_areas_hold(self) -> None:
        physical = self.soft.machine.physical
        assert physical.accounts.total == self.ledger.pinned == self.soft.caller.mm.pinned
        ram = self.soft.caller.mm.ram
        for page in range(BASE, BASE + MEMORY * PAGE, PAGE):
            assert physical.pin_count(ram, page) == self.ledger.count(ram, page)

    @invariant()
    def ranges_are_what_nobody_reserved(self) -> None:
        for number, model in zip(self.ids, self.models, strict=True):
            table = self.soft.table(number).map
            assert table.alignment == model.alignment
            for first, last, _ in model.reserved:
                assert all(last < free.first or free.last < first for free in table.free_ranges())
            for free in table.free_ranges():
                edges = (free.first - 1, free.last + 1)
                assert all(at in (-1, TOP + 1) or self.is_reserved(model, at) for at in edges)

    def is_reserved(self, model: Model, at: int) -> bool:
        return any(first <= at <= last for first, last, _ in model.reserved)

    def teardown(self) -> None:
        files = self.soft.caller.files
        assert isinstance(files.pop(self.fd), HostFile)
        self.soft.close()


def _start(area: Area) -> int:
    return area.iova


TestMaps = MapMachine.TestCase
TestMaps.settings = settings(calm, max_examples=150, stateful_step_count=30)
