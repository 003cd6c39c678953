"""A process's memory by its number: our own, a child's, private and shared."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EFAULT
from pathlib import Path

import pytest

from softiommu.errors import UapiError
from softiommu.memory.process import AddressMap, ProcessCopier, ProcessMm
from softiommu.memory.shared import SharedMemory, shared_memory

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def address(area: mmap.mmap) -> int:
    """Where a mapping of ours lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def private(length: int = 4 * PAGE) -> mmap.mmap:
    """Anonymous private memory."""
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE)


def protect(area: mmap.mmap, offset: int, prot: int) -> None:
    """mprotect one page."""
    assert _libc.mprotect(ctypes.c_void_p(address(area) + offset), PAGE, prot) == 0


@pytest.fixture
def mm() -> ProcessMm:
    """Our own address space."""
    return ProcessMm(os.getpid())


@contextmanager
def child() -> Iterator[int]:
    """A process with a copy of our memory, that waits until it is killed."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_copy_moves_any_length_across_pages() -> None:
    copier, area = ProcessCopier(), private(1 << 18)
    data = os.urandom(200_000)
    copier.write(os.getpid(), address(area) + 5, data)
    assert copier.read(os.getpid(), address(area) + 5, len(data)) == data == area[5 : 5 + len(data)]
    assert copier.read(os.getpid(), 0, 0) == b""


def test_a_copy_that_meets_a_forbidden_page_faults() -> None:
    copier, area = ProcessCopier(), private()
    protect(area, PAGE, mmap.PROT_READ)
    protect(area, 2 * PAGE, 0)
    start = address(area)
    assert copier.read(os.getpid(), start + PAGE - 4, 8) == bytes(8)
    for failing in (
        lambda: copier.write(os.getpid(), start + PAGE - 4, b"12345678"),
        lambda: copier.read(os.getpid(), start + 2 * PAGE - 4, 8),
        lambda: copier.read(os.getpid(), 0, 8),
        lambda: copier.read(os.getpid(), 2**64 - 4, 8),
    ):
        with pytest.raises(UapiError) as failure:
            failing()
        assert failure.value.errno == EFAULT
    assert area[PAGE - 4 : PAGE] == b"1234"


def test_private_memory_is_one_extent_by_address(mm: ProcessMm) -> None:
    area = private()
    [extent] = mm.extents(address(area) + PAGE, 2 * PAGE, write=True)
    assert (extent.offset, extent.length) == (address(area) + PAGE, 2 * PAGE)
    assert extent.backing.key == mm.key
    extent.backing.write(extent.offset + 10, b"device")
    assert area[PAGE + 10 : PAGE + 16] == b"device"
    assert extent.backing.read(extent.offset + 10, 6) == b"device"


def test_shared_memory_is_an_extent_by_file_offset(mm: ProcessMm) -> None:
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 8 * PAGE)
    area = mmap.mmap(memory, 4 * PAGE, offset=2 * PAGE)
    [extent] = mm.extents(address(area) + PAGE, PAGE, write=True)
    assert extent.offset == 3 * PAGE
    known = shared_memory(memory)
    assert known is extent.backing
    os.close(memory)
    area.close()
    extent.backing.write(extent.offset, b"still there")
    assert extent.backing.read(3 * PAGE, 11) == b"still there"
    assert extent.backing.alive


def test_neighbours_of_one_file_become_one_extent(mm: ProcessMm) -> None:
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 4 * PAGE)
    area = mmap.mmap(memory, 4 * PAGE)
    protect(area, PAGE, mmap.PROT_READ)
    assert [e.length for e in mm.extents(address(area), 4 * PAGE, write=False)] == [4 * PAGE]
    with pytest.raises(UapiError):
        mm.extents(address(area), 4 * PAGE, write=True)


def test_pages_past_the_end_of_their_file_cannot_be_pinned(mm: ProcessMm) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE + 1)
        areas = [mmap.mmap(file.fileno(), PAGE + 1, flags=flags) for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED)]
        for area in areas:
            start = address(area)
            mm.extents(start, 2 * PAGE, write=False)
        os.ftruncate(file.fileno(), PAGE)
        for area in areas:
            with pytest.raises(UapiError, match=r"not there|passes the end"):
                mm.extents(address(area), 2 * PAGE, write=False)


def test_a_shared_file_of_a_disk_is_not_pinned_for_writing(mm: ProcessMm, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file:
        if shared_memory(file.fileno()) is not None:
            pytest.skip("the temporary folder is memory")
        area = mmap.mmap(file.fileno(), PAGE)
        mm.extents(address(area), PAGE, write=False)
        with pytest.raises(UapiError, match="disk"):
            mm.extents(address(area), PAGE, write=True)


def test_a_private_page_of_a_file_is_the_programs_own_once_pinned(mm: ProcessMm, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before" + bytes(PAGE - 6))
    with path.open("r+b") as file:
        area = mmap.mmap(file.fileno(), PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        start = int(
            next(line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line)[:12], 16
        )
        [extent] = mm.extents(start, PAGE, write=False)
        file.write(b"after!")
        file.flush()
        assert extent.backing.read(start, 6) == b"before"
        assert area[:6] == b"before"


def test_special_mappings_cannot_be_pinned(mm: ProcessMm) -> None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(("[vvar]", "[vsyscall]")):
            with pytest.raises(UapiError):
                mm.extents(int(line.split("-")[0], 16), PAGE, write=False)


def test_the_memory_of_a_process_that_is_gone_faults_unless_it_was_kept() -> None:
    area = private()
    area[:4] = b"mine"
    start = address(area)
    with child() as pid:
        kept, lost = ProcessMm(pid), ProcessMm(pid)
        for one in (kept, lost):
            one.extents(start, 2 * PAGE, write=True)
            one.set_locked(2, 0)
        area[:4] = b"ours"
        assert lost.private.read(start, 4) == b"mine"
        assert kept.private.keep(2 * PAGE)
        assert not kept.private.keep(PAGE)
    assert not lost.private.alive
    for failing in (
        lambda: lost.private.read(start, 4),
        lambda: lost.private.write(start, b"1"),
        lambda: lost.extents(start, PAGE, write=False),
    ):
        with pytest.raises(UapiError, match="gone"):
            failing()
    assert kept.private.read(start, 2 * PAGE) == b"mine" + bytes(2 * PAGE - 4)
    kept.private.write(start + PAGE - 2, b"edge")
    assert kept.private.read(start + PAGE - 2, 4) == b"edge"
    with pytest.raises(UapiError):
        kept.private.read(start + 2 * PAGE, 1)
    kept.set_locked(0, 0)
    with pytest.raises(UapiError):
        kept.private.read(start, 1)


def test_nothing_is_kept_once_nothing_is_pinned(mm: ProcessMm) -> None:
    area = private()
    mm.extents(address(area), PAGE, write=True)
    mm.extents(address(area) + PAGE, PAGE, write=True)
    assert mm.private.given.ranges == [(address(area), address(area) + 2 * PAGE)]
    mm.set_locked(0, 0)
    assert mm.private.given.ranges == []


def test_mappings_are_the_same_by_query_and_by_text() -> None:
    query, text = AddressMap(os.getpid()), AddressMap(os.getpid())
    text._can_query = False
    area = private()
    for va in (address(area), ctypes.addressof(ctypes.create_string_buffer(8)), 0, 2**47):
        assert query.find(va) == text.find(va)


def test_a_file_that_shrank_faults_and_is_not_grown() -> None:
    memory = os.memfd_create("guest")
    os.ftruncate(memory, PAGE)
    shared = SharedMemory(memory)
    os.ftruncate(memory, 10)
    for failing in (lambda: shared.read(8, 4), lambda: shared.write(8, b"1234")):
        with pytest.raises(UapiError, match="passes the end"):
            failing()
    assert shared.size == 10


def test_a_file_without_write_is_written_through_a_mapping() -> None:
    # hugetlbfs has no write(2); any memory file shows the way round it.
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 2 * PAGE)
    shared = SharedMemory(memory)
    shared._write_mapped(PAGE - 2, b"1234")
    assert shared.read(PAGE - 2, 4) == b"1234"
    os.ftruncate(memory, PAGE)
    with pytest.raises(UapiError, match="refuses"):
        shared._write_mapped(PAGE, b"1")
