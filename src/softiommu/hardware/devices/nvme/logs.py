"""Log pages: errors, health and firmware slots. NVM Express 1.4, section 5.14.1."""

from __future__ import annotations

from collections import deque

from softiommu.hardware.devices.nvme.commands import LogPage
from softiommu.hardware.devices.nvme.structures import ERROR, FIRMWARE, HEALTH

ERROR_ENTRIES = 64
FIRMWARE_REVISION = b"1.0     "
#: Kelvin: what the controller always has, and from where on it would worry.
TEMPERATURE, WARNING, CRITICAL = 323, 343, 373
#: Of a queue or a command id: the error is of no command.
NO_COMMAND = 0xFFFF
#: Of a parameter: there is no command that has one.
_NO_LOCATION = 0xFFFF

#: Data units are thousands of 512 bytes.
_UNIT = 512 * 1000
_TOO_HOT_OR_COLD = 1 << 1


class Logs:
    """What the controller remembers of its life. A reset of the controller does not touch it."""

    def __init__(self) -> None:
        self._errors: deque[bytes] = deque(maxlen=ERROR_ENTRIES)
        self._count = 0
        self.reads = self._writes = self._bytes_read = self._bytes_written = self._media_errors = 0
        #: Whether the temperature is past a threshold.
        self.temperature_warning = False

    def count_read(self, length: int) -> None:
        """A Read (or Compare) of `length` bytes is done."""
        self.reads += 1
        self._bytes_read += length

    def count_write(self, length: int) -> None:
        """A Write of `length` bytes is done."""
        self._writes += 1
        self._bytes_written += length

    def error(self, sq_id: int, cid: int, status: int, nsid: int = 0, lba: int = 0, media: bool = False) -> None:
        """A command failed, or something that belongs to no command."""
        self._count += 1
        self._media_errors += media
        location = _NO_LOCATION if sq_id == NO_COMMAND else 0
        entry = ERROR.pack(COUNT=self._count, SQID=sq_id, CID=cid, STATUS=status, LOCATION=location, LBA=lba, NSID=nsid)
        self._errors.appendleft(entry)

    def page(self, number: LogPage) -> bytes:
        """The bytes of a log page, the newest error first."""
        if number == LogPage.ERRORS:
            return b"".join(self._errors).ljust(ERROR.size * ERROR_ENTRIES, b"\0")
        if number == LogPage.FIRMWARE:
            return FIRMWARE.pack(AFI=1, FRS1=FIRMWARE_REVISION)
        return HEALTH.pack(
            CRITICAL_WARNING=_TOO_HOT_OR_COLD if self.temperature_warning else 0,
            TEMPERATURE=TEMPERATURE,
            AVAILABLE_SPARE=100,
            SPARE_THRESHOLD=10,
            UNITS_READ=-(-self._bytes_read // _UNIT),
            UNITS_WRITTEN=-(-self._bytes_written // _UNIT),
            READS=self.reads,
            WRITES=self._writes,
            POWER_CYCLES=1,
            MEDIA_ERRORS=self._media_errors,
            ERROR_ENTRIES=self._count,
        )
