"""IOMMU_HWPT_INVALIDATE: a guest changed its page tables, or its vIOMMU's caches must forget."""

from __future__ import annotations

from errno import EINVAL, ENOENT

from softiommu.abi import iommufd as abi
from softiommu.drivers.user_data import Handled, UserArray
from softiommu.errors import UapiError
from softiommu.iommufd.context import Context
from softiommu.iommufd.hwpt import HwptNested
from softiommu.iommufd.ioas import refuse
from softiommu.iommufd.objects import Object
from softiommu.iommufd.viommu import ViommuObject
from softiommu.memory.client import PAGE_SIZE

_MAX_ENTRIES = 1 << 19


def invalidate(ctx: Context, cmd: abi.HwptInvalidate) -> None:
    """The entries in order; entry_num tells how many were carried out, also when one is refused."""
    handled = Handled()
    try:
        _invalidate(ctx, cmd, handled)
    except UapiError:
        cmd.entry_num = handled.count
        ctx.respond(cmd)
        raise
    cmd.entry_num = handled.count


def _invalidate(ctx: Context, cmd: abi.HwptInvalidate, handled: Handled) -> None:
    refuse(cmd.reserved, "reserved")
    if cmd.entry_num and (not cmd.data_uptr or not 0 < cmd.entry_len <= PAGE_SIZE or cmd.entry_num > _MAX_ENTRIES):
        raise UapiError(
            EINVAL, f"{cmd.entry_num} entries of {cmd.entry_len} bytes at {cmd.data_uptr:#x} are no array of entries"
        )
    target = ctx.objects.get(cmd.hwpt_id, Object)
    entries = UserArray(ctx.caller, cmd.data_uptr, cmd.data_type, cmd.entry_len, cmd.entry_num)
    if isinstance(target, HwptNested):
        target.domain.invalidate(entries, handled)
    elif isinstance(target, ViommuObject):
        target.viommu.invalidate(entries, handled)
    else:
        errno = EINVAL if ctx.kernel.invalidate_wrong_kind_is_einval else ENOENT
        raise UapiError(errno, f"object {cmd.hwpt_id} is a {target.kind}, not a nested HWPT or a vIOMMU")
