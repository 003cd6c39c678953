"""A user-space driver that maps BAR 0, as those for hardware do: its doorbells and registers are stores into memory."""

import subprocess
import sys
import time

#: NVMe: the controller is enabled, identified 40 times, and disabled, by loads and stores alone.
NVME = """
import ctypes, fcntl, mmap, os, struct, sys, time

iommufd = os.open("/dev/iommu", os.O_RDWR)
device = os.open("/dev/vfio/devices/vfio2", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("<IIiI", 16, 0, iommufd, 0)))
ioas = bytearray(struct.pack("<III", 12, 0, 0))
fcntl.ioctl(iommufd, 0x3B81, ioas)
ioas = struct.unpack_from("<I", ioas, 8)[0]
fcntl.ioctl(device, 0x3B77, bytearray(struct.pack("<III", 12, 0, ioas)))
memory = mmap.mmap(-1, 0x4000)
va = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(iommufd, 0x3B85, struct.pack("<IIIIQQQ", 40, 7, ioas, 0, va, 0x4000, 0x100000))
command = (7 << 40) + 4
os.pwrite(device, (6).to_bytes(2, "little"), command)
info = bytearray(struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0))
fcntl.ioctl(device, 0x3B6C, info)
bar = mmap.mmap(device, 0x4000, offset=struct.unpack_from("<Q", info, 24)[0])
word = lambda at: ctypes.c_uint32.from_buffer(bar, at)
wide = lambda at: ctypes.c_uint64.from_buffer(bar, at)

def wait(ready):
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end, "nothing happens"

def enable():
    word(0x24).value = 7 | 7 << 16
    wide(0x28).value, wide(0x30).value = 0x100000, 0x101000
    word(0x14).value = 6 << 16 | 4 << 20 | 1
    wait(lambda: word(0x1C).value & 1)

def identify(number):
    memory[0x2000:0x3000] = bytes(4096)
    slot = number % 8
    entry = struct.pack("<BBHI16xQQI20x", 6, 0, number, 0, 0x102000, 0, 1)
    memory[64 * slot : 64 * slot + 64] = entry
    word(0x1000).value = (slot + 1) % 8
    phase = 1 - number // 8 % 2
    status = ctypes.c_uint16.from_buffer(memory, 0x1000 + 16 * slot + 14)
    wait(lambda: status.value & 1 == phase)
    done = struct.unpack_from("<IIHHHH", memory, 0x1000 + 16 * slot)
    word(0x1004).value = (slot + 1) % 8
    return done[4], done[5] >> 1, bytes(memory[0x2004:0x2018])

enable()
answers = [identify(number) for number in range(40)]
print([cid for cid, _, _ in answers] == list(range(40)), {status for _, status, _ in answers})
print({serial[:9] for _, _, serial in answers})
word(0x14).value = 0
wait(lambda: not word(0x1C).value & 1)
print(word(0x1000).value, word(0x1004).value)
memory[0x1000:0x1080] = bytes(128)
enable()
print(identify(0)[:2])
"""
#: It does nothing for two seconds, with the BAR mapped.
IDLE = NVME.partition("enable()\nanswers")[0] + "enable()\nidentify(0)\ntime.sleep(2)\nprint('done')\n"


def command(code):
    run = [sys.executable, "-m", "softiommu.cli", "run", "--machine", "vtd", "--"]
    return [*run, sys.executable, "-c", code]


def test_a_controller_is_driven_by_loads_and_stores_alone():
    done = subprocess.run(command(NVME), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["True {0}", "{b'SOFTIOMMU'}", "0 0", "(0, 0)"]


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_no_processor_is_busy_while_a_program_that_maps_a_bar_does_nothing():
    with subprocess.Popen(command(IDLE), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as running:
        time.sleep(1)
        until, used = time.monotonic() + 20, []
        while running.poll() is None and time.monotonic() < until:
            try:
                used.append((time.monotonic(), cpu_seconds(running.pid)))
            except OSError:
                break
            time.sleep(0.05)
        assert running.communicate()[0] == "done\n"
    # The quietest second of all.
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a in used for b in used if 0.9 < b[0] - a[0] < 1.1]
    assert min(rates) < 0.1


#: By groups, without an iommufd: what a group gives can be mapped, too.
GROUP = """
import ctypes, fcntl, mmap, os, struct

container = os.open("/dev/vfio/vfio", os.O_RDWR)
def device(number, address):
    group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
    fcntl.ioctl(group, 0x3B68, struct.pack("<i", container))
    if not number:
        fcntl.ioctl(container, 0x3B66, 1)
    return fcntl.ioctl(group, 0x3B6A, bytearray(address.encode() + bytes(1)))

def bar(fd, size):
    info = bytearray(struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0))
    fcntl.ioctl(fd, 0x3B6C, info)
    return mmap.mmap(fd, size, offset=struct.unpack_from("<Q", info, 24)[0])

edu, nvme = device(0, "0000:00:04.0"), device(2, "0000:00:07.0")
for fd in (edu, nvme):
    assert (os.fstat(fd).st_mode, os.fstat(fd).st_size) == (0o600, 0)
trapped, memory = bar(edu, 4096), bar(nvme, 4096)
ctypes.c_uint32.from_buffer(trapped, 4).value = 1
print(hex(ctypes.c_uint32.from_buffer(trapped, 4).value), hex(ctypes.c_uint32.from_buffer(memory, 8).value))
"""


def test_what_a_group_gives_can_be_mapped():
    done = subprocess.run(command(GROUP), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0xfffffffe 0x10400\n", "")


#: What a program can do to the file behind a mapping, while it is looked at.
HOSTILE = (
    NVME.partition("enable()\nanswers")[0]
    + """
import fcntl, random
chance = random.Random(11)
offset = struct.unpack_from("<Q", info, 24)[0]
for _ in range(300):
    what = chance.randrange(5)
    try:
        if what == 0:
            os.ftruncate(device, offset + chance.choice((0, 1, 0x1003, 0x4000, 1 << 20)))
        elif what == 1:
            os.ftruncate(device, 0)
        elif what == 2:
            os.posix_fallocate(device, offset, 0x4000)
        elif what == 3:
            fcntl.fcntl(device, 1033, chance.choice((2, 4, 8)))  # F_ADD_SEALS
        else:
            os.ftruncate(device, offset + 0x4000)
            for _ in range(30):
                word(4 * chance.randrange(0x480)).value = chance.getrandbits(32)
    except OSError:
        pass
    if chance.random() < 0.3:
        os.pread(device, 4, offset)
    time.sleep(0.0005)
os.pwrite(device, b"\\0", command)
os.pwrite(device, b"\\6", command)
print(hex(word(8).value), hex(int.from_bytes(os.pread(device, 4, offset + 8), "little")))
"""
)


def test_a_program_that_cuts_fills_and_seals_the_file_of_its_mapping_harms_nobody():
    done = subprocess.run(command(HOSTILE), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0x10400 0x10400\n"
    assert "bug of softiommu" not in done.stderr
