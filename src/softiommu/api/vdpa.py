"""Virtio devices that vDPA has: bound to an iommufd, attached by address space, and driven by their queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.api.backend import SoftBackend
from softiommu.api.device import Device
from softiommu.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from softiommu.api.hwpt import Hwpt
    from softiommu.api.ioas import Ioas
    from softiommu.api.iommufd import Iommufd
    from softiommu.hardware.virtio.common import Status


class VdpaDevice(Device):
    """A device by its name in the machine. As a context manager it is closed, and so unbound, at the end.

    The queues of a group are in one address space of the device, which `attach` fills by number (ASID). Errors are
    those of vhost-vdpa, with a sentence.
    """

    def __init__(self, iommufd: Iommufd, name: str) -> None:
        backend = iommufd.backend
        if not isinstance(backend, SoftBackend):
            raise ConfigError("vDPA is for machines in this process: no kernel binds a vDPA device to an iommufd")
        devices = backend.machine.vdpa
        if name not in devices:
            raise ConfigError(f"vDPA has no device {name!r}: there are {', '.join(devices) or 'none'}")
        self._backend, self.vdpa = backend, devices[name]
        super().__init__(iommufd, backend.run(self.vdpa.bind))
        backend.on_close.append(self.close)

    def attach(self, target: Ioas | Hwpt, asid: int = 0) -> int:
        """Let an address space be `target`, in place of what it was; the id of the HWPT."""
        return self._backend.run(lambda context: self.vdpa.attach(asid, target.id))

    def detach(self, asid: int = 0) -> None:
        """Let an address space be empty: the device's DMA is blocked."""
        self._backend.run(lambda context: self.vdpa.detach(asid))

    def set_group_asid(self, group: int, asid: int) -> None:
        """Put the queues of a group into an address space."""
        self.vdpa.set_group_asid(group, asid)

    @property
    def features(self) -> int:
        """The feature bits that it offers."""
        return self.vdpa.features

    @property
    def status(self) -> Status:
        """The device status (virtio 1.2, 2.1)."""
        return self.vdpa.status

    def start(self, features: int, queues: dict[int, tuple[int, int, int, int]]) -> None:
        """From a reset to DRIVER_OK (virtio 1.2, 3.1.1). `queues`: entries, and the addresses of descriptors, available
        ring and used ring, of each. EINVAL: the device does not take the features; else as the single steps."""
        acknowledge, driver, ok, features_ok = 1, 2, 4, 8
        self.vdpa.set_status(0)
        self.vdpa.set_status(acknowledge | driver)
        self.vdpa.set_features(features)
        self.vdpa.set_status(acknowledge | driver | features_ok)
        for number, (entries, *addresses) in queues.items():
            self.vdpa.set_vq_num(number, entries)
            self.vdpa.set_vq_address(number, *addresses)
            self.vdpa.set_vq_ready(number)
        self.vdpa.set_status(acknowledge | driver | features_ok | ok)

    def config(self, offset: int, length: int) -> bytes:
        """Bytes of its configuration."""
        return self.vdpa.config(offset, length)

    def kick(self, queue: int) -> None:
        """There is something new in a queue."""
        self.vdpa.kick(queue)

    def on_used(self, queue: int, call: Callable[[], None]) -> None:
        """Who hears that it gave buffers back."""
        self.vdpa.on_used(queue, call)

    def on_config_change(self, call: Callable[[], None]) -> None:
        """Who hears that its configuration changed, or that it needs a reset."""
        self.vdpa.on_config_change(call)

    def reset(self) -> None:
        """It stops, and forgets its queues; it stays attached."""
        self.vdpa.set_status(0)

    def close(self) -> None:
        """Detach and unbind it."""
        if self.close in self._backend.on_close:
            self._backend.on_close.remove(self.close)
            self._backend.run(lambda context: self.vdpa.unbind())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VdpaDevice {self.vdpa.address}>"
