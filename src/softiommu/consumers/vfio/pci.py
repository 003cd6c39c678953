"""A PCI device while it is open: the commands of vfio-pci, and what opening and closing do to the function."""

from __future__ import annotations

from errno import EINVAL, ENOTTY
from typing import TYPE_CHECKING

from softiommu.abi import vfio
from softiommu.abi.vfio import DeviceFlags, Feature, FeatureFlags
from softiommu.consumers import eventfd, pci_host
from softiommu.consumers.calls import carry_out
from softiommu.consumers.vfio.config import ConfigSpace
from softiommu.consumers.vfio.ioeventfd import Ioeventfds
from softiommu.consumers.vfio.irq import Interrupts
from softiommu.consumers.vfio.regions import Regions, place_of
from softiommu.consumers.vfio.reset import hot_reset, hot_reset_info
from softiommu.errors import UapiError
from softiommu.hardware.pci_config import Command, Header

if TYPE_CHECKING:
    from collections.abc import Callable

    from softiommu.consumers.calls import Call
    from softiommu.consumers.eventfd import Eventfd
    from softiommu.consumers.vfio.device import VfioDevice
    from softiommu.consumers.vfio.mappings import Mappings
    from softiommu.iommufd.context import Services

_POWER = (Feature.LOW_POWER_ENTRY, Feature.LOW_POWER_ENTRY_WITH_WAKEUP, Feature.LOW_POWER_EXIT)
_FEATURE_FLAGS = int(FeatureFlags.MASK | FeatureFlags.GET | FeatureFlags.SET | FeatureFlags.PROBE)


class OpenFunction:
    """What an open device is made of. It is made when the device is opened first, and closed with its last file."""

    def __init__(self, device: VfioDevice) -> None:
        self._device, self._function = device, device.function
        self._enable()
        self.resettable = self._function.can_reset or (device.bus is not None and len(device.bus.devices) == 1)
        if self.resettable:
            pci_host.reset(self._function)
        self.config = ConfigSpace(self._function)
        self.interrupts = Interrupts(self._function, self.config)
        self.regions = Regions(self._function, self.config, self.interrupts.lines)
        self.ioeventfds = Ioeventfds(self.regions, self.show)
        #: Those of every file that maps memory of the device.
        self.mappings: list[Mappings] = []
        #: The eventfd that tells of the end of low power, while the device is in it.
        self._wakes: Eventfd | None = None
        self._function.on_change = self.show
        self.config.on_command = self.interrupts.command_changed
        self.config.on_function_reset = self._reset_function

    def _enable(self) -> None:
        """Windows on, bus master off, interrupts by INTx allowed."""
        bars = [bar for bar in self._function.bars if bar is not None]
        command = Command(self._function.read_config(Header.COMMAND.offset, 2)).replace(
            IO=int(any(bar.io for bar in bars)), MEMORY=int(not all(bar.io for bar in bars)), MASTER=0, INTX_DISABLE=0
        )
        self._function.write_config(Header.COMMAND.offset, 2, command)

    def show(self) -> None:
        """Registers that programs may have as memory changed, other than by their stores."""
        for mappings in self.mappings:
            mappings.show()

    def refresh(self) -> None:
        """What a program did may have turned the device's memory on or off."""
        if self.mappings:
            on = self.regions.on
            for mappings in self.mappings:
                mappings.set_open(on)

    def restore(self) -> None:
        """After a reset: interrupts go on as they were set up."""
        self.regions.power_changed()
        self.interrupts.restore()

    def _reset_function(self) -> None:
        """The program resets the function, by ioctl or through its Device Control register."""
        if self.resettable:
            pci_host.reset(self._function)
            self.restore()

    def close(self) -> None:
        """The device stops: no DMA, no interrupts, and its state is forgotten where it can be."""
        command = Command(self._function.read_config(Header.COMMAND.offset, 2))
        self._function.write_config(Header.COMMAND.offset, 2, command.replace(MASTER=0, INTX_DISABLE=1))
        self.interrupts.close()
        self.ioeventfds.close()
        self._function.on_change = lambda: None
        if self.resettable:
            pci_host.reset(self._function)
        self._device.needs_reset = not self.resettable

    def ioctl(self, services: Services, call: Call, cmd: int) -> int:
        """A command of PCI devices. ENOTTY: any other."""
        row = _COMMANDS.get(cmd)
        if row is None:
            raise UapiError(ENOTTY, f"{cmd:#x} is no command of a VFIO PCI device")
        name, handler = row
        context = self._device.context
        return carry_out(services, context.number if context else 0, name, call, lambda call: handler(self, call))

    def get_info(self, call: Call) -> None:
        """VFIO_DEVICE_GET_INFO."""
        cmd = call.struct(vfio.DeviceInfo)
        cmd.flags = int(DeviceFlags.PCI | (DeviceFlags.RESET if self.resettable else 0))
        cmd.num_regions, cmd.num_irqs = vfio.PCI_NUM_REGIONS, vfio.PCI_NUM_IRQS
        call.reply(cmd, min(cmd.argsz, vfio.DeviceInfo.SIZE))

    def get_region_info(self, call: Call) -> None:
        """VFIO_DEVICE_GET_REGION_INFO."""
        self.regions.info(call)

    def get_irq_info(self, call: Call) -> None:
        """VFIO_DEVICE_GET_IRQ_INFO."""
        self.interrupts.info(call)

    def set_irqs(self, call: Call) -> None:
        """VFIO_DEVICE_SET_IRQS."""
        self.interrupts.set(call)

    def ioeventfd(self, call: Call) -> None:
        """VFIO_DEVICE_IOEVENTFD."""
        self.ioeventfds.set(call)

    def reset(self, call: Call) -> None:
        """VFIO_DEVICE_RESET. EINVAL: the function has no reset of its own."""
        if not self.resettable:
            raise UapiError(EINVAL, f"{self._device.address} cannot be reset by itself")
        self._reset_function()

    def get_hot_reset_info(self, call: Call) -> None:
        """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO."""
        hot_reset_info(self._device, call)

    def hot_reset(self, call: Call) -> None:
        """VFIO_DEVICE_PCI_HOT_RESET."""
        hot_reset(self._device, call)

    def feature(self, call: Call) -> None:
        """VFIO_DEVICE_FEATURE. ENOTTY: a feature that the device does not have, such as migration."""
        cmd = call.struct(vfio.DeviceFeature)
        get, set, probe = (bool(cmd.flags & flag) for flag in (FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE))
        if cmd.flags & ~_FEATURE_FLAGS:
            raise UapiError(EINVAL, f"flags {cmd.flags:#x} are not known")
        if get and set and not probe:
            raise UapiError(EINVAL, "a feature is got or set, not both")
        number = cmd.flags & int(FeatureFlags.MASK)
        if number not in _POWER:
            raise UapiError(ENOTTY, f"the device has no feature {number}")
        if get or not (set or probe):
            raise UapiError(EINVAL, "power states are set")
        if not probe:
            self._set_power(call, number, cmd.argsz)

    def _set_power(self, call: Call, number: int, argsz: int) -> None:
        """The program lets the device sleep: until it wakes it, the device's memory is off.

        Where it gave an eventfd, the next call on the device wakes it, too, and the eventfd says so (`wake`).
        """
        wakeup = self._wakeup(call, argsz) if number == Feature.LOW_POWER_ENTRY_WITH_WAKEUP else None
        low = number != Feature.LOW_POWER_EXIT
        if low and self.regions.low_power:
            raise UapiError(EINVAL, "the device is in low power already")
        self.regions.low_power, self._wakes = low, wakeup

    @staticmethod
    def _wakeup(call: Call, argsz: int) -> Eventfd:
        """The eventfd that is to tell of the end of low power. EINVAL, EBADF, EFAULT."""
        head, size = vfio.DeviceFeature.SIZE, vfio.DeviceLowPowerEntryWithWakeup.SIZE
        if argsz < head + size:
            raise UapiError(EINVAL, f"argsz {argsz} has no room for an eventfd")
        entry = vfio.DeviceLowPowerEntryWithWakeup.from_bytes(call.read(head, size))
        if entry.wakeup_eventfd < 0:
            raise UapiError(EINVAL, f"descriptor {entry.wakeup_eventfd} cannot be")
        return eventfd.find(call.caller, entry.wakeup_eventfd)

    def wake(self) -> None:
        """A call is about to come. A device that sleeps with an eventfd is on again, for good, and the eventfd tells.

        Without one the kernel wakes the device for the time of the call, which nobody sees.
        """
        if self._wakes is not None:
            wakes, self._wakes = self._wakes, None
            self.regions.low_power = False
            self.refresh()
            wakes.signal()

    def wake_by_access(self, offset: int) -> None:
        """A read or write is about to come: where a region lies it wakes the device."""
        if place_of(offset)[0] < vfio.PCI_NUM_REGIONS:
            self.wake()


_COMMANDS: dict[int, tuple[str, Callable[[OpenFunction, Call], None]]] = {
    vfio.DEVICE_GET_INFO: ("VFIO_DEVICE_GET_INFO", OpenFunction.get_info),
    vfio.DEVICE_GET_REGION_INFO: ("VFIO_DEVICE_GET_REGION_INFO", OpenFunction.get_region_info),
    vfio.DEVICE_GET_IRQ_INFO: ("VFIO_DEVICE_GET_IRQ_INFO", OpenFunction.get_irq_info),
    vfio.DEVICE_SET_IRQS: ("VFIO_DEVICE_SET_IRQS", OpenFunction.set_irqs),
    vfio.DEVICE_RESET: ("VFIO_DEVICE_RESET", OpenFunction.reset),
    vfio.DEVICE_GET_PCI_HOT_RESET_INFO: ("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", OpenFunction.get_hot_reset_info),
    vfio.DEVICE_PCI_HOT_RESET: ("VFIO_DEVICE_PCI_HOT_RESET", OpenFunction.hot_reset),
    vfio.DEVICE_IOEVENTFD: ("VFIO_DEVICE_IOEVENTFD", OpenFunction.ioeventfd),
    vfio.DEVICE_FEATURE: ("VFIO_DEVICE_FEATURE", OpenFunction.feature),
}
