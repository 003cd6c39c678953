"""The program's side of a call: who calls, what it may do, and the memory its pointers name.

`Caller` is what the kernel calls `current`: one task at the moment of one call. `Mm` is an address space that
outlives the call, as mmgrab() keeps it: the source of the mappings made from it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from softiommu.memory.files import File

PAGE_SIZE = 4096

CAP_IPC_LOCK = 14
CAP_SYS_RAWIO = 17
CAP_SYS_RESOURCE = 24


class Backing(Protocol):
    """Memory with pages of its own: one address space's private pages, or one file's page cache."""

    @property
    def key(self) -> Hashable:
        """Equal for two views of the same pages."""
        ...

    @property
    def alive(self) -> bool:
        """False once the pages can no longer be reached."""
        ...

    def contiguous(self, offset: int, length: int) -> bool:
        """Whether these bytes lie together in physical memory: files, and large anonymous pages. Asked once."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`; EFAULT (UapiError) where there is no page. Ignores page protection, as DMA does."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`; EFAULT (UapiError) where there is no page. Ignores page protection, as DMA does."""
        ...


class Extent(NamedTuple):
    """`length` bytes of a backing from `offset`: what a range of addresses names."""

    backing: Backing
    offset: int
    length: int


class Mm(Protocol):
    """One address space, whether or not its process still lives."""

    @property
    def key(self) -> Hashable:
        """Equal for two handles of the same address space."""
        ...

    def extents(self, va: int, length: int, write: bool) -> Sequence[Extent]:
        """What `va`..`va+length` names now, page faults taken; EFAULT on a hole or where the protection forbids it."""
        ...

    def memlock_limit(self) -> int:
        """RLIMIT_MEMLOCK of the process that owns it, in bytes; 2**64 - 1 for none."""
        ...

    def set_locked(self, pinned: int, locked: int) -> None:
        """Pages that show as VmPin and VmLck of this address space (added to the real ones)."""
        ...


class Caller(Protocol):
    """The task that makes a call."""

    @property
    def name(self) -> str:
        """Command name and number, for the log: `dma_test[4711]`."""
        ...

    @property
    def uid(self) -> int:
        """The user that pays for pinned pages."""
        ...

    @property
    def mm(self) -> Mm:
        """The address space of the task."""
        ...

    def read(self, va: int, length: int) -> bytes:
        """copy_from_user: EFAULT (UapiError) unless every byte can be read."""
        ...

    def write(self, va: int, data: bytes) -> None:
        """copy_to_user: EFAULT (UapiError) unless every byte could be written."""
        ...

    def capable(self, capability: int) -> bool:
        """Whether the task has this capability (CAP_*) in its effective set."""
        ...

    def file(self, fd: int) -> File:
        """The open file of the task's descriptor `fd`, ours or the host's; EBADF (UapiError) when not open."""
        ...

    def install(self, file: File) -> int:
        """A new close-on-exec descriptor of the task for one of our files; EMFILE (UapiError) in a full table."""
        ...
