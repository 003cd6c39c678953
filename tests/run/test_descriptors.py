"""A descriptor of ours behaves as the kernel's: copies, fork, exec, passing, the last close."""

from __future__ import annotations

import sys

import pytest

from run.conftest import Runner


def test_an_opened_file_gets_the_lowest_free_number_and_the_asked_flags(supervise: Runner) -> None:
    result = supervise.python("""
free = os.dup(0); os.close(free)
fd = os.open("/dev/iommu", os.O_RDWR | os.O_NONBLOCK)
print(fd == free, os.get_inheritable(fd), fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK))
""")
    assert result.out == "True False 2050\n"


def test_copies_of_a_descriptor_are_one_file(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
copies = [fd, os.dup(fd), fcntl.fcntl(fd, fcntl.F_DUPFD, 50), os.dup2(fd, 77)]
print([fcntl.ioctl(copy, COUNT) for copy in copies])
os.close(fd)
print(error(fcntl.ioctl, fd, COUNT), fcntl.ioctl(77, COUNT))
""")
    assert result.out == "[1, 2, 3, 4]\nEBADF 5\n"
    assert result.opened == 1


def test_a_number_that_was_reused_is_not_taken_for_the_old_file(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
keep = os.dup(fd)
print(fcntl.ioctl(fd, COUNT))
os.dup2(os.open("/dev/null", os.O_RDWR), fd)
print(error(fcntl.ioctl, fd, COUNT))
other = os.open("/dev/iommu", os.O_RDWR)
os.dup2(other, fd)
print(fcntl.ioctl(fd, COUNT), fcntl.ioctl(keep, COUNT))
""")
    assert result.out == "1\nENOTTY\n1 2\n"


def test_a_forked_child_shares_the_file_and_exec_closes_it(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
if os.fork() == 0:
    os._exit(fcntl.ioctl(fd, COUNT))
print(os.waitstatus_to_exitcode(os.wait()[1]), fcntl.ioctl(fd, COUNT))
code = f"import fcntl, os\\ntry: fcntl.ioctl({fd}, 0x3b80)\\nexcept OSError as e: os._exit(e.errno)\\nos._exit(99)"
if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, "-c", code])
print(os.waitstatus_to_exitcode(os.wait()[1]))
os.set_inheritable(fd, True)
if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, "-c", code])
print(os.waitstatus_to_exitcode(os.wait()[1]), fcntl.ioctl(fd, COUNT))
""")
    assert result.out == "1 2\n9\n99 4\n"


CLOSES = {
    "close": "os.close(fd)",
    "dup2 over it": "os.dup2(0, fd)",
    "exec": """
if os.fork() == 0:
    os.close(checker)
    os.execv("/bin/true", ["true"])
os.close(fd); os.wait()""",
    "exit of the only holder": """
if os.fork() == 0: os._exit(0)
os.close(fd); os.wait()""",
    "a fatal signal": """
child = os.fork()
if child == 0: signal.pause()
os.close(fd); os.kill(child, signal.SIGKILL); os.wait()""",
    "close by a process that received it": """
a, b = socket.socketpair()
child = os.fork()
if child == 0:
    os.close(fd)
    got = array.array("i", a.recvmsg(1, 100)[1][0][2])[0]
    fcntl.ioctl(got, COUNT); os.close(got); os._exit(0)
b.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
os.close(fd); os.wait()""",
    "a message that nobody received": """
a, b = socket.socketpair()
b.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
os.close(fd); a.close(); b.close()""",
    "munmap": """
view = mmap.mmap(fd, 4096, offset=4096)
os.close(fd); assert alive() == 2; view.close()""",
}


@pytest.mark.parametrize("how", CLOSES)
def test_the_last_close_is_seen_before_the_next_call(supervise: Runner, how: str) -> None:
    # ALIVE (of another open file) counts the files that are open and not released.
    code = f"""
checker = os.open("/dev/iommu", os.O_RDWR)
def alive(): return fcntl.ioctl(checker, ALIVE)
fd = os.open("/dev/iommu", os.O_RDWR)
assert fcntl.ioctl(fd, COUNT) == 1 and alive() == 2
{CLOSES[how]}
print(alive())
"""
    assert supervise.python(code).out == "1\n"


def test_two_hundred_forks_share_one_descriptor(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
children = []
for _ in range(200):
    child = os.fork()
    if child == 0:
        fcntl.ioctl(fd, COUNT); os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
print(fcntl.ioctl(fd, COUNT))
""")
    assert (result.out, result.opened, result.ioctls) == ("201\n", 1, 201)


def test_many_descriptors_and_processes_do_not_pile_up_in_the_supervisor(supervise: Runner) -> None:
    result = supervise.python("""
import ctypes
area = mmap.mmap(-1, 4096); va = ctypes.addressof(ctypes.c_char.from_buffer(area))
fd = os.open("/dev/iommu", os.O_RDWR)
def open_in_supervisor(): return len(os.listdir(f"/proc/{os.getppid()}/fd"))
for number in range(100, 400):
    os.dup2(fd, number); fcntl.ioctl(number, COUNT); os.close(number)
for _ in range(100):
    if os.fork() == 0:
        fcntl.ioctl(fd, PIN, bytearray(struct.pack("QQ", va, 4096)))
        fcntl.ioctl(fd, UNPIN, bytearray(16)); os._exit(0)
    os.wait()
print(open_in_supervisor() < 600, fcntl.ioctl(fd, COUNT))
""")
    assert result.out == "True 501\n"


def test_a_full_table_gives_emfile_and_leaves_nothing(supervise: Runner) -> None:
    result = supervise.python("""
import resource
fd = os.open("/dev/iommu", os.O_RDWR)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
taken = []
try:
    while True: taken.append(os.dup(0))
except OSError: pass
print(error(os.open, "/dev/iommu", os.O_RDWR), error(fcntl.ioctl, fd, NEW_QUEUE), fcntl.ioctl(fd, ALIVE))
os.close(taken.pop())
print(os.open("/dev/iommu", os.O_RDWR) == 39)
""")
    assert result.out == "EMFILE EMFILE 1\nTrue\n"
    # The failed open and the failed queue were made, and undone.
    assert result.opened == 4


def test_mmap_is_checked_and_then_shows_the_pages(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
print(error(mmap.mmap, fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ, 0, 4096), error(mmap.mmap, fd, 4096))
print(fcntl.ioctl(fd, MAPPED))
view = mmap.mmap(fd, 4000, offset=4096)
print(bytes(view[:11]), fcntl.ioctl(fd, MAPPED))
view.close()
print(fcntl.ioctl(fd, MAPPED))
""")
    assert result.out == "EINVAL EINVAL\n0\nb'second page' 1\n0\n"


def test_a_file_of_ours_is_known_when_a_call_names_it_by_number(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
queue = fcntl.ioctl(fd, NEW_QUEUE)
print([fcntl.ioctl(fd, FILE_OF, n) for n in (fd, queue, 0)], error(fcntl.ioctl, fd, FILE_OF, 555))
""")
    assert result.out == "[1, 2, 3] EBADF\n"


def test_kvm_is_told_of_our_files_without_the_hosts_kvm(supervise: Runner) -> None:
    result = supervise.python("""
import ctypes
fd = os.open("/dev/iommu", os.O_RDWR)
null = os.open("/dev/null", os.O_RDWR)
def attribute(group, descriptor):
    number = ctypes.c_int(descriptor)
    return error(fcntl.ioctl, null, 0x4018AEE1, struct.pack("IIQQ", 0, group, 1, ctypes.addressof(number)))
print(attribute(1, fd), attribute(1, null), attribute(2, fd))
""")
    assert result.out == "no error ENOTTY ENOTTY\n"


def test_a_limit_without_high_numbers_is_told(supervise: Runner) -> None:
    result = supervise.python("""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
fd = os.open("/dev/iommu", os.O_RDWR)
print(fcntl.ioctl(fd, NEW_QUEUE) == fd + 1)
""")
    assert result.out == "True\n"
    assert "ulimit -n" in result.err


def test_a_program_that_ends_by_itself_leaves_no_file(supervise: Runner) -> None:
    code = "import os, signal; os.open('/dev/iommu', os.O_RDWR); os.kill(os.getpid(), signal.SIGKILL)"
    result = supervise.program([sys.executable, "-c", code])
    assert (result.code, result.opened, result.released) == (137, 1, 1)
