"""Dirty tracking: which pages devices wrote."""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP, EOVERFLOW
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi
from softiommu.drivers.driver import DomainFlags, Range
from softiommu.errors import UapiError
from softiommu.iommufd.area import MAX
from softiommu.iommufd.context import Context
from softiommu.iommufd.hwpt import HwptPaging
from softiommu.iommufd.ioas import refuse
from softiommu.memory.client import PAGE_SIZE

if TYPE_CHECKING:
    from softiommu.memory.client import Caller

_ENABLE = 1
_NO_CLEAR = 1


class Bitmap:
    """The program's bitmap: bit n is the page at first + n * 2**page_lg2. Bits are only ever set in it."""

    def __init__(self, caller: Caller, va: int, window: Range, page_lg2: int) -> None:
        self._caller, self._va, self._window, self._lg2 = caller, va, window, page_lg2
        self._words: dict[int, int] = {}

    def record(self, iova: int, length: int) -> None:
        """Mark every page that meets the range."""
        first = max(iova, self._window.first) - self._window.first >> self._lg2
        last = min(iova + length - 1, self._window.last) - self._window.first >> self._lg2
        while first <= last:
            chunk, bit = divmod(first, PAGE_SIZE * 8)
            count = min(last - first + 1, PAGE_SIZE * 8 - bit)
            self._words[chunk] = self._words.get(chunk, 0) | ((1 << count) - 1) << bit
            first += count

    def flush(self) -> None:
        """OR the marks into the program's memory. Bits whose memory is not there are lost, as in the kernel."""
        for chunk, bits in self._words.items():
            low = (bits & -bits).bit_length() - 1 >> 3
            raw = (bits >> 8 * low).to_bytes((bits.bit_length() + 7 >> 3) - low, "little")
            self._merge(self._va + chunk * PAGE_SIZE + low & MAX, raw)

    def _merge(self, va: int, raw: bytes) -> None:
        while raw:
            size = min(len(raw), PAGE_SIZE - va % PAGE_SIZE)
            try:
                old = self._caller.read(va, size)
                both = int.from_bytes(old, "little") | int.from_bytes(raw[:size], "little")
                self._caller.write(va, both.to_bytes(size, "little"))
            except UapiError:
                # iova_bitmap_set() ignores pages it cannot pin; so do we, page by page.
                pass
            va, raw = va + size, raw[size:]


def set_tracking(ctx: Context, cmd: abi.HwptSetDirtyTracking) -> None:
    """IOMMU_HWPT_SET_DIRTY_TRACKING. Enabling forgets what was written before."""
    refuse(cmd.flags & ~_ENABLE, "flags")
    hwpt = ctx.objects.get(cmd.hwpt_id, HwptPaging)
    _need_tracking(hwpt)
    enable = bool(cmd.flags & _ENABLE)
    if enable:
        hwpt.domain.read_dirty(Range(0, MAX), None, clear=True)
    hwpt.domain.set_dirty_tracking(enable)


def get_bitmap(ctx: Context, cmd: abi.HwptGetDirtyBitmap) -> None:
    """IOMMU_HWPT_GET_DIRTY_BITMAP: OR what was written into the program's bitmap, and clear it unless NO_CLEAR.

    The range is read up to the first hole in the map.
    """
    refuse(cmd.flags & ~_NO_CLEAR, "flags")
    refuse(cmd.reserved, "reserved")
    hwpt = ctx.objects.get(cmd.hwpt_id, HwptPaging)
    window = _window(ctx, hwpt, cmd)
    _need_tracking(hwpt)
    lg2 = (cmd.page_size & -cmd.page_size).bit_length() - 1
    bitmap = Bitmap(ctx.caller, cmd.data, window, lg2)
    for piece in hwpt.ioas.map.pieces(window.first, window.last):
        hwpt.domain.read_dirty(Range(piece.first, piece.last), bitmap, clear=not cmd.flags & _NO_CLEAR)
    bitmap.flush()


def _window(ctx: Context, hwpt: HwptPaging, cmd: abi.HwptGetDirtyBitmap) -> Range:
    if not cmd.length and not ctx.kernel.dirty_bitmap_empty_overflows:
        raise UapiError(EINVAL, "length 0")
    # Length 0 counts as 2**64, which only iova 0 has room for.
    last = cmd.iova + (cmd.length - 1 & MAX)
    if last > MAX:
        raise UapiError(EOVERFLOW, f"iova {cmd.iova:#x} + length {cmd.length:#x} wraps")
    alignment = hwpt.ioas.map.alignment
    if (cmd.iova | (last + 1)) & (alignment - 1):
        raise UapiError(EINVAL, f"{cmd.iova:#x}..{last:#x} is not aligned to {alignment:#x}")
    # As the kernel does: a page_size that is no power of two is a mask like any other.
    if not cmd.page_size or (cmd.iova | (last + 1)) & (cmd.page_size - 1):
        raise UapiError(EINVAL, f"{cmd.iova:#x}..{last:#x} is not a multiple of page_size {cmd.page_size:#x}")
    return Range(cmd.iova, last)


def _need_tracking(hwpt: HwptPaging) -> None:
    if DomainFlags.DIRTY_TRACKING not in hwpt.domain.flags:
        raise UapiError(EOPNOTSUPP, f"HWPT {hwpt.id} was made without DIRTY_TRACKING")
