"""copy_from_user and copy_to_user of one task, fast where the page was seen to allow it.

process_vm_readv respects page protection but takes 3 us in the middle of a call; an open /proc/TID/mem takes 1.6 us and
ignores protection. So the first access to a page goes the exact way, and later ones the fast way until the program may
have taken the permission back: the filter tells of mprotect and of fixed mappings that do not allow both reading and
writing, and of exec. (A page under shmat(SHM_RDONLY) at the same address is not noticed.)
"""

from __future__ import annotations

import os

from softiommu.memory.process import ProcessCopier

_PAGE_LG2 = 12
_MOST_PAGES = 1024


class TaskCopier:
    """The memory of one task."""

    def __init__(self, exact: ProcessCopier, tid: int, folder: int) -> None:
        self._exact, self._tid, self._folder = exact, tid, folder
        self._mem = -1
        self._readable: set[int] = set()
        self._writable: set[int] = set()

    def read(self, va: int, length: int) -> bytes:
        """`length` bytes at `va`. EFAULT unless all can be read."""
        page = va >> _PAGE_LG2
        if page in self._readable and (va + length - 1) >> _PAGE_LG2 == page:
            try:
                data = os.pread(self._mem, length, va)
                if len(data) == length:
                    return data
            except OSError:
                pass  # not there any more: the exact way says so
            self.forget()
        data = self._exact.read(self._tid, va, length)
        self._note(self._readable, page)
        return data

    def write(self, va: int, data: bytes) -> None:
        """Store `data` at `va`. EFAULT unless all could be stored."""
        page = va >> _PAGE_LG2
        if page in self._writable and (va + len(data) - 1) >> _PAGE_LG2 == page:
            try:
                if os.pwrite(self._mem, data, va) == len(data):
                    return
            except OSError:
                pass  # not there any more: the exact way says so
            self.forget()
        self._exact.write(self._tid, va, data)
        if data:
            self._note(self._writable, page)

    def _note(self, pages: set[int], page: int) -> None:
        """The first page of an access allows it."""
        if self._mem < 0:
            try:
                self._mem = os.open("mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=self._folder)
            except OSError:
                return
        if len(pages) >= _MOST_PAGES:
            pages.clear()
        pages.add(page)

    def forget(self) -> None:
        """Permissions, or the address space itself, may have changed."""
        self._readable.clear()
        self._writable.clear()
        if self._mem >= 0:
            os.close(self._mem)
            self._mem = -1
