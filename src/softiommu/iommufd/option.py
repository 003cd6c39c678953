"""IOMMU_OPTION: who pays for pinned pages, and whether large pages may be used."""

from __future__ import annotations

from errno import EBUSY, EINVAL, EOPNOTSUPP, EPERM

from softiommu.abi import iommufd as abi
from softiommu.errors import UapiError
from softiommu.iommufd.context import Context
from softiommu.iommufd.ioas import Ioas, refuse, set_large_pages
from softiommu.memory.client import CAP_SYS_RESOURCE

_RLIMIT_MODE, _HUGE_PAGES = 0, 1
_SET, _GET = 0, 1


def option(ctx: Context, cmd: abi.Option) -> None:
    """IOMMU_OPTION."""
    refuse(cmd.reserved, "reserved")
    if cmd.option_id == _RLIMIT_MODE:
        _rlimit_mode(ctx, cmd)
    elif cmd.option_id == _HUGE_PAGES:
        _huge_pages(ctx, cmd)
    else:
        raise UapiError(EOPNOTSUPP, f"there is no option {cmd.option_id}")


def _rlimit_mode(ctx: Context, cmd: abi.Option) -> None:
    if cmd.object_id:
        raise UapiError(EOPNOTSUPP, "RLIMIT_MODE belongs to the whole file: object_id must be 0")
    if cmd.op == _GET:
        cmd.val64 = int(ctx.per_process_limit)
        return
    if cmd.op != _SET:
        raise UapiError(EOPNOTSUPP, f"there is no option operation {cmd.op}")
    if not ctx.caller.capable(CAP_SYS_RESOURCE):
        raise UapiError(EPERM, "changing RLIMIT_MODE needs CAP_SYS_RESOURCE")
    if len(ctx.objects):
        raise UapiError(EBUSY, "RLIMIT_MODE can change only while the file has no objects")
    if cmd.val64 > 1:
        raise UapiError(EINVAL, f"RLIMIT_MODE is 0 or 1, not {cmd.val64}")
    ctx.per_process_limit = bool(cmd.val64)


def _huge_pages(ctx: Context, cmd: abi.Option) -> None:
    ioas = ctx.objects.get(cmd.object_id, Ioas)
    if cmd.op == _GET:
        cmd.val64 = int(ioas.map.large_pages)
    elif cmd.op == _SET:
        if cmd.val64 > 1:
            raise UapiError(EINVAL, f"HUGE_PAGES is 0 or 1, not {cmd.val64}")
        set_large_pages(ioas, bool(cmd.val64))
    else:
        raise UapiError(EOPNOTSUPP, f"there is no option operation {cmd.op}")
