"""IOMMU_IOAS_NOIOMMU_GET_PA: where pinned memory lies, for devices that no IOMMU translates."""

from __future__ import annotations

from errno import EINVAL, ENOENT, EOPNOTSUPP, EOVERFLOW, EPERM

from softiommu.abi import iommufd as abi
from softiommu.drivers.noiommu import NoIommuDomain
from softiommu.errors import UapiError
from softiommu.iommufd.area import MAX
from softiommu.iommufd.context import Context
from softiommu.iommufd.ioas import Ioas, refuse
from softiommu.memory.client import CAP_SYS_RAWIO


def get_pa(ctx: Context, cmd: abi.IoasNoiommuGetPa) -> None:
    """The physical address of `iova`, and for how many bytes memory goes on from there."""
    if not ctx.services.no_iommu:
        raise UapiError(EOPNOTSUPP, "this kernel is built without no-IOMMU support")
    if not ctx.caller.capable(CAP_SYS_RAWIO):
        raise UapiError(EPERM, "physical addresses need CAP_SYS_RAWIO")
    refuse(cmd.flags, "flags")
    refuse(cmd.reserved, "reserved")
    if not cmd.length:
        raise UapiError(EINVAL, "length 0")
    if cmd.iova == MAX:
        raise UapiError(EOVERFLOW, "iova must be below 2**64 - 1")
    table = ctx.objects.get(cmd.ioas_id, Ioas).map
    area = table.overlapping(cmd.iova, cmd.iova)
    if area is None:
        raise UapiError(ENOENT, f"iova {cmd.iova:#x} is not mapped")
    if not any(isinstance(domain, NoIommuDomain) for domain in table.domains):
        raise UapiError(EOPNOTSUPP, f"IOAS {cmd.ioas_id} has no no-IOMMU domain")
    run = next(area.pages.runs(area.byte(cmd.iova), area.last - cmd.iova + 1))
    cmd.out_phys = run.pa
    cmd.length = run.length
