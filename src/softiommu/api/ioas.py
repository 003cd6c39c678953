"""I/O address spaces and the mappings in them."""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import TYPE_CHECKING

from softiommu.abi import iommufd as abi

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from softiommu.api.iommufd import Iommufd

_RANGE = Struct("<QQ")
_FIXED = int(abi.IoasMapFlags.FIXED_IOVA)
_RIGHTS = {
    (read, write): read * int(abi.IoasMapFlags.READABLE) | write * int(abi.IoasMapFlags.WRITEABLE)
    for read in (False, True)
    for write in (False, True)
}


class Mapping:
    """`length` bytes at `iova` of an address space. As a context manager it unmaps at the end; dropped, it does not."""

    __slots__ = ("ioas", "iova", "length")

    def __init__(self, ioas: Ioas, iova: int, length: int) -> None:
        self.ioas, self.iova, self.length = ioas, iova, length

    @property
    def last(self) -> int:
        """The I/O address of the last byte."""
        return self.iova + self.length - 1

    def unmap(self) -> None:
        """Take it out of the address space."""
        self.ioas.unmap(self.iova, self.length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.unmap()

    def __repr__(self) -> str:
        return f"<Mapping {self.iova:#x}..{self.last:#x} of IOAS {self.ioas.id}>"


class Ioas:
    """An I/O address space. As a context manager it is destroyed at the end."""

    def __init__(self, iommufd: Iommufd, id: int) -> None:
        self.iommufd, self.id = iommufd, id
        self._call = iommufd.backend.call
        self._buffers = iommufd.buffers.setdefault(id, {})

    def map(
        self,
        buffer: object,
        length: int | None = None,
        iova: int | None = None,
        *,
        read: bool = True,
        write: bool = True,
    ) -> Mapping:
        """Map memory of this process for devices, at `iova` or where there is room.

        `buffer` is a writable buffer (mmap, bytearray, NumPy array) or an address with a `length` in bytes. The buffer
        is kept alive and in place until it is unmapped, whatever becomes of what is returned. `read` and `write` say
        what devices may do.
        """
        address, keep = (buffer, None) if isinstance(buffer, int) else _address(buffer)
        if length is None:
            length = ctypes.sizeof(keep) if keep is not None else 0
        flags = _RIGHTS[read, write] | (_FIXED if iova is not None else 0)
        cmd = abi.IoasMap(40, flags, self.id, 0, address, length, iova or 0)
        self._call("IOAS_MAP", abi.IOAS_MAP, cmd)
        return self._mapped(cmd.iova, length, keep)

    def map_file(
        self, fd: int, start: int, length: int, iova: int | None = None, *, read: bool = True, write: bool = True
    ) -> Mapping:
        """Map `length` bytes of a memfd (or shmem, hugetlbfs file, dma-buf) from offset `start`."""
        flags = _RIGHTS[read, write] | (_FIXED if iova is not None else 0)
        cmd = abi.IoasMapFile(40, flags, self.id, fd, start, length, iova or 0)
        self._call("IOAS_MAP_FILE", abi.IOAS_MAP_FILE, cmd)
        return self._mapped(cmd.iova, length, None)

    def copy(self, source: Mapping, iova: int | None = None, *, read: bool = True, write: bool = True) -> Mapping:
        """Map the same pages as `source`, which may be of another address space of this iommufd."""
        flags = _RIGHTS[read, write] | (_FIXED if iova is not None else 0)
        cmd = abi.IoasCopy(40, flags, self.id, source.ioas.id, source.length, iova or 0, source.iova)
        self._call("IOAS_COPY", abi.IOAS_COPY, cmd)
        _, keep = source.ioas._buffers.get(source.iova) or (0, None)
        return self._mapped(cmd.dst_iova, source.length, keep)

    def _mapped(self, iova: int, length: int, keep: object) -> Mapping:
        self._buffers[iova] = length, keep
        return Mapping(self, iova, length)

    def unmap(self, iova: int, length: int) -> int:
        """Remove every mapping in a range that holds each whole; the bytes removed."""
        cmd = abi.IoasUnmap(24, self.id, iova, length)
        self._call("IOAS_UNMAP", abi.IOAS_UNMAP, cmd)
        buffers = self._buffers
        if buffers.get(iova, (0, None))[0] == length:
            del buffers[iova]
        else:
            for start in [start for start in buffers if iova <= start < iova + length]:
                del buffers[start]
        return cmd.length

    def unmap_all(self) -> int:
        """Remove everything; the bytes removed."""
        return self.unmap(0, 2**64 - 1)

    def ranges(self) -> list[tuple[int, int]]:
        """The inclusive ranges of I/O addresses that can be used."""
        return self._ranges()[0]

    @property
    def alignment(self) -> int:
        """What I/O addresses and lengths must be multiples of."""
        return self._ranges()[1]

    def _ranges(self) -> tuple[list[tuple[int, int]], int]:
        room = 64
        while True:
            array = ctypes.create_string_buffer(room * _RANGE.size)
            cmd = abi.IoasIovaRanges(32, self.id, room, 0, ctypes.addressof(array), 0)
            try:
                self._call("IOAS_IOVA_RANGES", abi.IOAS_IOVA_RANGES, cmd)
            except OSError:
                if cmd.num_iovas <= room:
                    raise
                room = cmd.num_iovas
                continue
            ranges = [_RANGE.unpack_from(array, n * _RANGE.size) for n in range(cmd.num_iovas)]
            return ranges, cmd.out_iova_alignment

    def allow(self, ranges: list[tuple[int, int]]) -> None:
        """Choose addresses only from these inclusive ranges; an empty list allows all."""
        array = ctypes.create_string_buffer(b"".join(_RANGE.pack(*one) for one in ranges) or b"\0")
        cmd = abi.IoasAllowIovas(24, self.id, len(ranges), 0, ctypes.addressof(array))
        self._call("IOAS_ALLOW_IOVAS", abi.IOAS_ALLOW_IOVAS, cmd)

    @property
    def large_pages(self) -> bool:
        """Whether page tables may use pages larger than the system's."""
        return bool(self._option(abi.OptionOp.GET, 0))

    @large_pages.setter
    def large_pages(self, enable: bool) -> None:
        self._option(abi.OptionOp.SET, int(enable))

    def _option(self, op: abi.OptionOp, value: int) -> int:
        cmd = abi.Option(24, abi.OptionId.HUGE_PAGES, op, 0, self.id, value)
        self._call("OPTION", abi.OPTION, cmd)
        return cmd.val64

    def destroy(self) -> None:
        """Destroy it. EBUSY while HWPTs or accesses use it."""
        self.iommufd.destroy(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return f"<Ioas {self.id}>"


def _address(buffer: object) -> tuple[int, ctypes.Array[ctypes.c_char]]:
    """The address of a writable buffer, and an export that keeps it in place."""
    size = memoryview(buffer).nbytes  # type: ignore[arg-type]  # raises TypeError for what is no buffer
    keep = (ctypes.c_char * size).from_buffer(buffer)  # type: ignore[arg-type]  # likewise
    return ctypes.addressof(keep), keep
