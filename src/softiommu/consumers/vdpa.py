"""vDPA: a virtio device whose queues are in the hands of a program, over an iommufd. The third consumer.

What a program may do with it is what vhost-vdpa offers (drivers/vhost/vdpa.c), and the parent driver is like vp_vdpa,
which drives a virtio function of PCI. But vhost-vdpa's own mappings (its IOTLB messages) are not here: the address
spaces are an iommufd's, the same that VFIO's devices attach to. Linux has proposals for that, and no such interface.

Virtqueues that cannot be told apart by the IOMMU are a group, and each group is in one address space, by number (ASID).
A function whose requests bear one id has one group and one address space.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EBUSY, EINVAL, ENOBUFS, ENXIO
from typing import TYPE_CHECKING, Any

from softiommu.errors import UapiError
from softiommu.hardware.devices.virtio_blk import CONFIG_SIZE, DEVICE_ID, Features, Registers
from softiommu.hardware.msi import Kind
from softiommu.hardware.pci_config import Command, Header
from softiommu.hardware.virtio.common import CONFIG, Half, Isr, Status
from softiommu.hardware.virtio.tables import LARGEST
from softiommu.iommufd import device as devices

if TYPE_CHECKING:
    from softiommu.drivers.driver import Device
    from softiommu.hardware.msi import Interrupt
    from softiommu.hardware.pci import Function
    from softiommu.iommufd.context import Context
    from softiommu.iommufd.device import DeviceObject
    from softiommu.registers import Register

_BAR = 0
GROUPS = ADDRESS_SPACES = 1


def _nothing() -> None:
    """Nobody listens."""


class VdpaDevice:
    """One virtio function. `address` is its PCI address. Calls that name a queue: ENOBUFS where there is no such."""

    #: Virtio's number of the kind of device, and bytes of its configuration.
    device_id, config_size = DEVICE_ID, CONFIG_SIZE

    def __init__(self, function: Function, device: Device, address: str) -> None:
        self._function, self._device, self.address = function, device, address
        self.bound: DeviceObject | None = None
        self._attached = False
        self._on_queue: dict[int, Callable[[], None]] = {}
        self._on_config: Callable[[], None] = _nothing
        function.on_interrupt = self._interrupted

    # Address spaces

    def bind(self, context: Context) -> int:
        """Take the device, within a call on its iommufd: the id of its object. EBUSY: it is bound; else as VFIO's."""
        if self.bound is not None:
            raise UapiError(EBUSY, f"{self.address} is bound already")
        self.bound = devices.bind(context, self._device)
        context.hold()
        self._function.reset()
        self._enable(MEMORY=1, MASTER=1, INTX_DISABLE=0)
        return self.bound.id

    def unbind(self) -> None:
        """Give it back: it stops, forgets its queues, and is attached to nothing."""
        bound = self.bound
        if bound is None:
            return
        self._enable(MASTER=0)
        self._function.reset()
        self._on_queue.clear()
        self._on_config = _nothing
        self.detach(0)
        self.bound = None
        devices.unbind(bound)
        bound.ctx.put()

    def attach(self, asid: int, pt_id: int) -> int:
        """Let an address space be what an IOAS or an HWPT says, in place of what it was; the id of the HWPT.

        EINVAL: no such address space, or the device is not bound; ENOENT and others from the iommufd.
        """
        bound = self._bound(asid)
        hwpt = (devices.replace if self._attached else devices.attach)(bound, pt_id)
        self._attached = True
        return hwpt

    def detach(self, asid: int) -> None:
        """Nothing is mapped in an address space any more: the device's DMA is blocked."""
        bound = self._bound(asid)
        if self._attached:
            devices.detach(bound)
            self._attached = False

    def set_group_asid(self, group: int, asid: int) -> None:
        """Put the queues of a group into an address space. EINVAL: there is no such group or address space."""
        if group >= GROUPS or asid >= ADDRESS_SPACES:
            raise UapiError(EINVAL, f"group {group} or address space {asid}: {self.address} has one of each")

    def vq_group(self, queue: int) -> int:
        """The group of a queue."""
        self._check_queue(queue)
        return 0

    def _bound(self, asid: int) -> DeviceObject:
        if self.bound is None:
            raise UapiError(EINVAL, f"{self.address} is not bound to an iommufd")
        if asid >= ADDRESS_SPACES:
            raise UapiError(EINVAL, f"{self.address} has no address space {asid}")
        return self.bound

    # The device

    @property
    def status(self) -> Status:
        """The device status (virtio 1.2, 2.1)."""
        return Status(self._read(Registers.DEVICE_STATUS))

    def set_status(self, status: int) -> None:
        """Set bits of it; 0 resets the device. EINVAL: bits would go."""
        self._check_bound()
        if status and self.status & ~status & ~Status.DEVICE_NEEDS_RESET.mask:
            raise UapiError(EINVAL, f"status {status:#x} takes bits of {int(self.status):#x} away")
        self._write(Registers.DEVICE_STATUS, status)

    @property
    def features(self) -> int:
        """The feature bits that the device offers."""
        return self._halves(Registers.DEVICE_FEATURE_SELECT, Registers.DEVICE_FEATURE)

    def set_features(self, features: int) -> None:
        """Accept feature bits. EBUSY: they are negotiated; EINVAL: not offered, or DMA that nobody translates."""
        self._check_bound()
        if self.status.FEATURES_OK:
            raise UapiError(EBUSY, "the features are negotiated: a reset of the device comes before others")
        if features & ~self.features or not Features(features).ACCESS_PLATFORM:
            offered = Features(self.features)
            raise UapiError(EINVAL, f"features {features:#x}: {offered!r} are offered, ACCESS_PLATFORM is needed")
        for half in range(2):
            self._write(Registers.DRIVER_FEATURE_SELECT, half)
            self._write(Registers.DRIVER_FEATURE, features >> 32 * half & Half.BITS.mask)

    def config(self, offset: int, length: int) -> bytes:
        """Bytes of the device's configuration. EINVAL: none; E2BIG: past its end."""
        if not length:
            raise UapiError(EINVAL, "no byte of the configuration is asked for")
        if offset + length > self.config_size:
            raise UapiError(E2BIG, f"{offset:#x}..{offset + length - 1:#x}: it has {self.config_size} bytes")
        return bytes(self._function.read_bar(_BAR, CONFIG + at, 1) for at in range(offset, offset + length))

    def on_config_change(self, call: Callable[[], None]) -> None:
        """Who hears that the configuration changed, or that the device needs a reset."""
        self._on_config = call

    # Queues

    @property
    def num_queues(self) -> int:
        """How many virtqueues there are."""
        return self._read(Registers.NUM_QUEUES)

    def vq_num_max(self, queue: int) -> int:
        """How many entries a queue has at most."""
        self._select(queue)
        return self._read(Registers.QUEUE_SIZE)

    def set_vq_num(self, queue: int, entries: int) -> None:
        """Give a queue so many entries. EINVAL: no power of two, or too many."""
        most = self.vq_num_max(queue)
        if not 0 < entries <= min(most, LARGEST) or entries & entries - 1:
            raise UapiError(EINVAL, f"a queue of {entries} entries: expected a power of two up to {most}")
        self._write(Registers.QUEUE_SIZE, entries)

    def set_vq_address(self, queue: int, descriptors: int, available: int, used: int) -> None:
        """Where the parts of a queue lie, by addresses of its address space. EBUSY: the queue is ready already."""
        if self.vq_ready(queue):
            raise UapiError(EBUSY, f"queue {queue} is ready: it is moved after a reset of the device only")
        self._write(Registers.QUEUE_DESC, descriptors)
        self._write(Registers.QUEUE_DRIVER, available)
        self._write(Registers.QUEUE_DEVICE, used)

    def vq_ready(self, queue: int) -> bool:
        """Whether the device uses a queue."""
        self._select(queue)
        return bool(self._read(Registers.QUEUE_ENABLE))

    def set_vq_ready(self, queue: int) -> None:
        """Let the device use a queue, until it is reset."""
        self._check_bound()
        self._select(queue)
        self._write(Registers.QUEUE_ENABLE, 1)

    def kick(self, queue: int) -> None:
        """There is something new in a queue."""
        self._check_bound()
        self._check_queue(queue)
        self._function.write_bar(_BAR, Registers.NOTIFY.at(queue), Registers.NOTIFY.first.size, queue)

    def on_used(self, queue: int, call: Callable[[], None]) -> None:
        """Who hears that the device gave buffers of a queue back."""
        self._check_queue(queue)
        self._on_queue[queue] = call

    def _check_queue(self, queue: int) -> None:
        if not 0 <= queue < self.num_queues:
            raise UapiError(ENOBUFS, f"{self.address} has no queue {queue}")

    def _check_bound(self) -> None:
        if self.bound is None:
            raise UapiError(ENXIO, f"{self.address} is not bound to an iommufd")

    def _select(self, queue: int) -> None:
        self._check_queue(queue)
        self._write(Registers.QUEUE_SELECT, queue)

    def _interrupted(self, interrupt: Interrupt) -> None:
        """The pin is up: reading why takes it down."""
        if interrupt.kind is not Kind.INTX or not interrupt.asserted:
            return
        isr = Isr(self._read(Registers.ISR))
        if isr.QUEUE:
            for call in list(self._on_queue.values()):
                call()
        if isr.CONFIG:
            self._on_config()

    # Registers

    def _read(self, register: Register[Any]) -> int:
        return self._function.read_bar(_BAR, register.offset, register.size)

    def _write(self, register: Register[Any], value: int) -> None:
        self._function.write_bar(_BAR, register.offset, register.size, value)

    def _halves(self, select: Register[Any], half: Register[Any]) -> int:
        """The feature bits behind a pair of registers."""
        value = 0
        for number in range(2):
            self._write(select, number)
            value |= self._read(half) << 32 * number
        return value

    def _enable(self, **fields: int) -> None:
        command = Command(self._function.read_config(Header.COMMAND.offset, 2)).replace(**fields)
        self._function.write_config(Header.COMMAND.offset, 2, command)
