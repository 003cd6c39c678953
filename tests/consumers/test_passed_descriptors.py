"""A device's descriptor goes to another process by SCM_RIGHTS; the owner ends, and the receiver goes on."""

import subprocess
import sys

import pytest

CLIENT = """
import fcntl, mmap, os, select, socket, struct, sys, time

def call(fd, number, layout, *values):
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(fd, number, data)
    return struct.unpack(layout, data)

def receive(link):
    message, (device, iommufd, memory, told), _, _ = socket.recv_fds(link, 100, 4)
    while os.getppid() == int(message):
        time.sleep(0.01)
    assert device < 100, "the number is a low one"
    bar, config = (call(device, 0x3B6C, "=IIIIQQ", 0, index, 0, 0, 0)[5] for index in (0, 7))
    assert struct.unpack("=HH", os.pread(device, 4, config)) == (0x1234, 0x11E8)
    assert os.pread(device, 4, bar) == (0x010000ED).to_bytes(4, "little")
    pages = mmap.mmap(memory, 2 * mmap.PAGESIZE)
    moves = ((0x80, 0x100000), (0x88, 0x40000), (0x90, 5), (0x98, 1), (0x80, 0x40000), (0x88, 0x101000), (0x98, 3))
    for register, value in moves:
        os.pwrite(device, value.to_bytes(8, "little"), bar + register)
    assert pages[mmap.PAGESIZE : mmap.PAGESIZE + 5] == b"hello", "DMA went through the owner's mapping"
    os.pwrite(device, (1).to_bytes(4, "little"), bar + 0x60)
    assert select.select([told], [], [], 5)[0], "the interrupt comes to the owner's eventfd"
    assert call(iommufd, 0x3B86, "=IIQQ", IOAS, 0, 2**64 - 1)[3] == 2 * mmap.PAGESIZE
    try:
        os.open("/dev/vfio/0", os.O_RDWR)
    except OSError:
        print("the device is still taken")
    os.close(device)
    os.close(os.open("/dev/vfio/0", os.O_RDWR))
    print("the device is free")

IOAS = 2
ours, theirs = socket.socketpair()
if os.fork() == 0:
    ours.close()
    receive(theirs)
    sys.exit()
theirs.close()
iommufd, device = os.open("/dev/iommu", os.O_RDWR), os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
call(device, 0x3B76, "=IIiI", 0, iommufd, 0)
assert call(iommufd, 0x3B81, "=III", 0, 0)[2] == IOAS
call(device, 0x3B77, "=III", 0, IOAS)
memory, told = os.memfd_create("buffer"), os.eventfd(0)
os.ftruncate(memory, 2 * mmap.PAGESIZE)
os.pwrite(memory, b"hello", 0)
call(iommufd, 0x3B8F, "=IIIiQQQ", 7, IOAS, memory, 0, 2 * mmap.PAGESIZE, 0x100000)
fcntl.ioctl(device, 0x3B6E, struct.pack("<IIIIIi", 24, 0x24, 0, 0, 1, told))
config = call(device, 0x3B6C, "=IIIIQQ", 0, 7, 0, 0, 0)[5]
os.pwrite(device, bytes([6, 0]), config + 4)
socket.send_fds(ours, [str(os.getpid()).encode()], [device, iommufd, memory, told])
"""


@pytest.mark.parametrize("machine", ["vtd", "smmuv3"])
def test_the_receiver_of_a_devices_descriptor_goes_on_when_its_owner_is_gone(machine):
    command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", machine, "--", sys.executable, "-c", CLIENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the device is still taken\nthe device is free\n"
