"""Files that are read, written and polled: event queues and devices."""

from __future__ import annotations

from run.conftest import Runner


def test_a_queue_is_read_in_its_own_way_and_polled_natively(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
queue = fcntl.ioctl(fd, NEW_QUEUE)
poll = select.poll(); poll.register(queue, select.POLLIN | select.POLLOUT)
print(queue >= 896, os.get_inheritable(queue), poll.poll(0)[0][1])
print(os.read(queue, 8), error(os.read, queue, 4))
for word in (b"message1", b"message2"):
    fcntl.ioctl(fd, QUEUE, word)
print(poll.poll(0)[0][1], os.read(queue, 100), poll.poll(0)[0][1], os.read(queue, 8), poll.poll(0)[0][1])
os.write(queue, b"answered")
print(poll.poll(0)[0][1], os.readv(queue, [bytearray(8), bytearray(8)]), poll.poll(0)[0][1])
""")
    assert result.out == "True False 4\nb'' EINVAL\n5 b'message1' 5 b'message2' 4\n5 8 4\n"


def test_a_wait_for_a_queue_ends_when_another_thread_fills_it(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
queue = fcntl.ioctl(fd, NEW_QUEUE)
threading.Timer(0.1, lambda: fcntl.ioctl(fd, QUEUE, b"message1")).start()
print(select.select([queue], [], [], 10)[0] == [queue], os.read(queue, 8))
""")
    assert result.out == "True b'message1'\n"


def test_copies_of_a_queue_stay_in_the_high_range(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
queue = fcntl.ioctl(fd, NEW_QUEUE)
copies = [os.dup(queue), fcntl.fcntl(queue, fcntl.F_DUPFD, 3), fcntl.fcntl(queue, fcntl.F_DUPFD_CLOEXEC, 950)]
print([copy - queue for copy in copies], os.get_inheritable(copies[1]), os.get_inheritable(copies[2]))
for copy in copies:
    fcntl.ioctl(fd, QUEUE, b"message1")
    print(os.read(copy, 8))
os.close(queue)
fcntl.ioctl(fd, QUEUE, b"message1")
print(os.read(copies[0], 8))
""")
    assert result.out.splitlines()[0] == "[1, 2, 54] True False"
    assert result.out.splitlines()[1:] == ["b'message1'"] * 4


def test_a_device_is_read_at_an_offset_also_by_a_low_number(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/vfio/devices/vfio7", os.O_RDWR)
os.pwrite(fd, b"x", 0x70000000010)
print(os.pread(fd, 8, 0), error(os.pread, fd, 8, -5))
os.dup2(fd, 60)
os.pwrite(60, b"x", 0x70000000011)
print(os.pread(60, 8, 0x70000000000))
""")
    expected = [(0x70000000010).to_bytes(8, "little"), (0x70000000011).to_bytes(8, "little")]
    assert result.out == f"{expected[0]!r} EINVAL\n{expected[1]!r}\n"


def test_a_device_is_mapped_natively_and_read_by_us(supervise: Runner) -> None:
    result = supervise.python("""
import stat
fd = os.open("/dev/vfio/devices/vfio8", os.O_RDWR)
view = mmap.mmap(fd, 4096, offset=1 << 40)
view[:6] = b"native"
print(fd >= 896, os.pread(fd, 6, 1 << 40), os.pwrite(fd, b"told", (1 << 40) + 6), bytes(view[:10]))
print(error(mmap.mmap, fd, 4096), stat.S_ISCHR(os.fstat(fd).st_mode))
os.close(fd)
""")
    assert result.out == "True b'native' 4 b'nativetold'\nEINVAL True\n"


def test_a_descriptor_open_for_reading_cannot_be_written(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/vfio/devices/vfio7", os.O_RDONLY)
print(error(os.write, fd, b"12345678"), os.read(fd, 8))
other = os.open("/dev/vfio/devices/vfio7", os.O_WRONLY)
print(os.write(other, b"12345678"), error(os.read, other, 8))
""")
    assert result.out == "EBADF b''\n8 EBADF\n"


def test_bad_buffers_of_a_queue_fault_and_keep_the_message(supervise: Runner) -> None:
    result = supervise.python("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/iommu", os.O_RDWR)
queue = fcntl.ioctl(fd, NEW_QUEUE)
for pointer in (8, 1 << 47, (1 << 64) - 4):
    print(libc.write(queue, ctypes.c_void_p(pointer), 8), errno.errorcode[ctypes.get_errno()])
print(libc.writev(queue, ctypes.c_void_p(8), 1), errno.errorcode[ctypes.get_errno()])
print(libc.writev(queue, ctypes.c_void_p(8), 1025), errno.errorcode[ctypes.get_errno()])
""")
    assert result.out == "-1 EFAULT\n" * 4 + "-1 EINVAL\n"
