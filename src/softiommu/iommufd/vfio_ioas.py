"""IOMMU_VFIO_IOAS: the IOAS on which VFIO's container commands work."""

from __future__ import annotations

from errno import ENODEV, EOPNOTSUPP

from softiommu.abi import iommufd as abi
from softiommu.errors import UapiError
from softiommu.iommufd.context import Context
from softiommu.iommufd.ioas import Ioas, refuse


def vfio_ioas(ctx: Context, cmd: abi.VfioIoas) -> None:
    """IOMMU_VFIO_IOAS: which IOAS the VFIO commands use."""
    refuse(cmd.reserved, "reserved")
    if cmd.op == abi.VfioIoasOp.GET:
        cmd.ioas_id = compat_ioas(ctx).id
        ctx.respond(cmd)
    elif cmd.op == abi.VfioIoasOp.SET:
        ctx.vfio_ioas = ctx.objects.get(cmd.ioas_id, Ioas)
    elif cmd.op == abi.VfioIoasOp.CLEAR:
        ctx.vfio_ioas = None
    else:
        raise UapiError(EOPNOTSUPP, f"there is no VFIO_IOAS operation {cmd.op}")


def compat_ioas(ctx: Context) -> Ioas:
    """The compatibility IOAS. ENODEV: none is set."""
    if ctx.vfio_ioas is None:
        raise UapiError(ENODEV, "no compatibility IOAS is set (IOMMU_VFIO_IOAS, or a group joining the container)")
    return ctx.vfio_ioas
