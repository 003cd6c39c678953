"""Data structures that commands return: where each field lies. NVM Express 1.4, sections 5.14.1 and 5.15.2."""

from __future__ import annotations

from softiommu.errors import ModelError


class Layout:
    """A structure of `size` bytes: fields are (first byte, bytes). Numbers are little-endian, and text is padded."""

    def __init__(self, size: int, **fields: tuple[int, int]) -> None:
        self.size, self.fields = size, fields
        end = 0
        for name, (first, length) in sorted(fields.items(), key=lambda field: field[1]):
            if first < end or first + length > size:
                raise ModelError(f"field {name} overlaps another one, or leaves the structure")
            end = first + length

    def pack(self, **values: int | bytes) -> bytes:
        """The bytes with these fields, the rest 0. OverflowError: a value that is too large."""
        raw = bytearray(self.size)
        for name, value in values.items():
            first, length = self.fields[name]
            data = value.to_bytes(length, "little") if isinstance(value, int) else value
            if len(data) > length:
                raise OverflowError(f"{len(data)} bytes for {name}, which has {length}")
            raw[first : first + len(data)] = data
        return bytes(raw)

    def field(self, raw: bytes, name: str) -> int:
        """A number in the structure."""
        first, length = self.fields[name]
        return int.from_bytes(raw[first : first + length], "little")


PAGE = 4096

#: Identify Controller (figure 247).
CONTROLLER = Layout(
    PAGE,
    VID=(0, 2),
    SSVID=(2, 2),
    SN=(4, 20),
    MN=(24, 40),
    FR=(64, 8),
    MDTS=(77, 1),
    CNTLID=(78, 2),
    VER=(80, 4),
    OAES=(92, 4),
    CNTRLTYPE=(111, 1),
    OACS=(256, 2),
    ACL=(258, 1),
    AERL=(259, 1),
    FRMW=(260, 1),
    LPA=(261, 1),
    ELPE=(262, 1),
    NPSS=(263, 1),
    WCTEMP=(266, 2),
    CCTEMP=(268, 2),
    SQES=(512, 1),
    CQES=(513, 1),
    NN=(516, 4),
    ONCS=(520, 2),
    FNA=(524, 1),
    VWC=(525, 1),
    SUBNQN=(768, 256),
    PSD0=(2048, 32),
)

#: Identify Namespace (figure 245).
NAMESPACE = Layout(
    PAGE,
    NSZE=(0, 8),
    NCAP=(8, 8),
    NUSE=(16, 8),
    NSFEAT=(24, 1),
    NLBAF=(25, 1),
    FLBAS=(26, 1),
    DLFEAT=(33, 1),
    LBAF0=(128, 4),
    LBAF1=(132, 4),
)

#: Namespace Identification Descriptor of a UUID (figure 249).
DESCRIPTOR = Layout(20, NIDT=(0, 1), NIDL=(1, 1), NID=(4, 16))
NIDT_UUID = 3

#: An entry of the Error Information log (figure 193).
ERROR = Layout(64, COUNT=(0, 8), SQID=(8, 2), CID=(10, 2), STATUS=(12, 2), LOCATION=(14, 2), LBA=(16, 8), NSID=(24, 4))

#: SMART / Health Information (figure 194).
HEALTH = Layout(
    512,
    CRITICAL_WARNING=(0, 1),
    TEMPERATURE=(1, 2),
    AVAILABLE_SPARE=(3, 1),
    SPARE_THRESHOLD=(4, 1),
    UNITS_READ=(32, 16),
    UNITS_WRITTEN=(48, 16),
    READS=(64, 16),
    WRITES=(80, 16),
    POWER_CYCLES=(112, 16),
    MEDIA_ERRORS=(160, 16),
    ERROR_ENTRIES=(176, 16),
)

#: Firmware Slot Information (figure 195).
FIRMWARE = Layout(512, AFI=(0, 1), FRS1=(8, 8))

#: A range of Dataset Management (figure 362).
RANGE = Layout(16, ATTRIBUTES=(0, 4), BLOCKS=(4, 4), LBA=(8, 8))
