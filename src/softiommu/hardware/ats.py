"""The device's side of ATS and PRI: a device TLB in front of a function's port, and page requests.

PCI Express Base Specification 5.0, chapter 10. A device that has a `DeviceTlb` does DMA as before: while software
lets it, the TLB asks for translations, keeps them until the IOMMU invalidates them, and sends translated requests.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from softiommu.hardware.cache import Entry, Iotlb, Page, Shape
from softiommu.hardware.iommu import AtsIommu, PageRequest, Request, ResponseCode, Translation, TranslationFaultError
from softiommu.hardware.pci import Function

#: How many translations a device keeps: sets, and entries in each.
DEFAULT_SHAPE = Shape(4, 8)

_PAGE_LG2 = 12
#: Page request group indices have nine bits (10.4.1).
_GROUPS = 1 << 9
#: In the tags of a translation: it is of requests without a PASID.
_NO_PASID = -1


class Refusal(IntEnum):
    """Why a device TLB does not send a request. Nobody but the device knows."""

    #: The answer of the IOMMU has none of the rights.
    NOTHING_THERE = 1


class DeviceTlb:
    """The translations that a function keeps. `on_response` hears how software answered a page request."""

    def __init__(
        self,
        function: Function,
        iommu: AtsIommu,
        on_response: Callable[[ResponseCode], None] = lambda code: None,
        shape: Shape = DEFAULT_SHAPE,
    ) -> None:
        self._function, self._iommu, self._on_response = function, iommu, on_response
        self.tlb = Iotlb(shape)
        self._open: set[int] = set()
        self._next = 0
        function.on_ats = self._switch
        iommu.connect(function.port.sid, self)

    def _switch(self, enabled: bool) -> None:
        """Without ATS the port's requests go to the IOMMU as they are, and nothing is kept (10.5.1.3)."""
        self._function.port.iommu = self if enabled else self._iommu
        self.tlb.drop(lambda page, entry: True)
        if not enabled:
            self._open.clear()

    # What the port asks

    def read(self, offset: int, width: int) -> int:
        """Software reads a register of the IOMMU."""
        return self._iommu.read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Software writes a register of the IOMMU."""
        self._iommu.write(offset, width, value)

    def translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Where a request goes: by a translation that is kept or asked for, and as far as the IOMMU lets it."""
        tags = (_NO_PASID if pasid is None else pasid, int(privileged))
        kept = self.tlb.find(tags, iova)
        if kept is not None and not want & ~kept[1].allowed:
            lg2, entry = kept
            pa = entry.oa | iova & (1 << lg2) - 1
        else:
            found = self._iommu.ats_translate(sid, iova, want, pasid, privileged)
            if want & ~found.allowed:
                raise TranslationFaultError(Refusal.NOTHING_THERE, Request(sid, iova, want, pasid, privileged))
            lg2, pa = found.lg2, found.pa
            self.tlb.fill(tags, iova, lg2, Entry(pa >> lg2 << lg2, found.allowed))
        admitted = self._iommu.admit_translated(sid, pa, want, pasid)
        return admitted._replace(lg2=min(lg2, admitted.lg2))

    # What the IOMMU tells

    def invalidate(self, pasid: int | None, first: int, last: int) -> bool:
        """Forget what is kept of a range, of a PASID. An invalidation without one is for all requests, with any PASID
        and without, as Linux reads 10.3.1: none is for those without a PASID alone."""

        def chosen(page: Page, entry: Entry) -> bool:
            return pasid in (None, page.tags[0]) and Iotlb.meets(page, first, last)

        self.tlb.cache.drop_range((first, last), chosen)
        return True

    def page_response(self, pasid: int | None, group: int, code: ResponseCode) -> None:
        """A page request is answered. One that was not made is noted (10.5.2.3)."""
        pri = self._function.pri
        if group not in self._open:
            pri.STATUS = pri.STATUS.replace(UNEXPECTED_GROUP=1)
            return
        self._open.remove(group)
        if code == ResponseCode.FAILURE:
            pri.STATUS = pri.STATUS.replace(RESPONSE_FAILURE=1)
        self._on_response(code)

    # What the device asks

    @property
    def waits(self) -> bool:
        """Whether there are page requests without an answer."""
        return bool(self._open)

    def request_page(self, iova: int, want: int, pasid: int | None = None) -> bool:
        """Ask software for a page; False: the function may not, or has asked for as many as it may."""
        function = self._function
        may = function.pri.PRI_CONTROL.ENABLE and function.ats.ATS_CONTROL.ENABLE and function.port.bus_master
        if not may or len(self._open) >= function.pri.ALLOCATION:
            return False
        group, self._next = self._next, (self._next + 1) % _GROUPS
        self._open.add(group)
        page = iova >> _PAGE_LG2 << _PAGE_LG2
        self._iommu.page_request(PageRequest(function.port.sid, page, want, group, True, pasid))
        return True
