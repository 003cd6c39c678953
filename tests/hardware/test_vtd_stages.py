"""VT-d: two stages are one after the other, and caches change nothing for software that flushes."""

from hypothesis import event, given, settings, strategies as st
from vtd_rig import SID, Bench, reason

from softiommu.hardware.cache import Shape
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.vtd.caches import Shapes
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.tables import Pgtt
from softiommu.pagetable.kinds import OK, PRIVILEGED, READ, WRITE

RW = READ | WRITE
KIB4, MIB2 = 1 << 12, 1 << 21
#: Small spaces, so that maps meet requests: 8 places of 2 MiB, of which each has four pages that are used.
places = st.builds(lambda large, small: large * MIB2 + small * KIB4, st.integers(0, 7), st.integers(0, 3))
maps = st.lists(
    st.tuples(places, places, st.sampled_from([KIB4, 2 * KIB4, MIB2]), st.sampled_from([READ, RW, WRITE])), max_size=8
)
GUEST, HOST = 1 << 32, 1 << 33


def fill(pages, base, target, wanted):
    """Map what does not overlap; large pages are aligned."""
    for iova, pa, length, prot in wanted:
        mask = ~(length - 1) if length == MIB2 else -1
        iova, pa = base + (iova & mask), target + (pa & mask)
        if not any(True for _ in pages.leaves(iova, iova + length - 1)):
            pages.map(iova, pa, length, prot)


def composed(bench, iova, want, privileged):
    """The address, rights and size that one walk after the other finds; None when one of them finds nothing."""
    one = bench.first.translate(iova, PRIVILEGED if privileged else 0)
    if one.status != OK or want & ~one.allowed:
        return None
    two = bench.second.translate(one.oa)
    if two.status != OK or want & ~two.allowed:
        return None
    return two.oa, min(one.lg2, two.lg2), one.allowed & two.allowed & RW


@given(data=st.data(), inner=maps, outer=maps, wpe=st.integers(0, 1))
@settings(max_examples=120, deadline=None)
def test_a_nested_translation_is_one_stage_after_the_other(data, inner, outer, wpe):
    bench = Bench(ram=16 << 20)
    pasid = data.draw(st.sampled_from([None, 3]))
    bench.pasid(Pgtt.NESTED, pasid or 0, SRE=1, WPE=wpe)
    fill(bench.first, 0, GUEST, inner)
    bench.second.map(0, 0, 16 << 20, RW)
    fill(bench.second, GUEST, HOST, outer)
    bench.first.table = bench.first.table._replace(option=bench.first.table.option & ~16 | wpe << 4)
    for _ in range(4):
        iova, want = data.draw(places) + data.draw(st.integers(0, 4095)), data.draw(st.sampled_from([READ, WRITE, RW]))
        privileged = data.draw(st.booleans())
        expected = composed(bench, iova, want, privileged)
        try:
            found = bench.unit.translate(SID, iova, want, pasid, privileged)
        except TranslationFaultError:
            assert expected is None
        else:
            assert expected is not None
            assert (found.pa, found.lg2) == expected[:2]
            # What a hit tells of rights may lack a write whose dirty flag is not set yet.
            assert not want & ~found.allowed
            assert not found.allowed & RW & ~expected[2]
            event("translated")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("map"), places, places, st.sampled_from([KIB4, MIB2]), st.sampled_from([READ, RW])),
        st.tuples(st.just("unmap"), places),
        st.tuples(st.just("stage"), st.sampled_from(list(Pgtt))),
        st.tuples(st.just("ask"), places, st.sampled_from([READ, WRITE]), st.booleans()),
    ),
    max_size=30,
)
NO_CACHES = Shapes(*(Shape(1, 0) for _ in Shapes._fields))


@given(history=steps)
@settings(max_examples=120, deadline=None)
def test_caches_change_nothing_for_software_that_flushes(history):
    cached, plain = Bench(ram=16 << 20), Bench(ram=16 << 20, shapes=NO_CACHES)
    for bench in (cached, plain):
        bench.pasid(Pgtt.FIRST, SRE=1)
    for name, *what in history:
        if name == "ask":
            answers = [ask(bench, *what) for bench in (cached, plain)]
            assert answers[0] == answers[1]
            continue
        for bench in (cached, plain):
            change(bench, name, what)
            bench.unit.caches.forget_all()
    assert len(plain.unit.caches.iotlb.cache) == len(plain.unit.caches.links) == 0


def ask(bench, iova, want, privileged):
    failed = reason(bench.unit.translate, SID, iova, want, None, privileged)
    return Reason(failed) if failed is not None else bench.unit.translate(SID, iova, want, None, privileged)[:2]


def change(bench, name, what):
    if name == "map":
        iova, pa, length, prot = what
        for pages in (bench.first, bench.second):
            fill(pages, 0, HOST, [(iova, pa, length, prot)])
    elif name == "unmap":
        for pages in (bench.first, bench.second):
            pages.free_tables(pages.unmap(what[0], KIB4).tables)
    else:
        bench.pasid(what[0], SRE=1)
