"""What one unit caches, and how commands choose what is forgotten. VT-d 6.2 and 6.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from softiommu.hardware.cache import Cache, Iotlb, Page, PageCache, Shape
from softiommu.hardware.links import Links
from softiommu.hardware.vtd.tables import Irte0, Irte1
from softiommu.hardware.vtd.walker import NO_PASID, Context, Route


class Shapes(NamedTuple):
    """How large the caches are."""

    iotlb: Shape = Shape(16, 8)
    context: Shape = Shape(8, 8)
    pasid: Shape = Shape(8, 8)
    interrupt: Shape = Shape(16, 4)
    #: Links to tables.
    paging: Shape = Shape(8, 8)


class Selection(NamedTuple):
    """Which cached things a command names; None is any."""

    did: int | None = None
    pasid: int | None = None
    sid: int | None = None
    sid_mask: int = 0xFFFF
    #: An inclusive range of addresses.
    window: tuple[int, int] | None = None
    #: Links to tables stay (IH): software has changed leaves only.
    leaves_only: bool = False

    def reaches(self, page: Page) -> bool:
        """Whether a page or a link has an address of the window."""
        return self.window is None or Iotlb.meets(page, *self.window)


def _is_nested(tags: tuple[int, ...]) -> bool:
    return bool(tags[2])


class Caches:
    """The caches of one unit. Counters are each cache's own."""

    def __init__(self, shapes: Shapes) -> None:
        self.iotlb = Iotlb(shapes.iotlb)
        #: Legacy mode: routes by stream. Scalable mode: contexts by stream, and routes by stream and PASID.
        self.legacy: Cache[int, Route] = Cache(shapes.context)
        self.contexts: Cache[int, Context] = Cache(shapes.context)
        self.pasids: Cache[tuple[int, int], Route] = Cache(shapes.pasid)
        #: Links to tables of single stages, by their tags and by what they translate, as pages are.
        self.links: Links = PageCache(shapes.paging)
        self.interrupts: Cache[int, tuple[Irte0, Irte1]] = Cache(shapes.interrupt)

    def forget_all(self) -> None:
        """Everything that comes from the root table."""
        self.forget_contexts(Selection())
        self.forget_pasids(Selection())
        self.forget_translations(Selection())

    def forget_contexts(self, selection: Selection) -> None:
        """A context-cache command. Entries of scalable mode have no domain: one that names a domain names all."""
        sid, mask = selection.sid, selection.sid_mask
        self.contexts.drop(lambda key, context: sid is None or (key ^ sid) & mask == 0)
        self.legacy.drop(
            lambda key, route: (
                (sid is None or (key ^ sid) & mask == 0) and (sid is not None or selection.did in (None, route.did))
            )
        )

    def forget_pasids(self, selection: Selection) -> None:
        """A PASID-cache command."""
        self.pasids.drop(
            lambda key, route: selection.did in (None, route.did) and selection.pasid in (None, route.pasid)
        )

    def forget_translations(self, selection: Selection) -> None:
        """An IOTLB command: page-selective ones name guest-physical addresses in nested translations, of which the
        hardware knows none, so all of the domain go (6.5.2.4)."""

        did, window = selection.did, selection.window

        def chosen(page: Page, entry: object) -> bool:
            tags = page.tags
            if did is not None and tags[0] != did:
                return False
            if window is None or tags[2]:
                return True
            return tags[1] == NO_PASID and selection.reaches(page)

        self._forget(chosen, selection)

    def forget_pasid_translations(self, selection: Selection) -> None:
        """A PASID-based IOTLB command: translations of first stages."""
        tags = (selection.did, selection.pasid)
        self._forget(lambda page, entry: page.tags[:2] == tags and selection.reaches(page), selection)

    def _forget(self, chosen: Callable[[Page, object], bool], selection: Selection) -> None:
        self.iotlb.cache.drop_range(selection.window, chosen, _is_nested)
        if not selection.leaves_only:
            self.links.drop_range(selection.window, chosen, _is_nested)

    def forget_interrupts(self, first: int, last: int) -> None:
        """An interrupt entry cache command."""
        self.interrupts.drop(lambda index, entry: first <= index <= last)
