"""Caches of an IOMMU: tagged, of a size, replaced by least recent use; emptied by commands only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from softiommu.pagetable.walk import new

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

    def told(self) -> dict[str, int]:
        """Those of a cache of translations, as `machine.counts` names them."""
        return {"found": self.hits, "walked": self.misses, "forgotten": self.dropped}


class Cache(Generic[K, V]):
    """Key to value. The set of a key is its hash's; in a full set the least recently used entry makes room."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.counters = Counters()
        self._count, self._ways = shape
        self._sets: list[OrderedDict[K, V]] = [OrderedDict() for _ in range(shape.sets)]

    def get(self, key: K) -> V | None:
        """The value of a key, counted as a hit or a miss."""
        found = self._sets[hash(key) % self._count]
        value = found.get(key)
        if value is None:
            self.counters.misses += 1
        else:
            found.move_to_end(key)
            self.counters.hits += 1
        return value

    def look(self, key: K) -> V | None:
        """The value of a key, used but not counted."""
        found = self._sets[hash(key) % self._count]
        value = found.get(key)
        if value is not None:
            found.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """The value of a key, neither used nor counted."""
        return self._sets[hash(key) % self._count].get(key)

    def put(self, key: K, value: V) -> None:
        """Fill an entry."""
        ways = self._ways
        if not ways:
            return
        found = self._sets[hash(key) % self._count]
        count = len(found)
        found[key] = value
        self.counters.fills += 1
        if len(found) == count:
            found.move_to_end(key)
            return
        self._came(key)
        if count == ways:
            self._left(found.popitem(last=False)[0])
            self.counters.evictions += 1

    def _came(self, key: K) -> None:
        """A key was filled."""

    def _left(self, key: K) -> None:
        """A key went."""

    def items(self) -> list[tuple[K, V]]:
        """Everything that is cached, without using it."""
        return [item for entries in self._sets for item in entries.items()]

    def drop(self, chosen: Callable[[K, V], bool]) -> int:
        """Empty the entries that a command names; how many there were."""
        count = 0
        for entries in filter(None, self._sets):
            for key in [key for key, value in entries.items() if chosen(key, value)]:
                del entries[key]
                self._left(key)
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
    #: lg2 of the leaf of stage 1 of which the page may be a part, where stage 2 has smaller ones.
    leaf_lg2: int = 0
    #: Of an address space that is none of the CPUs': their broadcast maintenance by address space leaves it alone.
    private: bool = False


class Page(NamedTuple):
    """What a translation is found by: the tags of its architecture, the page's size and number."""

    tags: tuple[int, ...]
    lg2: int
    number: int


def _nothing(tags: tuple[int, ...]) -> bool:
    return False


class PageCache(Cache[Page, V]):
    """A cache by pages, in which a command that names a range looks at the pages of that range alone."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        #: The numbers of the pages that are here, by their tags and sizes.
        self._index: dict[tuple[int, ...], dict[int, set[int]]] = {}

    def _came(self, key: Page) -> None:
        tags, lg2, number = key
        try:
            self._index[tags][lg2].add(number)
        except KeyError:
            self._index.setdefault(tags, {})[lg2] = {number}

    def _left(self, key: Page) -> None:
        tags, lg2, number = key
        sizes = self._index[tags]
        numbers = sizes[lg2]
        numbers.remove(number)
        if not numbers:
            del sizes[lg2]
            if not sizes:
                del self._index[tags]

    def find(self, tags: tuple[int, ...], sizes: tuple[int, ...], address: int) -> tuple[int, V] | None:
        """The first page of one of the sizes that has an address, and its value; one access."""
        sets, count = self._sets, self._count
        for lg2 in sizes:
            # Equal to the Page of the same fields.
            key = tags, lg2, address >> lg2
            found = sets[hash(key) % count]
            value = found.get(key)  # type: ignore[call-overload]  # see above
            if value is not None:
                found.move_to_end(key)  # type: ignore[arg-type]  # see above
                self.counters.hits += 1
                return lg2, value
        self.counters.misses += 1
        return None

    def drop_range(
        self,
        window: tuple[int, int] | None,
        chosen: Callable[[Page, V], bool],
        whole: Callable[[tuple[int, ...]], bool] = _nothing,
    ) -> int:
        """Empty the entries that a command names, which all have an address of `window` (None: any), or tags that are
        `whole`."""
        if window is None:
            return self.drop(chosen)
        if not self._index:
            return 0
        count = 0
        for page in self._candidates(window, whole):
            entries = self._sets[hash(page) % self._count]
            if chosen(page, entries[page]):
                del entries[page]
                self._left(page)
                count += 1
        self.counters.dropped += count
        return count

    def _candidates(self, window: tuple[int, int], whole: Callable[[tuple[int, ...]], bool]) -> list[Page]:
        found: list[Page] = []
        for tags, sizes in self._index.items():
            everything = whole(tags)
            for lg2, numbers in sizes.items():
                first, last = window[0] >> lg2, window[1] >> lg2
                if everything:
                    chosen = sorted(numbers)
                elif first == last:
                    chosen = [first] if first in numbers else []
                elif last - first < len(numbers):
                    chosen = [number for number in range(first, last + 1) if number in numbers]
                else:
                    chosen = sorted(number for number in numbers if first <= number <= last)
                found += [Page(tags, lg2, number) for number in chosen]
        return found


class Iotlb:
    """A cache of leaves of every size. A lookup tries each that is present, the largest first, and is one access."""

    def __init__(self, shape: Shape) -> None:
        self.cache: PageCache[Entry] = PageCache(shape)
        self._sizes: tuple[int, ...] = ()

    def find(self, tags: tuple[int, ...], iova: int) -> tuple[int, Entry] | None:
        """The leaf's size and entry for an address."""
        return self.cache.find(tags, self._sizes, iova)

    def fill(self, tags: tuple[int, ...], iova: int, lg2: int, entry: Entry) -> None:
        """Keep a translation."""
        if lg2 not in self._sizes:
            self._sizes = tuple(sorted((*self._sizes, lg2), reverse=True))
        self.cache.put(new(Page, (tags, lg2, iova >> lg2)), entry)

    def drop(self, chosen: Callable[[Page, Entry], bool]) -> int:
        """Empty the entries that a command names."""
        return self.cache.drop(chosen)

    @staticmethod
    def meets(page: Page, first: int, last: int) -> bool:
        """Whether a cached page has an address of `first`..`last`."""
        start = page.number << page.lg2
        return start <= last and first <= start + (1 << page.lg2) - 1
