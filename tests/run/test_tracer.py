"""A program whose accesses to a mapped BAR are carried out one by one notices nothing of it, and has its signals."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from softiommu.run.syscalls import AUDIT_ARCH
from softiommu.run.trap.accesses import Memory

#: edu0 is mapped, edu1 is read and written; what happens to one happens to the other.
PRELUDE = """
import ctypes, fcntl, mmap, os, random, signal, struct, subprocess, sys, threading, time

def bound(number):
    iommufd = os.open("/dev/iommu", os.O_RDWR)
    device = os.open(f"/dev/vfio/devices/vfio{number}", os.O_RDWR)
    fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("<IIiI", 16, 0, iommufd, 0)))
    return device

def mapped(device):
    return mmap.mmap(device, 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=region(device)[1])

def region(device, index=0):
    info = bytearray(struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(device, 0x3B6C, info)
    return struct.unpack("<4xI16xQ", info)

def flags(device):
    return region(device)[0]

TYPES = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
def cell(width, at):
    return TYPES[width].from_buffer(bar, at)

def tracer():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("TracerPid:"))

device = bound(0)
"""
IDENTIFICATION = "0x10000ed"


def command(code, *wrapper, options=()):
    run = [sys.executable, "-m", "softiommu.cli", "run", "--machine", "vtd", *options, "--"]
    return [*wrapper, *run, sys.executable, "-c", PRELUDE + code]


def run(code, *wrapper):
    return subprocess.run(
        command(code, *wrapper), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def said(code):
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_loads_and_stores_of_any_width_anywhere_do_what_pread_and_pwrite_do():
    code = """
bar, twin, chance = mapped(device), bound(1), random.Random(5)
differ = 0
for _ in range(700):
    width = chance.choice((1, 2, 4, 8))
    at = chance.choice((chance.randrange(0xA0), 8 * chance.randrange(0x14), 0x80 + 8 * chance.randrange(3), 0xFFFF8))
    value = chance.getrandbits(8 * width)
    if chance.random() < 0.4 and not at <= 0x98 < at + width:
        cell(width, at).value = value
        os.pwrite(twin, value.to_bytes(width, "little"), at)
    differ += cell(width, at).value != int.from_bytes(os.pread(twin, width, at), "little")
print(differ)
print(*(os.pread(device, 8, at) == os.pread(twin, 8, at) for at in range(0, 0xA0, 8)))
"""
    assert said(code) == ["0", *["True"] * 20]


def test_threads_made_before_and_after_are_served_at_the_same_time():
    code = """
bar, go, wrong = None, threading.Event(), []
def hammer():
    go.wait()
    for _ in range(150):
        if cell(4, 0).value != 0x10000ED:
            wrong.append(1)
early = [threading.Thread(target=hammer) for _ in range(4)]
for thread in early:
    thread.start()
bar = mapped(device)
late = [threading.Thread(target=hammer) for _ in range(4)]
for thread in late:
    thread.start()
go.set()
for thread in early + late:
    thread.join()
print(len(wrong))
"""
    assert said(code) == ["0"]


def test_children_inherit_the_mapping_and_programs_they_start_are_not_traced():
    code = """
bar = mapped(device)
for _ in range(3):
    child = os.fork()
    if not child:
        cell(4, 4).value = 5
        os._exit(7 if cell(4, 4).value == 0xFFFFFFFA and tracer() else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
asks = "print([int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('TracerPid:')][0])"
print(subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True).stdout)
print(hex(cell(4, 0).value), flush=True)
os.execv(sys.executable, [sys.executable, "-c", asks])
"""
    assert said(code) == ["7", "7", "7", "0", IDENTIFICATION, "0"]


def test_two_processes_that_map_the_same_descriptor_are_both_served():
    code = """
ours, theirs = os.pipe()
child = os.fork()
if not child:
    bar = mapped(device)
    cell(8, 0x80).value = 0x123456789ABCDEF0
    os.write(theirs, b"!")
    signal.pause()
os.read(ours, 1)
bar = mapped(device)
print(hex(cell(8, 0x80).value))
os.kill(child, signal.SIGKILL)
os.wait()
cell(8, 0x80).value += 1
print(hex(cell(8, 0x80).value))
"""
    assert said(code) == ["0x123456789abcdef0", "0x123456789abcdef1"]


def test_a_mapping_lives_on_without_its_descriptor_and_its_end_ends_the_tracing():
    code = """
bar = mapped(device)
os.close(device)
print(hex(ctypes.c_uint32.from_buffer(bar).value), tracer() == os.getppid())
bar.close()
for _ in range(500):
    if not tracer():
        break
    time.sleep(0.01)
print(tracer())
device = bound(0)
bar = mapped(device)
print(hex(cell(4, 0).value))
"""
    assert said(code) == [IDENTIFICATION, "True", "0", IDENTIFICATION]


def test_a_program_has_its_own_signals_while_it_is_traced():
    code = """
bar, ticks, buses = mapped(device), [], []
signal.signal(signal.SIGALRM, lambda number, frame: ticks.append(1))
signal.signal(signal.SIGBUS, lambda number, frame: buses.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
end, wrong = time.monotonic() + 5, 0
while len(ticks) < 20 and time.monotonic() < end:
    wrong += cell(4, 0).value != 0x10000ED
signal.setitimer(signal.ITIMER_REAL, 0)
os.kill(os.getpid(), signal.SIGBUS)
print(len(ticks) >= 20, wrong, len(buses))
"""
    assert said(code) == ["True", "0", "1"]


def test_a_bus_error_of_its_own_ends_a_program():
    code = """
bar = mapped(device)
child = os.fork()
if not child:
    own = os.memfd_create("short")
    os.ftruncate(own, 4096)
    page = mmap.mmap(own, 4096)
    os.ftruncate(own, 0)
    page[0]
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), hex(cell(4, 0).value))
"""
    assert said(code) == [str(-signal.SIGBUS), IDENTIFICATION]


def test_job_control_stops_a_traced_program_and_lets_it_go_on():
    code = """
bar = mapped(device)
child = os.fork()
if not child:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGSTOP)
        if cell(4, 0).value != 0x10000ED:
            os._exit(1)
    os._exit(0)
stops = 0
while True:
    status = os.waitpid(child, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        break
    with open(f"/proc/{child}/stat") as stat:
        state = stat.read().split()[2]
    stops += os.WSTOPSIG(status) == signal.SIGSTOP and state in "tT"
    time.sleep(0.05)
    os.kill(child, signal.SIGCONT)
print(stops, os.waitstatus_to_exitcode(status))
"""
    assert said(code) == ["3", "0"]


def test_memory_that_the_program_disables_is_a_bus_error_until_it_enables_it():
    code = """
bar, command = mapped(device), (7 << 40) + 4
os.pwrite(device, b"\\0", command)
child = os.fork()
if not child:
    cell(4, 0).value
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.pwrite(device, b"\\6", command)
print(hex(cell(4, 0).value))
"""
    done = run(code)
    assert (done.returncode, done.stdout.split()) == (0, [str(-signal.SIGBUS), IDENTIFICATION])
    assert done.stderr.endswith("of a vfio device: region 0: the memory of the device is disabled\n")


def test_code_of_random_bytes_on_the_bar_harms_nobody_but_its_process():
    code = """
bar, chance = mapped(device), random.Random(7)
at = ctypes.addressof(ctypes.c_char.from_buffer(bar))
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(
    ctypes.addressof(ctypes.c_char.from_buffer(page)))
ends = set()
for _ in range(150):
    child = os.fork()
    if not child:
        signal.alarm(2)
        # Most end at once; a prefix and [rdi] make more of them reach the BAR.
        page[:16] = (chance.randbytes(1) + chance.choice((b"\\x07", b"\\x06", b"\\x47")) + chance.randbytes(14))
        os.close(0), os.close(1), os.close(2)
        function(at, at)
        os._exit(0)
    chance.randbytes(1)
    chance.choice((1, 2, 3))
    chance.randbytes(14)
    ends.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(len(ends) > 1, hex(cell(4, 0).value))
"""
    done = run(code)
    assert done.returncode == 0
    assert done.stdout.split() == ["True", IDENTIFICATION]
    assert "bug of softiommu" not in done.stderr


@pytest.mark.parametrize("seed", range(4))
def test_a_program_killed_in_the_middle_of_an_access_leaves_nothing_behind(seed):
    loop = "bar = mapped(device)\nprint(1, flush=True)\nwhile True:\n    cell(4, 4).value = 1\n    cell(4, 0).value"
    with subprocess.Popen(command(loop), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.readline()
        time.sleep(random.Random(seed).random() / 20)
        children = f"/proc/{running.pid}/task/{running.pid}/children"
        with open(children) as file:
            program = int(file.read().split()[0])
        os.kill(program, signal.SIGKILL)
        assert running.wait(30) == -signal.SIGKILL
        assert running.stderr.read() == b""


def test_what_has_no_memory_any_more_was_killed_and_made_no_access():
    with subprocess.Popen(["sleep", "60"]) as ended:
        memory = Memory(ended.pid)
        with open(f"/proc/{ended.pid}/maps") as file:
            first = int(file.readline().split("-")[0], 16)
        held = memory.code(first)
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            memory.code(first)
        memory.close()
    assert held


def test_a_program_under_a_debugger_learns_that_the_bar_cannot_be_mapped():
    code = """
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if not child:
    libc.ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    print(flags(device), flush=True)
    try:
        mapped(device)
    except OSError as error:
        print(error.errno, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(flags(device))
"""
    done = run(code)
    assert done.stdout.split() == ["3", "22", "7"]
    assert "a BAR cannot be mapped: process" in done.stderr
    assert "already (a debugger, or strace)" in done.stderr


def test_the_log_has_a_line_for_each_trapped_access(tmp_path):
    log = tmp_path / "log"
    code = "bar = mapped(device)\nprint(region(device)[1])\ncell(4, 4).value = 5\ncell(4, 4).value"
    done = subprocess.run(command(code, options=("--log", str(log))), capture_output=True, text=True, timeout=60)
    at = hex(int(done.stdout) + 4)
    lines = [line.partition("vfio device: ")[2] for line in log.read_text().splitlines()]
    assert f"store(width=4 offset={at} value=0x5) = 0" in lines
    assert f"load(width=4 offset={at}) = {0xFFFFFFFA}" in lines


#: Makes ptrace(2) fail with EPERM, as container profiles do, and becomes the command that follows.
WITHOUT_PTRACE = f"""
import ctypes, os, struct, sys
op = lambda code, k, yes=0, no=0: struct.pack("=HBBI", code, yes, no, k)
code = op(0x20, 4) + op(0x15, {AUDIT_ARCH}, 0, 3) + op(0x20, 0) + op(0x15, 101, 0, 1)
code += op(6, 0x50001) + op(6, 0x7FFF0000)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_where_ptrace_is_refused_the_bar_is_read_and_written_and_the_log_says_why():
    code = "print(flags(device), os.pread(device, 4, 0).hex())"
    done = run(code, sys.executable, "-c", WITHOUT_PTRACE)
    assert (done.returncode, done.stdout.split()) == (0, ["3", "ed000001"])
    assert "a BAR cannot be mapped: ptrace(2) is refused here: Operation not permitted" in done.stderr
