"""A port whose DMA asks software for the pages that it misses, and goes on when they are there (PCIe 5.0, 10.4).

Software that answers at once, while it is asked, is not noticed by the device. Else the device hears `PageMissing`: it
leaves what it was doing, and does it again when `on_answer` is called. One page is asked for at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

from softiommu.hardware.ats import DeviceTlb, Refusal
from softiommu.hardware.bus import DmaError, Transfer
from softiommu.hardware.iommu import AtsIommu, ResponseCode, TranslationFaultError
from softiommu.hardware.pci import Function
from softiommu.pagetable.kinds import READ, WRITE

T = TypeVar("T")

_PAGE_LG2 = 12
#: A page that is still missing after so many good answers is given up.
_ATTEMPTS = 16


class PageMissing(DmaError):  # noqa: N818 - no error: the DMA is done again later
    """Software was asked for a page and has not answered yet."""


class PagingPort:
    """The way to memory of a function that has ATS and PRI. While software allows neither, it is an ordinary port."""

    def __init__(self, function: Function, iommu: AtsIommu, on_answer: Callable[[], None]) -> None:
        self._port, self._on_answer = function.port, on_answer
        self._tlb = DeviceTlb(function, iommu, self._answered)
        #: The page that an answer is waited for, the one that was asked for last, and how often.
        self._open: int | None = None
        self._last, self._attempts = -1, 0
        self._refused: int | None = None
        #: While it is being asked for: how that was answered.
        self._asking, self._answer = False, ResponseCode.INVALID

    def reset(self) -> None:
        """The function is reset: no answer is waited for."""
        self._open = self._refused = None
        self._last, self._attempts = -1, 0

    def read(self, iova: int, length: int) -> bytes:
        """The bytes at `iova`. PageMissing; DmaError: some of them cannot be read."""
        return self.gather([(iova, length)])

    def write(self, iova: int, data: bytes) -> None:
        """Store `data` at `iova`. PageMissing, DmaError: what comes before the page is stored."""
        self.scatter([(iova, len(data))], data)

    def gather(self, segments: Sequence[tuple[int, int]]) -> bytes:
        """The bytes of all segments (first address, bytes). PageMissing; DmaError: some of them cannot be read."""
        return self._retry(segments, lambda: self._port.gather(segments), READ)

    def scatter(self, segments: Sequence[tuple[int, int]], data: bytes) -> None:
        """Store `data` in segments. PageMissing, DmaError: what comes before the page is stored."""
        self._retry(segments, lambda: self._port.scatter(segments, data), WRITE)

    def fill(self, segments: Sequence[tuple[int, int]], fill: Transfer) -> None:
        """Let `fill` store into segments. PageMissing, DmaError: what comes before the page is stored."""
        self._retry(segments, lambda: self._port.fill(segments, fill), WRITE)

    def drain(self, segments: Sequence[tuple[int, int]], take: Transfer) -> None:
        """Let `take` have the bytes of segments. PageMissing, DmaError: it gets none."""
        self._retry(segments, lambda: self._port.drain(segments, take), READ)

    def _retry(self, segments: Sequence[tuple[int, int]], access: Callable[[], T], want: int) -> T:
        while True:
            try:
                return access()
            except DmaError as error:
                self._ask(error, want)
                self._ask_ahead(segments, error.done, want)

    def _ask_ahead(self, segments: Sequence[tuple[int, int]], done: int, want: int) -> None:
        """Ask for what an access will miss behind its first `done` bytes, so that it begins again once only."""
        for iova in _pages(segments, done):
            while True:
                try:
                    self._port.reach(iova, want)
                    break
                except DmaError as error:
                    if not _is_missing(error):
                        return  # what comes before it is done first
                    missing = error
                try:
                    self._ask(missing, want)
                except PageMissing:
                    raise
                except DmaError:
                    self._refused = iova >> _PAGE_LG2
                    return

    def _ask(self, error: DmaError, want: int) -> None:
        """Ask for the page that an access missed; returns if it is there now. PageMissing; DmaError: it will not be."""
        page = error.iova >> _PAGE_LG2
        if not _is_missing(error):
            raise error
        if self._open is not None and self._tlb.waits:
            self._wait(error)
        refused, self._refused = self._refused == page, None
        self._attempts = self._attempts + 1 if page == self._last else 1
        self._last = page
        if refused or self._attempts > _ATTEMPTS:
            self._last = -1
            raise error
        # The answer may come before there is anything that it could be an answer to.
        self._open, self._asking = page, True
        asked = self._tlb.request_page(error.iova, want)
        self._asking = False
        if not asked:
            self._open = None
            raise error
        if self._open is not None:
            self._wait(error)
        if self._answer != ResponseCode.SUCCESS:
            raise error

    @staticmethod
    def _wait(error: DmaError) -> NoReturn:
        raise PageMissing(error.iova, error.done, "software is asked for the page") from error

    def _answered(self, code: ResponseCode) -> None:
        page, self._open, self._answer = self._open, None, code
        if self._asking:
            return
        if code != ResponseCode.SUCCESS:
            self._refused = page
        self._on_answer()


def _is_missing(error: DmaError) -> bool:
    cause = error.__cause__
    return isinstance(cause, TranslationFaultError) and cause.reason is Refusal.NOTHING_THERE


def _pages(segments: Sequence[tuple[int, int]], skip: int) -> Iterator[int]:
    """An address in each page of segments, but for their first `skip` bytes."""
    for iova, length in segments:
        if skip < length:
            yield iova + skip
            yield from range((iova + skip >> _PAGE_LG2) + 1 << _PAGE_LG2, iova + length, 1 << _PAGE_LG2)
        skip = max(skip - length, 0)
