"""Plays one recorded sequence against an iommufd, and says at which step the answer is not the recorded kernel's."""

import errno
import struct
import time

from golden import memory

WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
MASK = 2**64 - 1
CONFIG, EDU_BUFFER = 7 << 40, 0x40000


class DifferenceError(Exception):
    """An answer that the recorded kernel did not give."""


class Player:
    """`kernel` makes the calls: golden.kernels.Real or golden.kernels.InProcess."""

    def __init__(self, kernel, record):
        self.kernel, self.record = kernel, record
        self.buffers = {name: memory.Buffer(b["size"], b["kind"]) for name, b in record.get("bufs", {}).items()}
        self.fds = {}
        self.after = []

    def play(self):
        """Every step in order; DifferenceError at the first wrong answer."""
        for index, step in enumerate(self.record["steps"]):
            try:
                self.step(step)
            except DifferenceError as difference:
                what = step.get("test_op") or step.get("name") or step["op"]
                raise DifferenceError(f"{self.record['id']} step {index} ({what}): {difference}") from None

    def step(self, step):
        """One step."""
        self.after.append(b"")
        try:
            ret, err = getattr(self, "do_" + step["op"])(step), 0
        except OSError as error:
            ret, err = -1, error.errno
        self.expect(step, ret, err)
        for name, runs in self.watched(step).items():
            self.check_memory(name, runs)

    def expect(self, step, ret, err):
        """Compare the result with the recorded one."""
        name = "EOPNOTSUPP" if err == errno.EOPNOTSUPP else errno.errorcode.get(err, "")
        wanted = step["ret"]
        if wanted == "fd":
            if ret < 0:
                raise DifferenceError(f"expected a descriptor, got {name}")
        elif (ret, name) != (wanted, step.get("errno", "")):
            raise DifferenceError(f"expected {wanted} {step.get('errno', '')}, got {ret} {name}")

    def watched(self, step):
        """The recorded changes of each watched buffer."""
        return {name: step.get("mem", {}).get(name, []) for name, b in self.buffers.items() if b.watched}

    def check_memory(self, name, runs):
        """A watched buffer changed as recorded, and nowhere else."""
        buffer = self.buffers[name]
        wanted = apply(buffer.seen, runs)
        now = buffer.bytes()
        if now != wanted:
            at = next(i for i in range(len(now)) if now[i] != wanted[i])
            raise DifferenceError(
                f"buffer {name} at {at:#x}: {now[at : at + 16].hex()} for {wanted[at : at + 16].hex()}"
            )
        buffer.seen = now

    # References

    def value(self, ref):
        """What a reference stands for."""
        kind, args = ref[2], ref[3:]
        if kind == "va":
            return self.buffers[args[0]].address + args[1]
        if kind == "out":
            step, offset, *add = args
            return int.from_bytes(self.after[step][offset : offset + ref[1]], "little") + (add[0] if add else 0)
        if kind == "fd":
            return self.fds.get(args[0], -1)
        if kind == "mem":
            return int.from_bytes(self.buffers[args[0]].bytes(args[1], ref[1]), "little")
        raise AssertionError(f"unknown reference {ref}")

    def fill_in(self, data, refs):
        """`data` with the references stored over it."""
        data = bytearray(data)
        for ref in refs:
            if ref[2] in ("newfd", "retfd"):
                continue
            struct.pack_into(WIDTHS[ref[1]], data, ref[0], self.value(ref) & (1 << 8 * ref[1]) - 1)
        return bytes(data)

    # Operations

    def do_open(self, step):
        """open"""
        self.fds[step["fd"]] = self.kernel.open(step["what"])
        return 0

    def do_close(self, step):
        """close"""
        self.kernel.close(self.fds.pop(step["fd"], -1))
        return 0

    def do_dup(self, step):
        """dup"""
        self.fds[step["new"]] = self.kernel.dup(self.fds[step["fd"]])
        return 0

    def do_ioctl(self, step):
        """ioctl"""
        fd = self.fds.get(step["fd"], -1)
        place = step.get("place", "n")
        if place == "v":
            return self.kernel.ioctl(fd, step["cmd"], step["value"])
        refs = step.get("refs", ())
        before = bytes.fromhex(step["in"])
        before = self.fill_in(before.ljust(step.get("len", len(before)), b"\0"), refs)
        argument = memory.Argument(before, place)
        failed = None
        try:
            ret = self.kernel.ioctl(fd, step["cmd"], argument.address)
        except OSError as error:
            failed, ret = error, -1
        after = argument.finish()
        if after is not None:
            self.after[-1] = after
            self.check_struct(step, before, after, ret)
        if failed is not None:
            raise failed
        for ref in refs:
            if ref[2] == "retfd":
                self.fds[ref[3]] = ret
        return ret

    def check_struct(self, step, before, after, ret):
        """The struct changed as recorded, but for numbers of new descriptors, which get their names."""
        wanted = bytearray(apply(before, step.get("out", [])))
        refs = list(step.get("refs", ()))
        if step.get("name") == "FAULT_QUEUE_ALLOC" and ret == 0 and not any(ref[2] == "newfd" for ref in refs):
            # Older recordings hold the number that the descriptor happened to have.
            refs.append([12, 4, "newfd", "queue"])
        for ref in refs:
            if ref[2] == "newfd" and len(after) >= ref[0] + 4:
                if ret >= 0:
                    self.fds[ref[3]] = int.from_bytes(after[ref[0] : ref[0] + 4], "little")
                wanted[ref[0] : ref[0] + 4] = after[ref[0] : ref[0] + 4]
        if bytes(wanted) != after:
            raise DifferenceError(f"struct {after.hex()} instead of {bytes(wanted).hex()}")

    def do_poke(self, step):
        """the program stores"""
        data = bytes.fromhex(step["data"])
        data = self.fill_in(data.ljust(step.get("len", len(data)), b"\0"), step.get("refs", ()))
        self.write_memory(step["buf"], step["off"], data)
        return 0

    def do_fill(self, step):
        """the program stores a pattern"""
        data = bytes((step["seed"] + 7 * i + (i >> 8)) & 255 for i in range(step["len"]))
        self.write_memory(step["buf"], step["off"], data)
        return 0

    def write_memory(self, name, offset, data):
        """A store by the program itself is no change that a call made."""
        buffer = self.buffers[name]
        buffer.store(offset, data)
        if buffer.watched:
            buffer.seen = buffer.seen[:offset] + data + buffer.seen[offset + len(data) :]

    def do_peek(self, step):
        """the program reads"""
        self.check_data(step, self.buffers[step["buf"]].bytes(step["off"], step["len"]))
        return 0

    def do_munmap(self, step):
        """munmap"""
        buffer = self.buffers[step["buf"]]
        buffer.watched = False
        memory.unmap(buffer.address + step["off"], step["len"])
        return 0

    def do_mprotect(self, step):
        """mprotect"""
        buffer = self.buffers[step["buf"]]
        buffer.watched = buffer.watched and step["prot"] in ("ro", "rw")
        memory.protect(buffer.address + step["off"], step["len"], step["prot"] if buffer.watched else "")
        return 0

    def do_mmap(self, step):
        """mmap of a descriptor as a new buffer"""
        offset = int.from_bytes(self.fill_in(step["off"].to_bytes(8, "little"), step.get("refs", ())), "little")
        buffer = memory.Buffer(step["len"], "hole")
        flags = memory.SHARED if step["flags"] == "shared" else memory.PRIVATE
        prot = memory.protection(step["prot"])
        self.buffers[step["buf"]] = buffer
        self.kernel.mmap(buffer.address, step["len"], prot, flags | memory.FIXED, self.fds.get(step["fd"], -1), offset)
        return 0

    def do_read(self, step):
        """read"""
        argument = memory.Argument(bytes(max(step["len"], 1)), "n")
        done = self.kernel.read(self.fds.get(step["fd"], -1), argument.address, step["len"])
        self.check_data(step, argument.finish()[:done])
        return done

    def do_write(self, step):
        """write"""
        data = bytes.fromhex(step["data"])
        argument = memory.Argument(data, "n")
        return self.kernel.write(self.fds.get(step["fd"], -1), argument.address, len(data))

    def do_pread(self, step):
        """pread"""
        data = self.pread(self.fds.get(step["fd"], -1), step["len"], step["off"])
        self.check_data(step, data)
        return len(data)

    def do_pwrite(self, step):
        """pwrite"""
        return self.pwrite(self.fds.get(step["fd"], -1), bytes.fromhex(step["data"]), step["off"])

    def pread(self, fd, count, offset):
        """Bytes of a file."""
        argument = memory.Argument(bytes(max(count, 1)), "n")
        done = self.kernel.pread(fd, argument.address, count, offset)
        return argument.finish()[:done]

    def pwrite(self, fd, data, offset):
        """Store bytes in a file."""
        argument = memory.Argument(data, "n")
        done = self.kernel.pwrite(fd, argument.address, len(data), offset)
        argument.finish()
        return done

    def do_dma(self, step):
        """the device moves data: edu's registers are in BAR 0, configuration space is region 7"""
        fd = self.fds.get(step["fd"], -1)
        iova = int.from_bytes(self.fill_in(step["iova"].to_bytes(8, "little"), step.get("refs", ())), "little")
        inner, to_memory = EDU_BUFFER + step["off"], step["dir"] == "w"
        command = int.from_bytes(self.pread(fd, 2, CONFIG + 4), "little")
        self.pwrite(fd, (command | 6).to_bytes(2, "little"), CONFIG + 4)
        source, destination = (inner, iova) if to_memory else (iova, inner)
        for register, value in ((0x80, source), (0x88, destination), (0x90, step["len"]), (0x98, 1 | 2 * to_memory)):
            self.pwrite(fd, value.to_bytes(8, "little"), register)
        for _ in range(2000):
            if not self.pread(fd, 8, 0x98)[0] & 1:
                return 0
            time.sleep(0.001)
        raise OSError(errno.ETIME, "the device does not finish")

    def do_poll(self, step):
        """poll with no wait"""
        fd = self.fds.get(step["fd"], -1)
        revents = self.kernel.poll(fd, step["events"]) if fd >= 0 else 0
        self.check_data(step, revents.to_bytes(2, "little"))
        return int(revents != 0)

    def do_status(self, step):
        """VmLck and VmPin in KiB"""
        self.check_data(step, struct.pack("<QQ", *(n & MASK for n in self.kernel.status())))
        return 0

    def do_dropcap(self, step):
        """drop effective capabilities"""
        self.kernel.drop_capabilities(step["what"])
        return 0

    def do_rlimit_memlock(self, step):
        """set RLIMIT_MEMLOCK"""
        import resource

        resource.setrlimit(resource.RLIMIT_MEMLOCK, (step["bytes"], step["bytes"]))
        return 0

    def do_fork(self, step):
        """the child goes on, the parent waits for it"""
        self.kernel.fork()
        return 0

    def check_data(self, step, data):
        """Bytes that were read are the recorded ones."""
        wanted = apply(bytes(len(data)), step.get("out", []))
        if data != wanted:
            raise DifferenceError(f"read {data.hex()} instead of {wanted.hex()}")


def apply(data, runs):
    """`data` with recorded runs stored over it."""
    data = bytearray(data)
    for offset, text in runs:
        raw = bytes.fromhex(text)
        data[offset : offset + len(raw)] = raw
    return bytes(data)
