"""Faults, as the event queue tells them. Virtio 1.2, 5.13.6.7."""

from __future__ import annotations

from enum import IntEnum

from softiommu.words import Word, bit, bits


class Reason(IntEnum):
    """Why an access was blocked."""

    UNKNOWN = 0
    DOMAIN = 1
    MAPPING = 2


class Fault(Word, width=192):
    """A fault report."""

    REASON = bits(7, 0, Reason)
    MUST_BE_ZERO = bits(31, 8)
    READ = bit(32)
    WRITE = bit(33)
    ADDRESS_VALID = bit(40)
    ENDPOINT = bits(95, 64)
    ADDRESS = bits(191, 128)
