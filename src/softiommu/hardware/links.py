"""A walk cache: links to tables that an IOMMU keeps. A link is taken as it was, whatever is in memory now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softiommu.hardware.cache import Page, PageCache
from softiommu.pagetable.formats import load
from softiommu.pagetable.kinds import ASK, OK, TABLE, Table
from softiommu.pagetable.known import Place
from softiommu.pagetable.walk import (
    MASK,
    Result,
    Tree,
    Walk,
    known_entries,
    last_step,
    new,
    one_stage,
    signed,
    span_lg2,
    walk,
)

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory, Space
    from softiommu.pagetable.nested import Stage

#: An entry that leads to a table, and where a walk is by it.
Link = tuple[int, Place]
#: Links by the tags of their address space and by what they translate, as pages are.
Links = PageCache[Link]


class LinkedWalker:
    """Walks single stages in one memory, and keeps the links that it meets."""

    def __init__(self, memory: PhysicalMemory, links: Links) -> None:
        self._memory, self.links = memory, links

    def walk(
        self,
        tags: tuple[int, ...],
        stage: Stage,
        iova: int,
        want: int,
        address: int | None = None,
        refuse: Exception | None = None,
    ) -> Walk:
        """Translate `iova`. `address` is what invalidations call it, where that is not the same (sign extension).
        `refuse` is raised when a flag must be set: the IOMMU cannot set any in this memory."""
        place = iova if address is None else address
        if refuse is None:
            if not self.links.shape.ways:
                return walk(stage.table, self._memory, stage.root, iova, want)
            last = self._last(tags, stage.table, iova, place)
            if last is not None:
                return self._last_step(stage.table, last, iova, want)
            quick = self._known(tags, stage, iova, want, place)
            if quick is not None:
                return quick
        path = _Path(self.links, tags, stage, place, refuse)
        space = self._memory.space
        found = path.walk(space, signed(iova), want)
        known = known_entries(stage.table, want, space) if found[0] == OK and refuse is None else None
        if known is not None:
            known.learn(space.words, known.place(stage.root), iova)
        if found[0] == ASK:
            found = path.walk(self._memory.anywhere, signed(iova), want)
        return Walk(*found[:6], found[6] & MASK)

    def _last(self, tags: tuple[int, ...], table: Table, iova: int, address: int) -> Place | None:
        """The table of pages for an address, if a link to it is cached."""
        if not table.top or iova >> table.input_bits:
            return None
        span = table.granule_lg2 + table.bits
        link = self.links.look((tags, span, address >> span))  # type: ignore[arg-type]  # as in Iotlb.find
        if link is None:
            return None
        self.links.counters.hits += 1
        return link[1]

    def _known(self, tags: tuple[int, ...], stage: Stage, iova: int, want: int, address: int) -> Walk | None:
        """A walk from the root, if it meets only what is known. Until that is clear the cache is left alone."""
        table, words, links = stage.table, self._memory.space.words, self.links
        known = known_entries(table, want, self._memory.space)
        if known is None or iova >> table.input_bits:
            return None
        place, met, fresh = known.place(stage.root), [], False
        while place[1]:
            span = table.granule_lg2 + table.bits * place[1]
            page = new(Page, (tags, span, address >> span))
            cached = links.peek(page)
            link = known.link(words, place, iova, None if cached is None else cached[0])
            if link is None:
                break
            # What is above a cached link may have changed since; or makes room for itself, and it goes.
            if cached is not None and (cached != link or fresh):
                return None
            place, fresh = link[1], cached is None
            met.append((page, link))
        else:
            page = None
        # A large leaf ends the walk above the last table.
        found = None if page is not None and links.peek(page) is not None else known.find_from(words, place, iova)
        if found is None:
            return None
        for at, link in met:
            if links.get(at) is None:
                links.put(at, link)
        if page is not None:
            links.counters.misses += 1
        return new(Walk, found)

    def _last_step(self, table: Table, last: Place, iova: int, want: int) -> Walk:
        space = self._memory.space
        known = known_entries(table, want, space)
        if known is not None:
            quick = known.find_from(space.words, last, iova)
            if quick is not None:
                return new(Walk, quick)
        found = last_step(table, space, last, signed(iova), want)
        if found[0] == OK and known is not None:
            known.learn(space.words, last, iova)
        if found[0] == ASK:
            found = last_step(table, self._memory.anywhere, last, signed(iova), want)
        return Walk(*found[:6], found[6] & MASK)


class _Path:
    """The way of one walk. It stands for memory there."""

    def __init__(
        self, links: Links, tags: tuple[int, ...], stage: Stage, address: int, refuse: Exception | None
    ) -> None:
        self._links, self._tags, self._stage, self._address, self._refuse = links, tags, stage, address, refuse
        self._words: Any = None
        self._here: Place = (0, 0, 0, 0)
        #: The link that was read last. It is kept when the walk goes on by it, so when its flags are set.
        self._link: tuple[Page, Link] | None = None

    def walk(self, space: Space, iova: int, want: int) -> Result:
        """Walk in a memory, from the root."""
        table, root = self._stage.table, self._stage.root
        self._here, self._link = (root, table.top, -1, 0), None
        self._words = space.words
        return one_stage(Tree(table, space._replace(words=self), root), iova, want)

    def _page(self, level: int) -> Page:
        span = span_lg2(self._stage.table, level)
        return Page(self._tags, span, self._address >> span)

    def __getitem__(self, number: int) -> int:
        """The entry of the next level."""
        if self._link is not None:
            self._links.put(*self._link)
            self._here, self._link = self._link[1][1], None
        _, level, every, some = self._here
        page = self._page(level)
        cached = self._links.get(page) if level else None
        if cached is not None:
            self._here = cached[1]
            return cached[0]
        entry: int = self._words[number]
        kind, table, _, below = load(self._stage.table, level, entry)
        if kind == TABLE:
            self._link = page, (entry, (table, below, every & entry, some | entry))
        return entry

    def __setitem__(self, number: int, entry: int) -> None:
        """A flag is set in the entry that was read last."""
        if self._refuse is not None:
            raise self._refuse
        self._words[number] = entry
        if self._link is not None:
            self._link = self._link[0], (entry, self._link[1][1])
