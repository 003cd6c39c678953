"""Behind a virtual SMMUv3: a vIOMMU of iommufd, over the host's own SMMUv3.

An STE becomes a nested HWPT; the other commands go to the vIOMMU as they are, and events come back with the guest's
stream ids.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from errno import ETIMEDOUT
from functools import partial
from struct import unpack
from typing import TYPE_CHECKING

from softiommu.abi.iommufd import (
    HwptArmSmmuv3,
    HwptDataType,
    InvalidateDataType,
    VeventArmSmmuv3,
    VeventqType,
    ViommuArmSmmuv3Invalidate,
)
from softiommu.hardware.smmuv3.registers import CommandError
from softiommu.vmm.passed import PassedDevice
from softiommu.vmm.smmuv3 import Backing, Ste

if TYPE_CHECKING:
    from softiommu.api import Hwpt, Vdevice, VfioDevice, Viommu
    from softiommu.hardware.smmuv3.configuration import Configuration
    from softiommu.vmm.passed import Note

_LOG = logging.getLogger(__name__)


class OnViommu:
    """The devices of one vIOMMU, whose parent shows the guest's RAM at the guest's addresses. `depth` events may wait
    in `queue`; `note` is told of what the host refuses."""

    def __init__(self, viommu: Viommu, depth: int = 256, note: Note = _LOG.warning) -> None:
        self._viommu, self._note = viommu, note
        self.passed: dict[int, PassedDevice[Ste]] = {}
        self._names: dict[int, Vdevice] = {}
        #: Its descriptor is what the VMM polls.
        self.queue = viommu.event_queue(VeventqType.ARM_SMMUV3, depth, VeventArmSmmuv3.SIZE)

    def plug(self, sid: int, device: VfioDevice, contexts: Configuration) -> None:
        """Name a device as the guest does. The host's SMMU reads the contexts. OSError: the name or it is taken."""
        self._names[sid] = self._viommu.vdevice(device, sid)
        self.passed[sid] = PassedDevice(sid, device, self._note)

    def unplug(self, sid: int) -> None:
        """A device goes."""
        self.passed.pop(sid).close()
        self._names.pop(sid).destroy()

    def use(self, sid: int, ste: Ste) -> None:
        """A device's entry is this now, or is still."""
        passed = self.passed[sid]
        passed.attach(None, ste, partial(self._make, passed, ste))

    def _make(self, passed: PassedDevice[Ste], ste: Ste) -> tuple[Hwpt, bool]:
        data = HwptDataType.ARM_SMMUV3, HwptArmSmmuv3(ste.word0, ste.word1)
        return passed.device.hwpt(self._viommu, 0, data), True

    def forward(self, commands: list[tuple[int, int]]) -> tuple[int, CommandError]:
        """All in one call."""
        entries = [ViommuArmSmmuv3Invalidate(*words) for words in commands]
        kind = InvalidateDataType.VIOMMU_INVALIDATE_DATA_ARM_SMMUV3
        try:
            self._viommu.invalidate(kind, list(entries))
        except OSError as error:
            self._note(f"the host refuses a command of the guest: {error}")
            done: int = getattr(error, "handled", 0)
            return done, CommandError.ATC_INV_SYNC if error.errno == ETIMEDOUT else CommandError.ILL
        return len(commands), CommandError.NONE

    def events(self) -> Iterator[Sequence[int] | None]:
        """The event records that wait; None: some were lost."""
        while self.queue.ready:
            for event in self.queue.read():
                yield None if event.data is None else unpack("<4Q", event.data)

    def close(self) -> None:
        """The event queue goes; the vIOMMU is the VMM's own."""
        self.queue.close()


_: type[Backing] = OnViommu
