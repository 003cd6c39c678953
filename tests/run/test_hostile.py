"""A program that means harm reaches nothing, and does not bring the supervisor down."""

from __future__ import annotations

import pytest

from run.conftest import Runner

NUMBERS = {
    "ioctl": 16, "read": 0, "write": 1, "readv": 19, "writev": 20, "pread": 17, "pwrite": 18, "dup": 32, "fcntl": 72,
    "open": 2, "openat": 257, "openat2": 437, "creat": 85, "stat": 4, "lstat": 6, "fstat": 5, "newfstatat": 262,
    "statx": 332, "access": 21, "faccessat": 269, "faccessat2": 439, "readlink": 89, "readlinkat": 267, "getcwd": 79,
    "getdents64": 217, "getxattr": 191, "listxattr": 194, "mprotect": 10,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_calls_with_arguments_of_all_kinds_are_answered(supervise: Runner, seed: int) -> None:
    result = supervise.python(f"""
import ctypes, random, tempfile
os.chdir(tempfile.mkdtemp())  # what open(O_CREAT) makes of random names stays here
chance = random.Random({seed})
libc = ctypes.CDLL(None)
libc.syscall.restype = ctypes.c_long
fd = os.open("/dev/iommu", os.O_RDWR)
queue = fcntl.ioctl(fd, NEW_QUEUE)
device = os.open("/dev/vfio/devices/vfio7", os.O_RDWR)
os.mkdir("dev"); folder = os.open("dev", os.O_RDONLY); virtual = os.open("/dev/vfio", os.O_RDONLY)
area = mmap.mmap(-1, 1 << 16); start = ctypes.addressof(ctypes.c_char.from_buffer(area))
texts = [b"/dev/iommu", b"/dev/vfio/devices/vfio7", b"iommu", b"", b"../dev/iommu/", b"/proc/self/fd/%d" % fd,
         b"devices",
         b"/sys/bus/pci/devices/0000:fd:05.0/vendor", b"\\xff" * 300, b"a/" * 2047, b"/proc/self/status",
         b"/dev/vfio/.."]
for index, text in enumerate(texts):
    area[index * 4800 : index * 4800 + len(text) + 1] = text + b"\\0"
values = [0, 1, 3, 8, 100, 4096, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 47, (1 << 63) - 1, (1 << 64) - 1,
          (1 << 64) - 100, fd, queue, device, folder, virtual, 1000,
          0x3b80, 0x3b81, 0x3b86, 0x3b8a, 0x3b8b, 0x4018aee1, 1030, 0x1000]
values += [start + index * 4800 for index in range(len(texts))] * 2 + [start + 61000, start + 65535]
before = set(os.listdir("/proc/self/fd"))
for _ in range(4000):
    number = chance.choice({list(NUMBERS.values())!r})
    args = [chance.choice(values) for _ in range(6)]
    if chance.random() < 0.5: args[0] = chance.choice([fd, queue, device, folder, virtual, (1 << 64) - 100])
    if number == 10: args[:2] = start + 61440, 4096
    if number == 72: args[1] = chance.choice([0, 1030])
    if number == 16 and chance.random() < 0.7: args[1] = 0x3b80 + chance.choice([0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 12])
    if number == 17 or number == 0 or number == 19: args[1] = chance.choice([start + 61000, 8])
    got = libc.syscall(number, *[ctypes.c_ulong(a) for a in args])
    if number in (2, 257, 437, 85, 32, 72) and got > 2: os.close(got)
    if number == 16 and args[1] & 0xffffffff == NEW_QUEUE and got > 2: os.close(got)
print(fcntl.ioctl(fd, ALIVE), set(os.listdir("/proc/self/fd")) == before)
""")
    assert result.err == ""
    assert result.out == "3 True\n"


def test_a_look_alike_of_a_descriptor_is_not_taken_for_it(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
import ctypes
same_name = os.memfd_create("pages")
print(os.stat(f"/proc/self/fd/{same_name}").st_ino != 0, error(fcntl.ioctl, same_name, COUNT), fcntl.ioctl(fd, COUNT))
""")
    assert result.out == "True ENOTTY 1\n"


def test_a_path_that_changes_under_the_supervisor_opens_one_of_the_two(supervise: Runner) -> None:
    result = supervise.python("""
import ctypes
libc = ctypes.CDLL(None)
path = ctypes.create_string_buffer(b"/dev/iommu", 64)
stop = False
def flip():
    while not stop:
        ctypes.memmove(path, b"/dev/iommu\\0", 11); ctypes.memmove(path, b"/dev/zero\\0\\0", 11)
flipper = threading.Thread(target=flip); flipper.start()
kinds = set()
for _ in range(400):
    fd = libc.open(path, os.O_RDWR)
    if fd >= 0:
        kinds.add(error(fcntl.ioctl, fd, ALIVE)); os.close(fd)
stop = True; flipper.join()
print(kinds <= {"no error", "ENOTTY"})
""")
    assert (result.err, result.out) == ("", "True\n")
