"""A device that VFIO's driver holds: what all its open files share (struct vfio_device)."""

from __future__ import annotations

from errno import EINVAL, ENOSPC
from typing import TYPE_CHECKING

from softiommu.consumers import pci_host
from softiommu.consumers.vfio.pci import OpenFunction
from softiommu.errors import UapiError
from softiommu.iommufd import device as devices
from softiommu.iommufd.vfio_ioas import compat_ioas

if TYPE_CHECKING:
    from softiommu.consumers.vfio.group import VfioGroup
    from softiommu.consumers.vfio.reset import Bus
    from softiommu.drivers.driver import Device
    from softiommu.hardware.pci import Function
    from softiommu.iommufd.context import Context
    from softiommu.iommufd.device import DeviceObject

#: The kernel keeps PASIDs as positive numbers of 32 bits.
_LAST_PASID = 0x7FFFFFFF


class VfioDevice:
    """One physical device: its function, how the IOMMU's driver shows it, and its group.

    `address` is its PCI address (`0000:02:01.0`). `bus`: the devices that a reset of its bus resets, where it sits
    behind a bridge.
    """

    def __init__(
        self, function: Function, device: Device, address: str, group: VfioGroup, bus: Bus | None = None
    ) -> None:
        self.function, self.device, self.address, self.group, self.bus = function, device, address, group, bus
        pci_host.turn_on(function, device.features)
        group.devices.append(self)
        if bus is not None:
            bus.devices.append(self)
        #: How many files have it open, that is: bound to an iommufd.
        self.opens = 0
        #: Whether the one that has it open came through the device's own node.
        self.by_cdev = False
        self.bound: DeviceObject | None = None
        self.pci: OpenFunction | None = None
        #: It was used since its last reset.
        self.needs_reset = False
        self._attached = False
        self._pasids: set[int] = set()

    @property
    def context(self) -> Context | None:
        """The iommufd it is bound to."""
        return self.bound.ctx if self.bound else None

    def open(self, context: Context, by_cdev: bool) -> None:
        """Bind it to an iommufd, within a call on that one. EINVAL: through its own node it is bound once only."""
        if self.opens and by_cdev:
            raise UapiError(EINVAL, f"{self.address} is bound already")
        if not self.opens:
            self.bound = devices.bind(context, self.device)
            context.hold()
            self.pci = OpenFunction(self)
            self.by_cdev = by_cdev
        self.opens += 1

    def close(self) -> None:
        """A file that had it open is gone; with the last one the device stops, is reset, detached and unbound."""
        self.opens -= 1
        if self.opens:
            return
        bound, pci = self.bound, self.pci
        assert bound is not None, "an open device is bound"
        assert pci is not None, "an open device is enabled"
        pci.close()
        self.pci, self.by_cdev = None, False
        self.detach()
        for pasid in sorted(self._pasids):
            self.detach_pasid(pasid)
        context = bound.ctx
        devices.unbind(bound)
        self.bound = None
        context.put()
        if self.bus is not None:
            self.bus.reset_if_unused()

    def attach(self, pt_id: int) -> int:
        """Attach its own requests, or move them when they are attached; the id of the HWPT."""
        assert self.bound is not None, "only a bound device attaches"
        step = devices.replace if self._attached else devices.attach
        hwpt = step(self.bound, pt_id)
        self._attached = True
        return hwpt

    def detach(self) -> None:
        """Detach its own requests, if they are attached."""
        if self._attached and self.bound is not None:
            devices.detach(self.bound)
            self._attached = False

    def attach_pasid(self, pasid: int, pt_id: int) -> int:
        """The same for the requests with one PASID. ENOSPC: a number that no PASID has in any kernel."""
        assert self.bound is not None, "only a bound device attaches"
        if pasid > _LAST_PASID:
            raise UapiError(ENOSPC, f"PASID {pasid:#x} is past {_LAST_PASID:#x}")
        step = devices.replace if pasid in self._pasids else devices.attach
        hwpt = step(self.bound, pt_id, pasid or None)
        self._pasids.add(pasid)
        return hwpt

    def detach_pasid(self, pasid: int) -> None:
        """The same for the requests with one PASID."""
        if pasid in self._pasids and self.bound is not None:
            devices.detach(self.bound, pasid or None)
            self._pasids.remove(pasid)

    def attach_compat(self) -> None:
        """A device of a group sees the compatibility IOAS. ENODEV: there is none."""
        assert self.bound is not None, "only a bound device attaches"
        self.attach(compat_ioas(self.bound.ctx).id)
