"""What is mapped at an address is found as /proc/PID/maps says it, by the kernel's answer and by its text."""

import ctypes
import mmap
import os

import pytest

from softiommu.run.trap.vmas import Mapped, Vmas


@pytest.fixture(params=["ioctl", "text"])
def vmas(request):
    found = Vmas(os.getpid())
    if request.param == "text":
        found._by_ioctl = False
    yield found
    found.close()


def test_a_byte_of_a_mapped_file_is_found_with_its_offset(vmas):
    fd = os.memfd_create("file")
    os.ftruncate(fd, 1 << 32)
    stat = os.fstat(fd)
    for start, length in ((0, 4096), (0x5000, 0x3000), ((1 << 32) - 4096, 4096)):
        memory = mmap.mmap(fd, length, offset=start)
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for inside in (0, 1, length // 2, length - 1):
            assert vmas.find(at + inside) == Mapped((stat.st_dev, stat.st_ino), start + inside)
    os.close(fd)


def test_what_is_mapped_later_is_found_and_what_is_unmapped_is_not(vmas):
    memory = mmap.mmap(-1, 4096)
    at = ctypes.addressof(cell := ctypes.c_char.from_buffer(memory))
    first = vmas.find(at)
    assert first is not None
    del cell
    memory.close()
    assert vmas.find(at) != first


def test_nothing_is_mapped_at_the_first_page(vmas):
    assert vmas.find(0x10) is None


def test_a_process_that_is_gone_has_no_mappings():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError):
        Vmas(child)
