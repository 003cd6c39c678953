"""Hardware page tables."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from softiommu.abi.struct import UserStruct
    from softiommu.api.iommufd import Iommufd


class Hwpt:
    """A hardware page table: paging (on an IOAS) or nested. As a context manager it is destroyed at the end."""

    def __init__(self, iommufd: Iommufd, id: int) -> None:
        self.iommufd, self.id = iommufd, id

    def track_dirty(self, enable: bool = True) -> None:
        """Start (from a clean state) or stop recording which pages devices write."""
        cmd = abi.HwptSetDirtyTracking(16, int(enable), self.id, 0)
        self.iommufd.backend.call("HWPT_SET_DIRTY_TRACKING", abi.HWPT_SET_DIRTY_TRACKING, cmd)

    def dirty(self, iova: int, length: int, page_size: int = 4096, *, clear: bool = True) -> list[int]:
        """The I/O addresses of the pages of `page_size` bytes in the range that devices wrote."""
        pages = -(-length // page_size)
        bitmap = ctypes.create_string_buffer(-(-pages // 64) * 8)
        flags = 0 if clear else int(abi.GetDirtyBitmapFlags.NO_CLEAR)
        cmd = abi.HwptGetDirtyBitmap(48, self.id, flags, 0, iova, length, page_size, ctypes.addressof(bitmap))
        self.iommufd.backend.call("HWPT_GET_DIRTY_BITMAP", abi.HWPT_GET_DIRTY_BITMAP, cmd)
        bits = int.from_bytes(bitmap.raw, "little")
        written = []
        while bits:
            low = bits & -bits
            written.append(iova + (low.bit_length() - 1) * page_size)
            bits ^= low
        return written

    def invalidate(self, data_type: int, entries: list[UserStruct]) -> int:
        """Tell the IOMMU what a guest changed; how many entries were carried out (see `invalidate`)."""
        return invalidate(self.iommufd, self.id, data_type, entries)

    def destroy(self) -> None:
        """Destroy it. EBUSY while it is attached or has children."""
        self.iommufd.destroy(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return f"<Hwpt {self.id}>"


def invalidate(iommufd: Iommufd, id: int, data_type: int, entries: list[UserStruct]) -> int:
    """IOMMU_HWPT_INVALIDATE on a nested HWPT or a vIOMMU: the number of entries carried out.

    When one is refused the OSError has the number of those before it as its attribute `handled`. What an entry hears of
    itself (`out_...`) is in it then.
    """
    raw = b"".join(entry.to_bytes() for entry in entries)
    array = ctypes.create_string_buffer(raw or b"\0")
    length = entries[0].SIZE if entries else 0
    cmd = abi.HwptInvalidate(32, id, ctypes.addressof(array), data_type, length, len(entries), 0)
    try:
        iommufd.backend.call("HWPT_INVALIDATE", abi.HWPT_INVALIDATE, cmd)
    except OSError as error:
        error.handled = cmd.entry_num  # type: ignore[attr-defined]  # an attribute that only this call's error has
        raise
    finally:
        _hear(entries, array.raw)
    return cmd.entry_num


def _hear(entries: list[UserStruct], raw: bytes) -> None:
    """Take over what was written into the entries."""
    written = [field for field in entries[0].FIELDS if field.startswith("out_")] if entries else []
    if written:
        for number, entry in enumerate(entries):
            answer = type(entry).from_bytes(raw, number * entry.SIZE)
            for field in written:
                setattr(entry, field, getattr(answer, field))
