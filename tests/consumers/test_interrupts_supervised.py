"""Interrupts of a device reach a supervised program, which sleeps, and it answers by an eventfd."""

import subprocess
import sys

CLIENT = """
import errno, fcntl, os, select, struct

def raised(timeout):
    if not select.select([told], [], [], timeout)[0]:
        return 0
    return os.eventfd_read(told)

iommufd = os.open("/dev/iommu", os.O_RDWR)
device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("<IIiI", 16, 0, iommufd, 0)))
told, served = os.eventfd(0), os.eventfd(0)
for flags, fd in ((0x24, told), (0x14, served)):
    fcntl.ioctl(device, 0x3B6E, struct.pack("<IIIIIi", 24, flags, 0, 0, 1, fd))
os.pwrite(device, (1).to_bytes(4, "little"), 0x60)
print(raised(5), raised(0))
os.eventfd_write(served, 1)
print(raised(5), raised(0))
os.pwrite(device, (1).to_bytes(4, "little"), 0x64)
os.eventfd_write(served, 1)
print(raised(0.1))


def unmask_by(fd):
    try:
        return fcntl.ioctl(device, 0x3B6E, bytearray(struct.pack("<IIIIIi", 24, 0x14, 0, 0, 1, fd)))
    except OSError as error:
        return errno.errorcode[error.errno]

other, copy = os.eventfd(0), os.dup(served)
os.close(served)
print(unmask_by(other))
os.close(copy)
print(unmask_by(other), unmask_by(other))
os.close(device)
"""


def test_intx_is_told_and_unmasked_by_one_eventfd_at_a_time_of_a_program_that_sleeps():
    command = [sys.executable, "-m", "softiommu.cli", "run", "--machine", "vtd", "--", sys.executable, "-c", CLIENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 0\n1 0\n0\nEBUSY\n0 EBUSY\n"
