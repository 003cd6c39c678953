"""Caches: found by tag, replaced by least recent use, emptied by what a command names."""

from hypothesis import given, strategies as st

from softiommu.hardware.cache import Cache, Entry, Iotlb, Shape


def test_a_full_set_gives_up_its_least_recently_used_entry():
    cache = Cache(Shape(1, 2))
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert (cache.counters.hits, cache.counters.misses, cache.counters.fills, cache.counters.evictions) == (3, 1, 3, 1)


def test_a_cache_without_ways_holds_nothing():
    cache = Cache(Shape(4, 0))
    cache.put("a", 1)
    assert cache.get("a") is None
    assert len(cache) == 0


def test_dropping_takes_what_is_named_and_nothing_else():
    cache = Cache(Shape(4, 4))
    for number in range(8):
        cache.put(number, number)
    assert cache.drop(lambda key, value: key % 2 == 0) == 4
    assert [cache.get(number) for number in range(8)] == [None, 1, None, 3, None, 5, None, 7]


def test_an_iotlb_finds_leaves_of_every_size_by_their_tags():
    iotlb = Iotlb(Shape(4, 4))
    iotlb.fill((1, -1), 0x1234, 12, Entry(0x5000, 3))
    iotlb.fill((1, -1), 0x40_0000, 21, Entry(0x80_0000, 1))
    assert iotlb.find((1, -1), 0x1FFF) == (12, Entry(0x5000, 3))
    assert iotlb.find((1, -1), 0x5F_FFFF) == (21, Entry(0x80_0000, 1))
    assert iotlb.find((2, -1), 0x1FFF) is None
    iotlb.drop(lambda page, entry: iotlb.meets(page, 0x41_0000, 0x41_0FFF))
    assert iotlb.find((1, -1), 0x40_0000) is None
    assert iotlb.find((1, -1), 0x1000) is not None


def test_a_lookup_is_one_access_whatever_the_number_of_sizes():
    iotlb = Iotlb(Shape(4, 4))
    for lg2 in (12, 21, 30):
        iotlb.fill((1,), 0, lg2, Entry(0, 3))
    assert iotlb.find((1,), 0) == (30, Entry(0, 3))
    assert iotlb.find((1,), 1 << 40) is None
    assert (iotlb.cache.counters.hits, iotlb.cache.counters.misses) == (1, 1)


@given(st.data())
def test_a_range_drops_what_a_scan_of_everything_would(data):
    tags = st.tuples(st.integers(0, 2), st.integers(0, 1))
    pages = st.lists(st.tuples(tags, st.sampled_from((12, 21, 30)), st.integers(0, 1 << 31)), max_size=60)
    filled, first, length = data.draw(pages), data.draw(st.integers(0, 1 << 31)), data.draw(st.integers(0, 1 << 22))
    owner = data.draw(st.integers(0, 2))
    left, right = Iotlb(Shape(4, 4)), Iotlb(Shape(4, 4))
    for iotlb in (left, right):
        for number, (mine, lg2, iova) in enumerate(filled):
            iotlb.fill(mine, iova, lg2, Entry(number, 3))

    def chosen(page, entry):
        return page.tags[0] == owner and (bool(page.tags[1]) or Iotlb.meets(page, first, first + length))

    gone = left.cache.drop_range((first, first + length), chosen, lambda mine: bool(mine[1]))
    assert gone == right.drop(chosen)
    assert left.cache._sets == right.cache._sets
    assert left.cache._index == right.cache._index
    assert left.cache.drop_range(None, lambda page, entry: True) == len(right.cache)
    assert left.cache._index == {}
