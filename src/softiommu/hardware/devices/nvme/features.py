"""Features: what Set Features changes and Get Features tells. NVM Express 1.4, sections 5.13 and 5.21."""

from __future__ import annotations

from enum import IntEnum

from softiommu.hardware.devices.nvme import logs
from softiommu.hardware.devices.nvme.commands import (
    ALL_NAMESPACES,
    Command,
    CommandError,
    FeatureDword10,
    Select,
    Status,
)
from softiommu.words import Word, bit, bits


class FeatureId(IntEnum):
    """Feature identifiers (5.21.1)."""

    ARBITRATION = 0x01
    POWER = 0x02
    TEMPERATURE = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    QUEUES = 0x07
    COALESCING = 0x08
    VECTOR = 0x09
    ATOMICITY = 0x0A
    EVENTS = 0x0B


class Arbitration(Word, width=32):
    """Arbitration (5.21.1.1)."""

    AB = bits(2, 0)
    LPW = bits(15, 8)
    MPW = bits(23, 16)
    HPW = bits(31, 24)


class Power(Word, width=32):
    """Power Management (5.21.1.2)."""

    PS = bits(4, 0)
    WH = bits(7, 5)


class Temperature(Word, width=32):
    """Temperature Threshold (5.21.1.4)."""

    TMPTH = bits(15, 0)
    TMPSEL = bits(19, 16)
    THSEL = bits(21, 20)


class ErrorRecovery(Word, width=32):
    """Error Recovery (5.21.1.5)."""

    TLER = bits(15, 0)
    DULBE = bit(16)


class WriteCache(Word, width=32):
    """Volatile Write Cache (5.21.1.6)."""

    WCE = bit(0)


class Queues(Word, width=32):
    """Number of Queues (5.21.1.7), one less of each kind."""

    NSQ = bits(15, 0)
    NCQ = bits(31, 16)


class Coalescing(Word, width=32):
    """Interrupt Coalescing (5.21.1.8). Ours delays nothing."""

    THR = bits(7, 0)
    TIME = bits(15, 8)


class VectorConfiguration(Word, width=32):
    """Interrupt Vector Configuration (5.21.1.9)."""

    IV = bits(15, 0)
    CD = bit(16)


class Atomicity(Word, width=32):
    """Write Atomicity Normal (5.21.1.10)."""

    DN = bit(0)


class EventConfiguration(Word, width=32):
    """Asynchronous Event Configuration (5.21.1.11)."""

    HEALTH = bits(7, 0)
    NAMESPACE = bit(8)
    FIRMWARE = bit(9)


class Capabilities(Word, width=32):
    """What Get Features tells of a feature itself (5.13, figure 184)."""

    SAVEABLE = bit(0)
    NAMESPACE = bit(1)
    CHANGEABLE = bit(2)


WORDS: dict[FeatureId, type[Word]] = {
    FeatureId.ARBITRATION: Arbitration,
    FeatureId.POWER: Power,
    FeatureId.TEMPERATURE: Temperature,
    FeatureId.ERROR_RECOVERY: ErrorRecovery,
    FeatureId.WRITE_CACHE: WriteCache,
    FeatureId.QUEUES: Queues,
    FeatureId.COALESCING: Coalescing,
    FeatureId.VECTOR: VectorConfiguration,
    FeatureId.ATOMICITY: Atomicity,
    FeatureId.EVENTS: EventConfiguration,
}

#: Interrupts of the temperature among the bits of EventConfiguration.HEALTH.
_TEMPERATURE_EVENT = 1 << 1
_OVER, _UNDER = 0, 1
_ALL_SENSORS = 0xF


class Features:
    """The values of all features. Some have one for each vector, threshold or namespace."""

    def __init__(self, pairs: int, vectors: int, namespaces: int) -> None:
        self._pairs, self._vectors, self._namespaces = pairs, vectors, namespaces
        self._changed: dict[tuple[FeatureId, int], Word] = {}

    def reset(self) -> None:
        """Every feature has its default."""
        self._changed.clear()

    @property
    def write_cache(self) -> bool:
        """Whether writes may stay in a cache."""
        return bool(self._value(FeatureId.WRITE_CACHE))

    @property
    def temperature_warning(self) -> bool:
        """Whether the temperature is past one of its thresholds."""
        over, under = (Temperature(self._value(FeatureId.TEMPERATURE, key)).TMPTH for key in (_OVER, _UNDER))
        return not under < logs.TEMPERATURE < over

    @property
    def temperature_event(self) -> bool:
        """Whether the host wants an event of that."""
        return bool(EventConfiguration(self._value(FeatureId.EVENTS)).HEALTH & _TEMPERATURE_EVENT)

    def get(self, command: Command) -> int:
        """Dword 0 of Get Features. CommandError."""
        dword10 = FeatureDword10(command.dword10)
        feature = _identified(dword10.FID)
        if dword10.SEL == Select.CAPABILITIES:
            per_namespace = int(feature == FeatureId.ERROR_RECOVERY)
            return Capabilities.of(NAMESPACE=per_namespace, CHANGEABLE=1)
        key = self._key(feature, WORDS[feature](command.dword11 & ~WORDS[feature].RESERVED), command.nsid, False)
        if dword10.SEL in (Select.DEFAULT, Select.SAVED):
            return self._default(feature, key)
        if dword10.SEL != Select.CURRENT:
            raise CommandError(Status.INVALID_FIELD)
        return self._value(feature, key)

    def set(self, command: Command, queues_exist: bool) -> int:
        """Carry out Set Features; dword 0. CommandError."""
        dword10 = FeatureDword10(command.dword10)
        feature = _identified(dword10.FID)
        if dword10.SV:
            raise CommandError(Status.FEATURE_NOT_SAVEABLE)
        if feature != FeatureId.ERROR_RECOVERY and command.nsid not in (0, ALL_NAMESPACES):
            raise CommandError(Status.FEATURE_NOT_NAMESPACE_SPECIFIC)
        value = WORDS[feature](command.dword11 & ~WORDS[feature].RESERVED)
        if isinstance(value, Queues):
            return self._set_queues(value, queues_exist)
        if (isinstance(value, Power) and value.PS) or (isinstance(value, ErrorRecovery) and value.DULBE):
            raise CommandError(Status.INVALID_FIELD)
        if feature == FeatureId.ERROR_RECOVERY and command.nsid == ALL_NAMESPACES:
            keys = list(range(1, self._namespaces + 1))
        else:
            keys = [self._key(feature, value, command.nsid, True)]
        self._changed |= {(feature, key): value for key in keys}
        return 0

    def _set_queues(self, value: Queues, queues_exist: bool) -> int:
        """The host gets what there is, whatever it asks for, and must ask before it makes queues."""
        if queues_exist:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR)
        if 0xFFFF in (value.NSQ, value.NCQ):
            raise CommandError(Status.INVALID_FIELD)
        return self._default(FeatureId.QUEUES, 0)

    def _key(self, feature: FeatureId, word: Word, nsid: int, change: bool) -> int:
        """Which of a feature's values is meant. CommandError: there is no such."""
        key, valid = 0, True
        if isinstance(word, Temperature):
            key = word.THSEL
            valid = key in (_OVER, _UNDER) and (word.TMPSEL == 0 or (change and word.TMPSEL == _ALL_SENSORS))
        elif isinstance(word, VectorConfiguration):
            key, valid = word.IV, self._vectors > word.IV
        elif feature == FeatureId.ERROR_RECOVERY:
            if not 1 <= nsid <= self._namespaces:
                raise CommandError(Status.INVALID_NAMESPACE)
            key = nsid
        if not valid:
            raise CommandError(Status.INVALID_FIELD)
        return key

    def _value(self, feature: FeatureId, key: int = 0) -> int:
        return self._changed.get((feature, key), self._default(feature, key))

    def _default(self, feature: FeatureId, key: int) -> Word:
        if feature == FeatureId.QUEUES:
            return Queues.of(NSQ=self._pairs - 1, NCQ=self._pairs - 1)
        if feature == FeatureId.TEMPERATURE:
            return Temperature.of(TMPTH=logs.WARNING if key == _OVER else 0, THSEL=key)
        if feature == FeatureId.VECTOR:
            return VectorConfiguration.of(IV=key)
        return WriteCache.of(WCE=1) if feature == FeatureId.WRITE_CACHE else WORDS[feature](0)


def _identified(number: int) -> FeatureId:
    try:
        return FeatureId(number)
    except ValueError:
        raise CommandError(Status.INVALID_FIELD) from None
