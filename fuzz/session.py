"""One hostile program: hundreds of calls on two iommufds of a machine, watched, then everything closed and counted."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from random import Random

from fuzz.arena import PAGE, Arena, WroteOutside
from fuzz.calls import BY_DESCRIPTOR, OPERANDS, PAYLOADS, VFIO, Call, anywhere, given
from fuzz.values import EDGES, Values
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.abi.struct import UserStruct
from softiommu.errors import ModelError, UapiError
from softiommu.iommufd.context import Context
from softiommu.iommufd.file import IommufdFile
from softiommu.iommufd.ioas import Ioas
from softiommu.machine.assemble import Machine
from softiommu.machine.description import Description, Iommu
from softiommu.memory.client import CAP_IPC_LOCK, CAP_SYS_RAWIO, CAP_SYS_RESOURCE
from softiommu.memory.files import MmapRequest
from softiommu.memory.local import LocalCaller

PROFILES = ("nodev", "mock", "noiommu")
#: A call that takes longer hangs, as far as its caller can tell.
PATIENCE = 5.0
#: What only the end of the test command's structure says; it is copied with the rest.
_HEAD = 16


#: What a session makes first, most of the time; the test command's parts only where there is one.
PRELUDE: tuple[type[UserStruct], ...] = (
    *(abi.IoasAlloc, abi.IoasAlloc, abi.IoasMap, abi.IoasMap, abi.IoasMapFile, abi.FaultAlloc, abi.VfioIoas),
    *(test.MockDomainFlags, test.MockDomainFlags, test.CreateAccess, abi.HwptAlloc, abi.HwptAlloc, abi.HwptAlloc),
    *(abi.HwptAlloc, abi.ViommuAlloc, abi.ViommuAlloc, abi.VdeviceAlloc, abi.VeventqAlloc, abi.HwQueueAlloc),
    *(abi.HwptAlloc, abi.HwptAlloc, abi.HwptAlloc, abi.IoasMap, abi.IoasMap, test.AccessPages),
)
CREATES = {row.struct: row.cmd for row in abi.IOCTLS} | dict.fromkeys(PAYLOADS.values(), test.TEST_CMD)


class Broken(ModelError):  # noqa: N818  # it says what happened
    """A call ended in a way that no program may cause."""


class HostileCaller(LocalCaller):
    """This process with capabilities as the session chose them."""

    capabilities: frozenset[int] = frozenset()

    def capable(self, capability: int) -> bool:
        """As chosen."""
        return capability in self.capabilities


class Session:
    """`run` makes the calls of session `number` of a seed; the same arguments make the same calls."""

    def __init__(self, seed: int, number: int, profile: str, kernel: str) -> None:
        self.name = f"seed {seed} session {number} on {profile} {kernel}"
        self.random = Random(f"{seed}/{number}/{profile}/{kernel}")
        iommus = (Iommu("mock0", "mock"),) if profile == "mock" else ()
        self.machine = Machine(Description("fuzz", "fuzz", kernel=kernel, no_iommu=profile == "noiommu", iommus=iommus))
        self.caller = HostileCaller()
        capabilities = (CAP_IPC_LOCK, CAP_SYS_RAWIO, CAP_SYS_RESOURCE)
        self.caller.capabilities = frozenset(c for c in capabilities if self.random.random() < 0.5)
        self.arena = Arena(self.random)
        self.values = Values(self.random, self.arena)
        self.files = [self._open(), self._open()]
        self.closed: list[Context] = []
        self.calls = self.done = 0
        self._last = ""
        self._memfd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
        os.ftruncate(self._memfd, 4 * PAGE)
        self.values.fds += [self._memfd, self._memfd]
        self._commands = sorted(self.machine.services.commands.items())

    def _open(self) -> IommufdFile:
        return self.machine.open_iommu(self.caller, os.O_RDWR)

    def run(self, steps: int) -> None:
        """That many calls, then the end. Broken, WroteOutside: what went wrong, and where."""
        try:
            if self.random.random() < 0.8:
                for file in self.files:
                    self._prelude(file)
            for _ in range(steps):
                self._step()
            self._finish()
        except UapiError as error:
            raise Broken(f"{self.name}: the end was refused: {error}") from error
        except (Broken, WroteOutside):
            raise
        except Exception as error:
            raise Broken(f"{self.name}, call {self.calls} ({self._last}): {error!r}") from error
        finally:
            self.arena.close()
            os.close(self._memfd)

    def _step(self) -> None:
        self.calls += 1
        started = time.monotonic()
        pick = self.random.random()
        if pick < 0.84:
            self._ioctl()
        elif pick < 0.95:
            self._event_file()
        elif pick < 0.97:
            self._mmap()
        elif pick < 0.995:
            self._close_descriptor()
        else:
            self._reopen()
        if time.monotonic() - started > PATIENCE:
            raise Broken(f"{self.name}, call {self.calls} ({self._last}) took {time.monotonic() - started:.1f} s")

    # ioctl

    def _ioctl(self) -> None:
        index = self.random.randrange(len(self.files))
        file, other = self.files[index], self.files[1 - index]
        self._look(file.context)
        call = self._choose()
        raw, size = self._sized(call)
        at = self._place(len(raw))
        self._fill(call)
        self.arena.store(at, raw)
        before = _state(other.context)
        self._last = f"{call.cmd:#x} {call.struct} {call.payload} at arena {at - self.arena.start:#x}"
        try:
            result = file.ioctl(self.caller, call.cmd, at)
        except UapiError:
            result = -1
        self.done += result >= 0
        # The structure may be where its own buffer is: what counts is what it said when the call was made.
        self.arena.check(given(call, at, size), anywhere(call))
        if _state(other.context) != before and not self._by_descriptor(call):
            raise Broken(f"{self.name}, call {self.calls} ({self._last}) changed another iommufd")
        if result >= 0:
            self._learn(call, at, result)

    def _look(self, ctx: Context) -> None:
        """See what there is in the iommufd that is called next."""
        ids: dict[str, list[int]] = {}
        for obj in ctx.objects:
            ids.setdefault(obj.kind, []).append(obj.id)
        self.values.objects = ids
        self.values.areas = [iova for obj in ctx.objects if isinstance(obj, Ioas) for iova in obj.map.areas]

    def _prelude(self, file: IommufdFile) -> None:
        """Objects of every kind, so that there is something to break."""
        for struct in PRELUDE:
            self._look(file.context)
            made = self.values.struct(struct)
            cmd = CREATES[struct]
            payload = None
            if struct in PAYLOADS.values():
                op = next(op for op, payload in PAYLOADS.items() if payload is struct)
                made, payload = test.TestCmd(op=op, id=self.values.id("IOAS")), made
            self._last = f"prelude {made} {payload}"
            at = self.arena.end - 128
            call = Call(cmd, made, payload)
            self._fill(call)
            self.arena.store(at, call.raw())
            with suppress(UapiError):
                self._learn(call, at, file.ioctl(self.caller, cmd, at))
            self.arena.check(given(call, at, type(made).SIZE))

    def _choose(self) -> Call:
        random = self.random
        if random.random() < 0.12:
            cmd, struct = random.choice(VFIO)
            return Call(cmd, self.values.struct(struct or abi.IoasAlloc))
        cmd, row = random.choice(self._commands)
        if row.struct is abi.Destroy and random.random() < 0.7:
            cmd, row = random.choice(self._commands)
        if cmd == test.TEST_CMD or (test.TEST_CMD in self.machine.services.commands and random.random() < 0.4):
            op = random.choice(tuple(PAYLOADS))
            payload = self.values.struct(PAYLOADS[op])
            head = test.TestCmd(test.TestCmd.SIZE, op)
            by_fd = op in BY_DESCRIPTOR and random.random() < 0.8
            head.id = self._descriptor(op) if by_fd else self.values.id(*OPERANDS.get(op, ("selftest",)))
            return Call(test.TEST_CMD, head, payload)
        if random.random() < 0.02:
            cmd ^= 1 << random.randrange(32)
        return Call(cmd, self.values.struct(row.struct))

    def _descriptor(self, op: int) -> int:
        """The number of a descriptor; of a test access where there is one and the operation wants one."""
        fds = [fd for fd, file in self.caller.files.items() if file.kind == "test access"]
        if op == test.TestOp.DMABUF_REVOKE or not fds or self.random.random() < 0.1:
            fds = self.values.fds
        return self.random.choice(fds) & 0xFFFFFFFF

    def _sized(self, call: Call) -> tuple[bytes, int]:
        """The bytes, and the size that they claim."""
        raw = bytearray(call.raw())
        known = len(raw)
        if self.random.random() < self.values.malice:
            size = self.random.choice((0, 3, 4, type(call.struct).MIN_SIZE, known - 1, known + 8, 2 * PAGE, 2**32 - 1))
            raw[:4] = size.to_bytes(4, "little")
            if size > known:
                raw += bytes(self.random.choice((0, 0, 0, 1)) for _ in range(min(size - known, 64)))
        return bytes(raw), int.from_bytes(raw[:4], "little")

    def _place(self, length: int) -> int:
        pick = self.random.random()
        if pick < 0.8:
            return self.arena.end - 2 * PAGE + self.random.randrange(0, PAGE, 8)
        if pick < 0.9:
            return self.arena.end - length
        if pick < 0.98:
            return self.values.pointer()
        return self.random.choice(EDGES)

    def _fill(self, call: Call) -> None:
        """Something sensible where the structure points."""
        random = self.random
        if isinstance(call.struct, abi.IoasAllowIovas):
            ends = sorted(random.sample(range(4096, 4400), 8))
            pairs = [abi.IovaRange(PAGE * ends[n], PAGE * ends[n + 1] - 1).to_bytes() for n in range(0, 8, 2)]
            self.arena.store(call.struct.allowed_iovas, b"".join(random.sample(pairs, 4)))
        pointer = getattr(call.struct, "data_uptr", 0)
        if pointer:
            words = [random.choice((0, 0, 1, 1, 2, 3, 7, 0xDEAD)) for _ in range(6)]
            self.arena.store(pointer, b"".join(word.to_bytes(4, "little") for word in words))

    def _by_descriptor(self, call: Call) -> bool:
        return call.payload is not None and isinstance(call.struct, test.TestCmd) and call.struct.op in BY_DESCRIPTOR

    def _learn(self, call: Call, at: int, result: int) -> None:
        """Remember the descriptors of an answer."""
        kind: type[UserStruct] = type(call.payload or call.struct)
        raw = self.arena.load(at + (_HEAD if call.payload else 0), kind.SIZE).ljust(kind.SIZE, b"\0")
        answer = kind.from_bytes(raw)
        for name in kind.FIELDS:
            if name.startswith("out_") and name.endswith("_fd"):
                self.values.fds.append(getattr(answer, name))
        if isinstance(call.payload, test.DmabufGet):
            self.values.fds.append(result)

    # The rest

    def _event_file(self) -> None:
        fds = list(self.caller.files)
        if not fds:
            return
        file = self.caller.files[self.random.choice(fds)]
        va = self.values.pointer()
        count = self.random.choice((0, 1, 8, 12, 16, 40, 80, 120, 4096, self.random.choice(EDGES)))
        offset = self.random.choice((None, None, None, 0))
        self._last = f"read or write of {count} at arena {va - self.arena.start:#x} of a {file.kind}"
        file.poll()
        try:
            if self.random.random() < 0.6:
                done = file.read(self.caller, va, count, offset)
            else:
                if self.random.random() < 0.7:
                    cookie, code = self.random.randrange(4), self.random.choice((0, 1, 1, 2))
                    self.arena.store(va, abi.HwptPageResponse(cookie, code).to_bytes())
                done = file.write(self.caller, va, count, offset)
        except UapiError:
            done = count
        self.arena.check([(va, done)])

    def _mmap(self) -> None:
        sizes = (0, 1, PAGE, 2 * PAGE, 2 * PAGE, 3 * PAGE, self.random.choice(EDGES))
        request = MmapRequest(
            self.random.choice(sizes), self.random.choice(sizes), self.random.randrange(8), self.random.randrange(4)
        )
        self._last = f"mmap {request}"
        with suppress(UapiError):
            self.random.choice(self.files).mmap(self.caller, request)

    def _close_descriptor(self) -> None:
        fds = list(self.caller.files)
        if fds:
            fd = self.random.choice(fds)
            self._last = f"close of a {self.caller.files[fd].kind}"
            self.caller.close(fd)

    def _reopen(self) -> None:
        index = self.random.randrange(len(self.files))
        self._last = "close of the iommufd"
        self.files[index].release()
        self.closed.append(self.files[index].context)
        self.files[index] = self._open()

    def _finish(self) -> None:
        self._last = "the end"
        for file in self.files:
            file.release()
            self.closed.append(file.context)
        for fd in list(self.caller.files):
            self.caller.close(fd)
        self.arena.check([])
        physical = self.machine.physical
        left = [repr(obj) for ctx in self.closed for obj in ctx.objects]
        left += [f"{len(physical.pinned)} page sets"] * bool(physical.pinned)
        left += [f"{physical.accounts.total} pinned pages"] * bool(physical.accounts.total)
        left += [f"regions of {ctx.number}" for ctx in self.closed if not ctx.regions.empty]
        left += [f"VmPin {self.caller.mm.pinned}, VmLck {self.caller.mm.locked}"] * bool(
            self.caller.mm.pinned or self.caller.mm.locked
        )
        if left:
            raise Broken(f"{self.name}: left at the end: {', '.join(left)}")


def _state(ctx: Context) -> list[tuple[object, ...]]:
    """Everything that a call on another iommufd must not change."""
    state: list[tuple[object, ...]] = []
    for obj in ctx.objects:
        table = obj.map if isinstance(obj, Ioas) else None
        areas = tuple(table.areas) if table else ()
        state.append((obj.id, obj.kind, obj.users, areas, table.alignment if table else 0))
    return state
