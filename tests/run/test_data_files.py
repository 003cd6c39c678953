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


def test_vectors_at_an_offset_are_served_buffer_by_buffer(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/vfio/devices/vfio8", os.O_RDWR)
at = 1 << 40
os.dup2(fd, 60)
for device in (fd, 60):
    buffers = [bytearray(2), bytearray(0), bytearray(5)]
    print(os.pwritev(device, [b"abc", b"defg"], at), os.preadv(device, buffers, at), buffers[0], buffers[2])
    print(os.pwritev(device, [b"XY"], at + 2, os.RWF_HIPRI), os.preadv(device, buffers[:1], at + 1), buffers[0])
    print(error(os.preadv, device, buffers, at, os.RWF_NOWAIT), error(os.pwritev, device, [b"."], at, os.RWF_DSYNC))
queue = os.open("/dev/vfio/devices/vfio7", os.O_RDWR)
print(os.pwritev(queue, [b"12345678"], 16), os.read(queue, 8))
print(error(os.preadv, fd, [bytearray(1)], -5), error(os.pwritev, fd, [b""], -2))
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
place = ctypes.create_string_buffer(8)
vector = struct.pack("QQ", ctypes.addressof(place), 8)
at_position = [queue, vector, 1, ctypes.c_long(-1), 0, 0]
os.pwrite(queue, b".", 17)
print(libc.syscall(327, *at_position), place.raw, libc.syscall(328, *at_position), os.read(queue, 8))
""")
    assert result.out.splitlines()[:3] == [
        "7 7 bytearray(b'ab') bytearray(b'cdefg')",
        "2 2 bytearray(b'bX')",
        "ENOTSUP ENOTSUP",
    ]
    assert result.out.splitlines()[3:6] == result.out.splitlines()[:3]
    assert result.out.splitlines()[6:] == [
        f"8 {(16).to_bytes(8, 'little')!r}",
        "EINVAL EINVAL",
        f"8 {(17).to_bytes(8, 'little')!r} 8 {(17).to_bytes(8, 'little')!r}",
    ]


def test_a_device_is_neither_cut_nor_extended_nor_emptied(supervise: Runner) -> None:
    result = supervise.python("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/vfio/devices/vfio8", os.O_RDWR)
view = mmap.mmap(fd, 4096, offset=1 << 40)
view[:6] = b"intact"
address = ctypes.addressof(ctypes.c_char.from_buffer(view))
os.dup2(fd, 60)
for device in (fd, 60):
    print(error(os.ftruncate, device, 0), error(os.posix_fallocate, device, 0, 1 << 41), bytes(view[:6]))
link = f"/proc/self/fd/{fd}"
print(error(os.truncate, link, 0), error(os.truncate, "/dev/vfio/devices/vfio8", 0), error(os.truncate, "/dev/vfio", 0))
host = os.open("/dev/zero", os.O_RDWR)
print(*(error(os.sendfile, *pair, at, 4) for pair, at in (((host, fd), 1 << 40), ((fd, host), 0), ((fd, host), None))))
print(error(os.copy_file_range, fd, host, 4, 1 << 40), error(os.splice, fd, os.pipe()[1], 4, 1 << 40), bytes(view[:6]))
print(libc.madvise(ctypes.c_void_p(address), 4096, 9), errno.errorcode[ctypes.get_errno()], bytes(view[:6]))
own = os.memfd_create("own")
os.ftruncate(own, 4096)
os.posix_fallocate(own, 0, 8192)
mine = mmap.mmap(own, 8192)
mine[:4] = b"gone"
print(libc.madvise(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mine))), 4096, 9), bytes(mine[:4]))
print(os.fstat(own).st_size)
""")
    assert (
        result.out
        == "EINVAL ENODEV b'intact'\n" * 2
        + ("EINVAL EINVAL EISDIR\nEINVAL EINVAL EINVAL\nEINVAL EINVAL b'intact'\n")
        + "-1 ENODEV b'intact'\n0 b'\\x00\\x00\\x00\\x00'\n8192\n"
    )


def test_a_device_has_no_position_to_set_and_none_is_read_behind_our_back(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/vfio/devices/vfio8", os.O_RDWR)
print([error(os.lseek, fd, 0, whence) for whence in (0, 1, 2)], error(os.lseek, fd, 1 << 40, 0))
low, sent = socket.socketpair()
socket.send_fds(low, [b"."], [fd])
received = socket.recv_fds(sent, 1, 1)[1][0]
print(received < 896, error(os.read, received, 4), error(os.write, received, b"1234"))
print(error(os.lseek, received, 1 << 40, 0))
iommufd = os.open("/dev/iommu", os.O_RDWR)
print(error(os.read, iommufd, 4), error(os.write, iommufd, b"1234"))
""")
    assert result.out == "['ESPIPE', 'ESPIPE', 'ESPIPE'] ESPIPE\nTrue EINVAL EINVAL\nESPIPE\nEINVAL EINVAL\n"


def test_a_queue_that_is_always_empty_reads_as_the_end_of_a_file(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/vfio/devices/vfio9", os.O_RDWR)
print(fd < 896, os.read(fd, 8))
""")
    assert result.out == "True b''\n"
