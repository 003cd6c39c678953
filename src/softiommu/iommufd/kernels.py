"""The kernels whose uAPI can be presented, and what differs between them beyond the command table."""

from __future__ import annotations

from dataclasses import dataclass

from softiommu.errors import ConfigError

DEFAULT = "7.2"


@dataclass(frozen=True)
class Kernel:
    """One kernel version. The fields say how it behaves where versions differ; all were seen on the real kernels."""

    name: str
    #: IOAS_MAP looks at user_va + length (EOVERFLOW) before it looks at the length by itself (EINVAL).
    map_checks_wrap_first: bool = True
    #: HWPT_INVALIDATE on an object of another kind: EINVAL; older kernels say ENOENT.
    invalidate_wrong_kind_is_einval: bool = True
    #: GET_DIRTY_BITMAP of length 0 means 2**64 bytes; older kernels say EINVAL.
    dirty_bitmap_empty_overflows: bool = True
    #: GET_HW_INFO takes the INPUT_TYPE flag and reports the PCI_ATS_NOT_SUPPORTED capability.
    hw_info_input_type: bool = True
    #: HWPT_ALLOC knows the PASID flag, and takes a fault queue on an IOAS too; GET_HW_INFO tells of PASIDs.
    hwpt_pasid: bool = True
    #: VFIO_DEVICE_BIND_IOMMUFD takes a token, and its structure may be longer than known.
    vfio_bind_token: bool = True
    #: VFIO_DEVICE_ATTACH_IOMMUFD_PT and its opposite take a PASID.
    vfio_pasid: bool = True


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "6.12",
            map_checks_wrap_first=False,
            invalidate_wrong_kind_is_einval=False,
            dirty_bitmap_empty_overflows=False,
            hw_info_input_type=False,
            hwpt_pasid=False,
            vfio_bind_token=False,
            vfio_pasid=False,
        ),
        Kernel("7.2"),
        Kernel("7.3"),
    )
}


def kernel(name: str) -> Kernel:
    """The kernel of this name. ConfigError: what exists, and the nearest match."""
    if name in KERNELS:
        return KERNELS[name]
    from difflib import get_close_matches

    near = get_close_matches(name, KERNELS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown kernel {name!r}: there are {', '.join(KERNELS)}{hint}")
