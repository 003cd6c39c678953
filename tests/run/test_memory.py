"""What devices see of a supervised program's memory, and what the program sees of its own pins."""

from __future__ import annotations

from run.conftest import Runner

HELPERS = """
import ctypes
fd = os.open("/dev/iommu", os.O_RDWR)
def address(area): return ctypes.addressof(ctypes.c_char.from_buffer(area))
def pin(va, length): return fcntl.ioctl(fd, PIN, bytearray(struct.pack("QQ", va, length)))
buffer = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE)
def peek(length):
    fcntl.ioctl(fd, PEEK, struct.pack("QQ", address(buffer), length))
    return buffer[:length]
def poke(data):
    buffer[: len(data)] = data
    fcntl.ioctl(fd, POKE, struct.pack("QQ", address(buffer), len(data)))
"""


def test_devices_read_and_write_private_memory(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
area = mmap.mmap(-1, 16384, flags=mmap.MAP_PRIVATE)
print(pin(address(area) + 4096, 8192))
area[4096:4101] = b"early"
print(peek(5)); poke(b"device"); print(area[4096:4102])
"""
    )
    assert result.out == "1\nb'early'\nb'device'\n"


def test_a_hole_or_a_forbidden_page_cannot_be_pinned(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
libc = ctypes.CDLL(None)
area = mmap.mmap(-1, 16384, flags=mmap.MAP_PRIVATE)
libc.mprotect(ctypes.c_void_p(address(area) + 4096), 4096, mmap.PROT_READ)
print(error(pin, 1 << 31, 4096), error(pin, address(area), 8192), pin(address(area) + 8192, 4096))
libc.munmap(ctypes.c_void_p(address(area) + 12288), 4096)
print(error(pin, address(area) + 8192, 8192))
"""
    )
    assert result.out == "EFAULT EFAULT 1\nEFAULT\n"


def test_shared_memory_stays_after_munmap_and_exit(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
if os.fork() == 0:
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 8192)
    area = mmap.mmap(memory, 8192)
    area[4096:4102] = b"shared"
    pin(address(area) + 4096, 4096)
    os._exit(0)
os.wait()
print(peek(6)); poke(b"writes"); print(peek(6))
"""
    )
    assert result.out == "b'shared'\nb'writes'\n"


def test_private_memory_of_a_process_that_exited_is_read_as_it_was(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
if os.fork() == 0:
    area = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE)
    pin(address(area), 8192)
    area[:5] = b"mine!"
    os._exit(0)
os.wait()
print(peek(5)); poke(b"later"); print(peek(5))
"""
    )
    assert result.out == "b'mine!'\nb'later'\n"


def test_an_exec_gives_a_new_address_space(supervise: Runner) -> None:
    code = """
import fcntl, mmap, ctypes, struct
area = mmap.mmap(-1, 4096)
print(fcntl.ioctl({fd}, 0x3b86, bytearray(struct.pack("QQ", ctypes.addressof(ctypes.c_char.from_buffer(area)), 4096))))
area[:3] = b"new"; fcntl.ioctl({fd}, 0x3b88, struct.pack("QQ", ctypes.addressof(ctypes.c_char.from_buffer(area)), 3))
"""
    result = supervise.python(
        HELPERS
        + f"""
area = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE)
pin(address(area), 4096)
error(os.execv, "/nonexistent", ["x"])
print(peek(1))
os.set_inheritable(fd, True); sys.stdout.flush()
os.execv(sys.executable, [sys.executable, "-c", {code!r}.format(fd=fd)])
"""
    )
    assert result.out == "b'\\x00'\n1\n"


def test_pinned_pages_show_in_status(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
def lines(path): return [line.split()[1] for line in open(path) if line.startswith(("VmLck", "VmPin"))]
print(lines("/proc/self/status"), flush=True)
area = mmap.mmap(-1, 16384, flags=mmap.MAP_PRIVATE)
pin(address(area), 12288)
for path in ("self", "thread-self", os.getpid(), f"self/task/{os.getpid()}"):
    print(lines(f"/proc/{path}/status"), flush=True)
if os.fork() == 0:
    print(lines("/proc/self/status"), lines(f"/proc/{os.getppid()}/status"), flush=True); os._exit(0)
os.wait()
fcntl.ioctl(fd, UNPIN, struct.pack("QQ", 0, 0))
print(lines("/proc/self/status"))
"""
    )
    assert result.out == "['0', '0']\n" + "['8', '12']\n" * 4 + "['0', '0'] ['8', '12']\n['0', '0']\n"


def test_ioctl_arguments_respect_page_protection(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 12288, flags=mmap.MAP_PRIVATE)
start = address(area)
libc.mprotect(ctypes.c_void_p(start + 4096), 4096, mmap.PROT_READ)
libc.mprotect(ctypes.c_void_p(start + 8192), 4096, 0)
def call(va): return libc.ioctl(fd, ECHO, ctypes.c_void_p(va)), errno.errorcode.get(ctypes.get_errno())
for va in (start, start + 4092, start + 4094, start + 8190, start + 8192, 0, (1 << 64) - 2):
    ctypes.set_errno(0)
    print(*call(va))
"""
    )
    assert result.out == "0 None\n0 None\n" + "-1 EFAULT\n" * 5


def test_a_permission_that_is_taken_back_is_missed_by_the_next_call(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
area = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE)
start = ctypes.c_void_p(address(area))
def call(): return libc.ioctl(fd, ECHO, start)
print(call(), call(), area[0])
libc.mprotect(start, 4096, mmap.PROT_READ); print(call(), area[0])
libc.mprotect(start, 4096, mmap.PROT_READ | mmap.PROT_WRITE); print(call(), call(), area[0])
libc.mprotect(start, 8192, 0); print(call())
libc.mprotect(start, 4096, mmap.PROT_READ | mmap.PROT_WRITE); print(call(), call(), area[0])
fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
libc.mmap(start, 4096, mmap.PROT_READ, fixed, -1, ctypes.c_long(0)); print(call())
libc.munmap(start, 4096); print(call())
"""
    )
    assert result.out == "0 0 2\n-1 2\n0 0 4\n-1\n0 0 6\n-1\n-1\n"


def test_memory_is_that_of_the_program_after_exec(supervise: Runner) -> None:
    code = "import fcntl; b = bytearray(4); b[0] = 42; fcntl.ioctl(3, 0x3b81, b); print(b[0])"
    result = supervise.python(f"""
fd = os.open("/dev/iommu", os.O_RDWR)
word = bytearray(4); fcntl.ioctl(fd, ECHO, word); fcntl.ioctl(fd, ECHO, word)
print(word[0], fd, flush=True)
os.set_inheritable(fd, True)
import subprocess
subprocess.run([sys.executable, "-c", "{code}"], close_fds=False)
fcntl.ioctl(fd, ECHO, word); print(word[0], flush=True)
os.execv(sys.executable, [sys.executable, "-c", "{code}"])
""")
    assert result.out == "2 3\n43\n3\n43\n"


def test_a_mapping_of_ours_cannot_be_pinned(supervise: Runner) -> None:
    result = supervise.python(
        HELPERS
        + """
view = mmap.mmap(fd, 4096, offset=4096)
print(error(pin, address(view), 4096))
"""
    )
    assert result.out == "EFAULT\n"


def test_the_caller_is_who_it_is(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
def who():
    buffer = bytearray(64); fcntl.ioctl(fd, WHO, buffer)
    return buffer.rstrip(b"\\0").decode()
open("/proc/self/comm", "w").write("dma_test")
print(who() == f"dma_test[{os.getpid()}] {os.getuid()} {os.getuid() == 0}", flush=True)
if os.fork() == 0:
    if os.getuid() == 0: os.setuid(65534)
    print(who().split(" ")[1:] == [str(os.getuid()), "False"], flush=True); os._exit(0)
os.wait()
""")
    assert result.out == "True\nTrue\n"
