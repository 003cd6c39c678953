"""Two ways to make a recording's calls: on this process's own soft iommufd, and by plain system calls."""

import ctypes
import os
import select
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
_libc.read.argtypes = _libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.pread.argtypes = _libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
CAPABILITIES = {"ipc_lock": 1 << 14, "sys_resource": 1 << 24, "both": 1 << 14 | 1 << 24}


def checked(result):
    """A libc result, or its errno as OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


NODES = {"iommu": "/dev/iommu", "vfio": "/dev/vfio/vfio", "null": "/dev/null"}
ADDRESSES = {
    "edu0": "0000:00:04.0",
    "edu1": "0000:00:05.0",
    "nvme0": "0000:00:07.0",
    "edu2": "0000:02:01.0",
    "edu3": "0000:02:02.0",
}


def node(what):
    """The path of what a recording opens. Devices and groups are found by their PCI address, as programs find them."""
    if what in NODES:
        return NODES[what]
    kind, name = what.split(":")
    folder = f"/sys/bus/pci/devices/{ADDRESSES[name]}"
    if kind == "grp":
        return "/dev/vfio/" + os.path.basename(os.readlink(f"{folder}/iommu_group"))
    return "/dev/vfio/devices/" + os.listdir(f"{folder}/vfio-dev")[0]


class Real:
    """Plain system calls, as any program makes them."""

    def open(self, what):
        """open(2) of a node, or a new memfd."""
        if what.startswith("memfd:"):
            fd = os.memfd_create("golden")
            os.ftruncate(fd, int(what[6:]))
            return fd
        return os.open(node(what), os.O_RDWR)

    def close(self, fd):
        """close(2)"""
        os.close(fd)

    def dup(self, fd):
        """dup(2)"""
        return os.dup(fd)

    def ioctl(self, fd, cmd, arg):
        """ioctl(2)"""
        return checked(_libc.ioctl(fd, cmd, arg))

    def read(self, fd, address, count):
        """read(2)"""
        return checked(_libc.read(fd, address, count))

    def write(self, fd, address, count):
        """write(2)"""
        return checked(_libc.write(fd, address, count))

    def pread(self, fd, address, count, offset):
        """pread(2)"""
        return checked(_libc.pread(fd, address, count, offset))

    def pwrite(self, fd, address, count, offset):
        """pwrite(2)"""
        return checked(_libc.pwrite(fd, address, count, offset))

    def mmap(self, address, length, prot, flags, fd, offset):
        """mmap(2)"""
        from golden import memory

        memory.map_at(address, length, prot, flags, fd, offset)

    def poll(self, fd, events):
        """poll(2) with no wait"""
        poller = select.poll()
        poller.register(fd, events)
        return dict(poller.poll(0)).get(fd, 0)

    def status(self):
        """VmLck and VmPin in KiB"""
        return status_fields("/proc/self/status")

    def drop_capabilities(self, what):
        """capset(2)"""
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        checked(_libc.capget(header, data))
        data[0] &= ~CAPABILITIES[what]
        checked(_libc.capset(header, data))

    def fork(self):
        """fork(2): returns in the child only; the parent waits and ends as the child did."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)


def status_fields(path):
    """VmLck and VmPin of a status file, in KiB."""
    with open(path) as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return tuple(int(fields[name].split()[0]) for name in ("VmLck", "VmPin"))


class InProcess(Real):
    """The same on a soft machine in this process."""

    def __init__(self, machine):
        from softiommu.memory.local import LocalCaller

        self.machine = machine
        self.caller = LocalCaller()
        if os.geteuid():
            # The recordings are of a root program: towards the machine, this one is.
            self.caller.withheld = (1 << 41) - 1

    def open(self, what):
        """open(2): ours for the nodes of the machine."""
        kind, _, name = what.partition(":")
        if kind in ("null", "memfd"):
            return super().open(what)
        if name:
            shown = next(device for device in self.machine.vfio.devices if device.wired.pci.name == name)
            path = shown.node if kind == "dev" else shown.group_node
        else:
            path = NODES[what]
        return self.caller.install(self.machine.entries[path].open(self.caller, os.O_RDWR))

    def file(self, fd):
        """Our file, or None."""
        return self.caller.ours(fd)

    def close(self, fd):
        """close(2)"""
        if self.file(fd) is None:
            super().close(fd)
        else:
            self.caller.close(fd)

    def dup(self, fd):
        """dup(2)"""
        return super().dup(fd) if self.file(fd) is None else self.caller.dup(fd)

    def ioctl(self, fd, cmd, arg):
        """ioctl(2)"""
        file = self.file(fd)
        return super().ioctl(fd, cmd, arg) if file is None else file.ioctl(self.caller, cmd, arg)

    def read(self, fd, address, count):
        """read(2)"""
        file = self.file(fd)
        return super().read(fd, address, count) if file is None else file.read(self.caller, address, count)

    def write(self, fd, address, count):
        """write(2)"""
        file = self.file(fd)
        return super().write(fd, address, count) if file is None else file.write(self.caller, address, count)

    def pread(self, fd, address, count, offset):
        """pread(2)"""
        file = self.file(fd)
        if file is None:
            return super().pread(fd, address, count, offset)
        return file.read(self.caller, address, count, offset)

    def pwrite(self, fd, address, count, offset):
        """pwrite(2)"""
        file = self.file(fd)
        if file is None:
            return super().pwrite(fd, address, count, offset)
        return file.write(self.caller, address, count, offset)

    def mmap(self, address, length, prot, flags, fd, offset):
        """mmap(2)"""
        file = self.file(fd)
        if file is not None:
            from softiommu.memory.files import MmapRequest

            if not length or offset % 4096:
                raise OSError(22, "Invalid argument")
            file.mmap(self.caller, MmapRequest(-(-length // 4096) * 4096, offset, prot, flags & ~0x10))
            fd = file.pages_fd()
            file.is_mapped = self.caller.maps_file(fd)
        super().mmap(address, length, prot, flags, fd, offset)

    def poll(self, fd, events):
        """poll(2) with no wait"""
        file = self.file(fd)
        return super().poll(fd, events) if file is None else file.poll() & events

    def status(self):
        """VmLck and VmPin in KiB"""
        locked, pinned = super().status()
        return locked + 4 * self.caller.mm.locked, pinned + 4 * self.caller.mm.pinned

    def drop_capabilities(self, what):
        """capset(2), and of what the container withholds"""
        super().drop_capabilities(what)
        self.caller.withheld &= ~CAPABILITIES[what]

    def fork(self):
        """The child goes on with a copy of the machine, as a new caller; the parent's memory stays the source."""
        super().fork()
        from softiommu.memory.local import LocalCaller

        files, withheld = self.caller.files, self.caller.withheld
        self.caller = LocalCaller()
        self.caller.files, self.caller.withheld = files, withheld
