"""Caches of an IOMMU: tagged, of a size, replaced by least recent use; emptied by commands only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shape(NamedTuple):
    """How many sets, and how many entries each has. A cache without ways holds nothing."""

    sets: int
    ways: int


class Counters:
    """What operators count of a cache."""

    def __init__(self) -> None:
        self.hits = self.misses = self.fills = self.evictions = self.dropped = 0


class Cache(Generic[K, V]):
    """Key to value. The set of a key is its hash's; in a full set the least recently used entry makes room."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.counters = Counters()
        self._count = shape.sets
        self._sets: list[OrderedDict[K, V]] = [OrderedDict() for _ in range(shape.sets)]

    def get(self, key: K) -> V | None:
        """The value of a key, counted as a hit or a miss."""
        value = self.look(key)
        if value is None:
            self.counters.misses += 1
        else:
            self.counters.hits += 1
        return value

    def look(self, key: K) -> V | None:
        """The value of a key, used but not counted."""
        found = self._sets[hash(key) % self._count]
        value = found.get(key)
        if value is not None:
            found.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Fill an entry."""
        if not self.shape.ways:
            return
        found = self._sets[hash(key) % self.shape.sets]
        found[key] = value
        found.move_to_end(key)
        self.counters.fills += 1
        if len(found) > self.shape.ways:
            found.popitem(last=False)
            self.counters.evictions += 1

    def drop(self, chosen: Callable[[K, V], bool]) -> int:
        """Empty the entries that a command names; how many there were."""
        count = 0
        for entries in filter(None, self._sets):
            for key in [key for key, value in entries.items() if chosen(key, value)]:
                del entries[key]
                count += 1
        self.counters.dropped += count
        return count

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._sets)


class Entry(NamedTuple):
    """A cached translation: its page's first output address, rights, and whether it is global."""

    oa: int
    allowed: int
    is_global: bool = False


class Page(NamedTuple):
    """What a translation is found by: the tags of its architecture, the page's size and number."""

    tags: tuple[int, ...]
    lg2: int
    number: int


class Iotlb:
    """A cache of leaves of every size. A lookup tries each that is present, the largest first, and is one access."""

    def __init__(self, shape: Shape) -> None:
        self.cache: Cache[Page, Entry] = Cache(shape)
        self._sizes: tuple[int, ...] = ()

    def find(self, tags: tuple[int, ...], iova: int) -> tuple[int, Entry] | None:
        """The leaf's size and entry for an address."""
        cache = self.cache
        for lg2 in self._sizes:
            # A plain tuple is equal to the Page of the same fields, and made in a third of the time.
            entry = cache.look((tags, lg2, iova >> lg2))  # type: ignore[arg-type]  # see above
            if entry is not None:
                cache.counters.hits += 1
                return lg2, entry
        cache.counters.misses += 1
        return None

    def fill(self, tags: tuple[int, ...], iova: int, lg2: int, entry: Entry) -> None:
        """Keep a translation."""
        if lg2 not in self._sizes:
            self._sizes = tuple(sorted((*self._sizes, lg2), reverse=True))
        self.cache.put(Page(tags, lg2, iova >> lg2), entry)

    def drop(self, chosen: Callable[[Page, Entry], bool]) -> int:
        """Empty the entries that a command names."""
        return self.cache.drop(chosen)

    @staticmethod
    def meets(page: Page, first: int, last: int) -> bool:
        """Whether a cached page has an address of `first`..`last`."""
        start = page.number << page.lg2
        return start <= last and first <= start + (1 << page.lg2) - 1
