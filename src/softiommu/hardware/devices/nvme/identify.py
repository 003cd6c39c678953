"""What Identify tells of the controller and its namespaces. NVM Express 1.4, section 5.15."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

from softiommu.hardware.devices.nvme import events, logs
from softiommu.hardware.devices.nvme.commands import COMPLETION_LG2, SUBMISSION_LG2, Cns, CommandError, Status
from softiommu.hardware.devices.nvme.namespace import Namespace
from softiommu.hardware.devices.nvme.registers import VERSION_1_4
from softiommu.hardware.devices.nvme.structures import (
    CONTROLLER,
    DESCRIPTOR,
    NAMESPACE,
    NIDT_UUID,
    PAGE,
)

#: log2 of the largest transfer in pages of 4 KiB: 512 KiB.
MDTS = 7

#: Characters of a serial number, at most.
SERIAL_LENGTH = 20

_IO_CONTROLLER = 1
_OACS_FORMAT = 1 << 1
#: Compare, Dataset Management, Write Zeroes, and the Select field of Get Features.
_ONCS = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4
#: One slot, which cannot be written.
_FRMW = 1 << 1 | 1 << 0
#: Get Log Page takes an offset and a length of 32 bits.
_LPA_EXTENDED = 1 << 2
#: There is a cache, and Flush takes all namespaces at once.
_VWC = 1 << 0 | 3 << 1
#: Deallocated blocks read as 0, and Write Zeroes may deallocate.
_DLFEAT = 1 << 0 | 1 << 3
_LBADS_SHIFT = 16
#: 0.01 W.
_MAX_POWER = 2500


class Subsystem(NamedTuple):
    """Who the controller is, and what it has."""

    vendor: int
    subsystem_vendor: int
    serial: str
    model: str
    namespaces: Sequence[Namespace]

    def uuid(self, nsid: int) -> bytes:
        """A namespace's identifier: its own, or one made of the serial number and its number."""
        own = self.namespaces[nsid - 1].uuid
        return own if own is not None else uuid5(NAMESPACE_OID, f"{self.serial}:{nsid}").bytes

    def find(self, nsid: int) -> Namespace:
        """A namespace by its number. CommandError: there is no such."""
        if not 1 <= nsid <= len(self.namespaces):
            raise CommandError(Status.INVALID_NAMESPACE)
        return self.namespaces[nsid - 1]

    def identify(self, cns: int, nsid: int) -> bytes:
        """The page that Identify returns. CommandError."""
        if cns == Cns.CONTROLLER:
            return self._controller()
        if cns == Cns.NAMESPACE:
            return _namespace(self.find(nsid))
        if cns == Cns.ACTIVE_NAMESPACES:
            return self._active(nsid)
        if cns == Cns.NAMESPACE_DESCRIPTORS:
            self.find(nsid)
            return DESCRIPTOR.pack(NIDT=NIDT_UUID, NIDL=16, NID=self.uuid(nsid)).ljust(PAGE, b"\0")
        raise CommandError(Status.INVALID_FIELD)

    def _active(self, after: int) -> bytes:
        if after >= 0xFFFFFFFE:
            raise CommandError(Status.INVALID_NAMESPACE)
        ids = range(after + 1, len(self.namespaces) + 1)[: PAGE // 4]
        return b"".join(nsid.to_bytes(4, "little") for nsid in ids).ljust(PAGE, b"\0")

    def _controller(self) -> bytes:
        return CONTROLLER.pack(
            VID=self.vendor,
            SSVID=self.subsystem_vendor,
            SN=self.serial.encode().ljust(SERIAL_LENGTH),
            MN=self.model.encode().ljust(40),
            FR=logs.FIRMWARE_REVISION,
            MDTS=MDTS,
            VER=VERSION_1_4,
            CNTRLTYPE=_IO_CONTROLLER,
            OACS=_OACS_FORMAT,
            ACL=3,
            AERL=events.LIMIT - 1,
            FRMW=_FRMW,
            LPA=_LPA_EXTENDED,
            ELPE=logs.ERROR_ENTRIES - 1,
            WCTEMP=logs.WARNING,
            CCTEMP=logs.CRITICAL,
            SQES=SUBMISSION_LG2 << 4 | SUBMISSION_LG2,
            CQES=COMPLETION_LG2 << 4 | COMPLETION_LG2,
            NN=len(self.namespaces),
            ONCS=_ONCS,
            VWC=_VWC,
            SUBNQN=f"nqn.2014-08.org.nvmexpress:uuid:{uuid5(NAMESPACE_OID, self.serial)}".encode(),
            PSD0=_MAX_POWER,
        )


def _namespace(namespace: Namespace) -> bytes:
    return NAMESPACE.pack(
        NSZE=namespace.blocks,
        NCAP=namespace.blocks,
        NUSE=namespace.blocks,
        NLBAF=len(namespace.formats) - 1,
        FLBAS=namespace.format,
        DLFEAT=_DLFEAT,
        **{f"LBAF{number}": lg2 << _LBADS_SHIFT for number, lg2 in enumerate(namespace.formats)},
    )
