"""IOMMU_TEST_CMD: the kernel's own test command, on a machine with the mock IOMMU.

Only this file knows that a device is a mock: the manager treats it as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EINVAL, EIO, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW
from typing import Any, TypeVar

from softiommu.abi import iommufd_test as test
from softiommu.abi.iommufd import IoasCopy
from softiommu.abi.struct import UserStruct
from softiommu.drivers.driver import PageFault
from softiommu.drivers.mock.domain import MockDomain
from softiommu.drivers.mock.driver import MockDevice, MockDriver
from softiommu.drivers.mock.nested import MockNestedDomain
from softiommu.errors import UapiError
from softiommu.iommufd import device as devices, selftest_access, selftest_dmabuf
from softiommu.iommufd.area import MAX
from softiommu.iommufd.context import Context
from softiommu.iommufd.device import DeviceObject
from softiommu.iommufd.dispatch import Command
from softiommu.iommufd.hwpt import HwptNested, HwptPaging
from softiommu.iommufd.ioas import Ioas
from softiommu.iommufd.objects import Object
from softiommu.iommufd.selftest_reply import respond
from softiommu.memory.client import PAGE_SIZE

P = TypeVar("P", bound=UserStruct)
TEST_CMD = test.TEST_CMD
#: kvzalloc() makes no array of 2 GiB.
_MOST_BITS = 1 << 34
_CHUNK_BITS = 1 << 19


class Selftest(Object):
    """A mock device with its binding, which DESTROY undoes (selftest_obj)."""

    kind = "selftest"

    def __init__(self, device: DeviceObject) -> None:
        super().__init__()
        self.device = device

    def destroy(self, ctx: Context) -> None:
        """Detach the RID, unbind the device; its vdevice's id becomes a tombstone."""
        devices.detach(self.device)
        vdevice = self.device.vdevice
        if vdevice is not None:
            ctx.discard(vdevice, tombstone=True)
        ctx.discard(self.device)


class SelftestCommand:
    """The test command of one machine: its mock driver, and the handler for each operation."""

    def __init__(self, driver: MockDriver, since_6_12: bool = False) -> None:
        self.driver = driver
        self._operations = {op: row for op, row in _OPERATIONS.items() if not since_6_12 or op <= _LAST_6_12}

    def command(self) -> Command:
        """The row of the ioctl table."""
        return Command("TEST_CMD", test.TestCmd, self._run, replies=False)

    def _run(self, ctx: Context, cmd: test.TestCmd) -> int:
        row = self._operations.get(cmd.op)
        if row is None:
            raise UapiError(EOPNOTSUPP, f"there is no test operation {cmd.op}")
        member, handler = row
        raw = cmd.payload + cmd.last.to_bytes(4, "little") + cmd.padding
        payload = member.from_bytes(raw)
        result = handler(self, ctx, cmd, payload)
        changed = payload.to_bytes() + raw[member.SIZE :]
        cmd.payload, cmd.last = changed[:48], int.from_bytes(changed[48:52], "little")
        return int(result or 0)


def _add_reserved(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.AddReserved) -> None:
    ioas = ctx.objects.get(cmd.id, Ioas)
    if not arg.length:
        raise UapiError(EINVAL, "a range of length 0 cannot be reserved")
    last = arg.start + arg.length - 1
    if last > MAX:
        raise UapiError(EOVERFLOW, f"start {arg.start:#x} + length {arg.length:#x} wraps")
    ioas.map.reserve(arg.start, last, None)


def _mock_domain(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.MockDomain) -> None:
    arg.out_stdev_id, arg.out_hwpt_id, arg.out_idev_id = _new_device(self, ctx, cmd, 0)
    respond(ctx, cmd, arg)


def _mock_domain_flags(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.MockDomainFlags) -> None:
    arg.out_stdev_id, arg.out_hwpt_id, arg.out_idev_id = _new_device(self, ctx, cmd, arg.dev_flags)
    respond(ctx, cmd, arg)


def _new_device(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, flags: int) -> tuple[int, int, int]:
    """The ids of the selftest object, the HWPT and the device. They are taken in the order object, device, HWPT."""
    stub = ctx.new(Object())
    mock = self.driver.device(flags)
    device = devices.bind(ctx, mock)
    hwpt_id = devices.attach(device, cmd.id)
    # The selftest object takes over its id only now: until here an error must undo each part by itself.
    selftest = Selftest(device)
    ctx.adopt(stub, selftest)
    return selftest.id, hwpt_id, device.id


def _mock_domain_replace(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.MockDomainReplace) -> None:
    arg.pt_id = devices.replace(_selftest(ctx, cmd.id).device, arg.pt_id)
    respond(ctx, cmd, arg)


def _selftest(ctx: Context, id: int) -> Selftest:
    return ctx.objects.get(id, Selftest)


def _paging(ctx: Context, id: int) -> MockDomain:
    """The mock's domain behind an HWPT. ENOENT; EINVAL: another driver's."""
    domain = ctx.objects.get(id, HwptPaging).domain
    if not isinstance(domain, MockDomain):
        raise UapiError(EINVAL, f"HWPT {id} is not of the mock")
    return domain


def _mock(ctx: Context, id: int) -> MockDevice:
    """The mock behind a device's id. ENOENT; EINVAL: another driver's."""
    device = ctx.objects.get(id, DeviceObject).device
    if not isinstance(device, MockDevice):
        raise UapiError(EINVAL, f"device {device.name} is not a mock")
    return device


def _check_map(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.CheckMap) -> None:
    domain = _paging(ctx, cmd.id)
    step = domain.page_sizes & -domain.page_sizes
    if (arg.iova | arg.length | arg.uptr) & (step - 1) or arg.uptr + arg.length > MAX:
        raise UapiError(EINVAL, "iova, length and uptr must be multiples of the smallest page, and not wrap")
    for offset, pa, size in _caller_runs(ctx, arg.uptr, arg.length):
        for at in range(0, size, step):
            if domain.iova_to_pa(arg.iova + offset + at) != pa + at:
                iova, va = arg.iova + offset + at, arg.uptr + offset + at
                raise UapiError(EINVAL, f"iova {iova:#x} does not translate to the page at {va:#x}")


def _caller_runs(ctx: Context, va: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The physical runs behind the caller's memory: offset from `va`, physical address, length. EFAULT."""
    skew, offset = va % PAGE_SIZE, 0
    whole = -(-(skew + length) // PAGE_SIZE) * PAGE_SIZE
    for extent in ctx.caller.mm.extents(va - skew, whole, False) if length else ():
        start = skew if not offset else 0
        size = min(extent.length - start, length - offset)
        for run in ctx.physical.frames.runs(extent.backing, extent.offset + start, size):
            yield offset, run.pa, run.length
            offset += run.length


def _check_refs(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.CheckRefs) -> None:
    if (arg.uptr | arg.length) & (PAGE_SIZE - 1) or arg.uptr + arg.length > MAX:
        raise UapiError(EINVAL, "uptr and length must be multiples of the page size, and not wrap")
    va = arg.uptr
    for extent in ctx.caller.mm.extents(va, arg.length, False) if arg.length else ():
        for pins, pages in ctx.physical.pin_counts(extent):
            if pins != arg.refs:
                raise UapiError(EIO, f"the page at {va:#x} is pinned {pins} times, not {arg.refs}")
            va += pages * PAGE_SIZE


def _memory_limit(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.MemoryLimit) -> None:
    # The kernel bounds the size of its batches by this; ours have no batches to bound.
    if arg.limit < 12:
        raise UapiError(EINVAL, f"a limit of {arg.limit} bytes is too small for one batch")


def _dirty(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.Dirty) -> None:
    size = arg.page_size
    if not size or not arg.length or arg.iova % size or arg.length % size or not arg.uptr:
        raise UapiError(EINVAL, f"{arg.iova:#x} + {arg.length:#x} is no range of pages of {size:#x}")
    domain = _paging(ctx, cmd.id)
    if not domain.tracking:
        raise UapiError(EINVAL, "dirty tracking is off")
    count = arg.length // size
    if count > _MOST_BITS:
        raise UapiError(ENOMEM, f"a bitmap of {count} bits is too large")
    # The whole bitmap is read before anything is marked: a bad pointer marks nothing.
    chunks = list(_bitmap(ctx, arg.uptr, count))
    arg.out_nr_dirty = sum(domain.mark(arg.iova + (base + n) * size) for base, raw in chunks for n in _set_bits(raw))
    respond(ctx, cmd, arg)


def _bitmap(ctx: Context, va: int, count: int) -> Iterator[tuple[int, bytes]]:
    """The parts of the caller's bitmap of `count` bits in which one is set: number of the first bit, bytes. EFAULT."""
    for base in range(0, count, _CHUNK_BITS):
        bits = min(_CHUNK_BITS, count - base)
        raw = ctx.caller.read(va + base // 8, (bits + 7) // 8)
        if bits % 8:
            raw = raw[:-1] + bytes([raw[-1] & (1 << bits % 8) - 1])
        if any(raw):
            yield base, raw


def _set_bits(raw: bytes) -> Iterator[int]:
    """The numbers of the bits that are 1, ascending."""
    for index, byte in enumerate(raw):
        if byte:
            yield from (index * 8 + bit for bit in range(8) if byte >> bit & 1)


def _check_iotlb(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.CheckIotlb) -> None:
    hwpt = ctx.objects.get(cmd.id, HwptNested)
    domain = hwpt.domain
    if not isinstance(domain, MockNestedDomain):
        raise UapiError(EINVAL, f"HWPT {cmd.id} is not of the mock")
    _check_word(domain.iotlb, arg.id, arg.iotlb)


def _check_cache(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.CheckDevCache) -> None:
    _check_word(_mock(ctx, cmd.id).cache, arg.id, arg.cache)


def _check_word(words: list[int], index: int, expected: int) -> None:
    if index >= len(words) or words[index] != expected:
        raise UapiError(EINVAL, f"word {index} is not {expected:#x}: {[hex(word) for word in words]}")


def _trigger_iopf(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.TriggerIopf) -> None:
    device = ctx.objects.get(arg.dev_id, DeviceObject).device
    fault = PageFault(arg.pasid or None, arg.grpid, True, arg.perm, arg.addr)
    if device.on_fault is not None:
        device.on_fault(fault)


def _trigger_vevent(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.TriggerVevent) -> None:
    device = _mock(ctx, arg.dev_id)
    domain = device.attached(None)
    if not isinstance(domain, MockNestedDomain) or domain.viommu is None:
        raise UapiError(ENOENT, f"device {device.name} is not attached to a vIOMMU's HWPT")
    domain.viommu.report(device.event_id)


def _pasid_attach(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.PasidAttach) -> None:
    device = _selftest(ctx, cmd.id).device
    arg.pt_id = devices.attach(device, arg.pt_id, arg.pasid or None)
    try:
        respond(ctx, cmd, arg)
    except UapiError:
        devices.detach(device, arg.pasid or None)
        raise


def _pasid_replace(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.PasidReplace) -> None:
    arg.pt_id = devices.replace(_selftest(ctx, cmd.id).device, arg.pt_id, arg.pasid or None)
    respond(ctx, cmd, arg)


def _pasid_detach(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.PasidDetach) -> None:
    devices.detach(_selftest(ctx, cmd.id).device, arg.pasid or None)


def _pasid_check(self: SelftestCommand, ctx: Context, cmd: test.TestCmd, arg: test.PasidCheck) -> None:
    group = _selftest(ctx, cmd.id).device.group
    if arg.hwpt_id and ctx.objects.find(arg.hwpt_id) is None:
        raise UapiError(ENOENT, f"there is no object {arg.hwpt_id}")
    hwpt = group.hwpt(arg.pasid or None)
    if (hwpt.id if hwpt else 0) != arg.hwpt_id:
        raise UapiError(EINVAL, f"PASID {arg.pasid} is attached to HWPT {hwpt.id if hwpt else 0}, not {arg.hwpt_id}")


def prepare_copy(ctx: Context, cmd: IoasCopy) -> None:
    """Test kernels take flag bit 16 in IOAS_COPY: the source is the nth area and an offset in it."""
    if cmd.flags & test.AccessFlags.SYZ:
        cmd.flags &= ~int(test.AccessFlags.SYZ)
        ioas = ctx.objects.find(cmd.src_ioas_id)
        if isinstance(ioas, Ioas):
            cmd.src_iova = selftest_access.nth_area(ioas, cmd.src_iova)


_Handler = Callable[[SelftestCommand, Context, test.TestCmd, Any], int | None]
_Op = test.TestOp
_LAST_6_12 = _Op.TRIGGER_IOPF
_OPERATIONS: dict[int, tuple[type[UserStruct], _Handler]] = {
    _Op.ADD_RESERVED: (test.AddReserved, _add_reserved),
    _Op.MOCK_DOMAIN: (test.MockDomain, _mock_domain),
    _Op.MD_CHECK_MAP: (test.CheckMap, _check_map),
    _Op.MD_CHECK_REFS: (test.CheckRefs, _check_refs),
    _Op.CREATE_ACCESS: (test.CreateAccess, selftest_access.create),
    _Op.DESTROY_ACCESS_PAGES: (test.DestroyAccessPages, selftest_access.destroy_pages),
    _Op.ACCESS_PAGES: (test.AccessPages, selftest_access.pages),
    _Op.ACCESS_RW: (test.AccessRw, selftest_access.rw),
    _Op.SET_TEMP_MEMORY_LIMIT: (test.MemoryLimit, _memory_limit),
    _Op.MOCK_DOMAIN_REPLACE: (test.MockDomainReplace, _mock_domain_replace),
    _Op.ACCESS_REPLACE_IOAS: (test.AccessReplaceIoas, selftest_access.replace_ioas),
    _Op.MOCK_DOMAIN_FLAGS: (test.MockDomainFlags, _mock_domain_flags),
    _Op.DIRTY: (test.Dirty, _dirty),
    _Op.MD_CHECK_IOTLB: (test.CheckIotlb, _check_iotlb),
    _Op.TRIGGER_IOPF: (test.TriggerIopf, _trigger_iopf),
    _Op.DEV_CHECK_CACHE: (test.CheckDevCache, _check_cache),
    _Op.TRIGGER_VEVENT: (test.TriggerVevent, _trigger_vevent),
    _Op.PASID_ATTACH: (test.PasidAttach, _pasid_attach),
    _Op.PASID_REPLACE: (test.PasidReplace, _pasid_replace),
    _Op.PASID_DETACH: (test.PasidDetach, _pasid_detach),
    _Op.PASID_CHECK_HWPT: (test.PasidCheck, _pasid_check),
    _Op.DMABUF_GET: (test.DmabufGet, selftest_dmabuf.get),
    _Op.DMABUF_REVOKE: (test.DmabufRevoke, selftest_dmabuf.revoke),
}
