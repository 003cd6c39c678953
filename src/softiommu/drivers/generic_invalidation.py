"""The generic typed invalidation, checked and decoded: every model's nested domains and vIOMMUs call `carry_out`.

A driver turns each `Invalidation` into its own commands. It may drop more than was asked for, never less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from errno import EINVAL, EOPNOTSUPP, EOVERFLOW
from functools import lru_cache
from typing import NamedTuple, TypeVar

from softiommu.abi.generic_invalidation import (
    GENERIC,
    Hint,
    InvalidateV1,
    InvalidateV2,
    Outcome,
    Scope,
    Target,
    Valid,
)
from softiommu.drivers.driver import Range
from softiommu.drivers.user_data import Handled, UserArray
from softiommu.errors import UapiError

T = TypeVar("T")

_ALL_TARGETS, _ALL_HINTS, _ALL_VALID = (sum(int(one) for one in kind) for kind in (Target, Hint, Valid))
#: Plain numbers: the operators of enumerations take ten times as long.
_TABLES, _CONFIG, _DEVICE_TLB = int(Target.TABLES), int(Target.CONFIG), int(Target.DEVICE_TLB)
_TRANSLATIONS, _LEAF_ONLY = int(Target.LEAF | Target.TABLES), int(Hint.LEAF_ONLY)
_ARCH_ID, _DEVICE = int(Valid.ARCH_ID), int(Valid.DEVICE)
_RANGES = frozenset((Scope.RANGE, Scope.RANGE_ALL_PASIDS, Scope.RANGE_NO_PASID))
_OF_PASID = frozenset((Scope.PASID, Scope.RANGE))
_WITHOUT_PASID = frozenset((Scope.NO_PASID, Scope.RANGE_NO_PASID))
_SCOPES = frozenset(int(scope) for scope in Scope)
_PAGE_LG2 = 12
_LAST = (1 << 64) - 1
_PASIDS = 1 << 20


class Invalidation(NamedTuple):
    """One request, with everything in it right."""

    scope: Scope
    #: Of the scopes PASID and RANGE.
    pasid: int | None
    #: None: all addresses. Both ends lie on granules.
    window: Range | None
    granule_lg2: int
    targets: Target
    hints: Hint
    #: An ASID or domain id of the guest: what has another one need not be forgotten.
    arch_id: int | None = None
    #: The guest's name for the one device whose caches are meant.
    device: int | None = None

    @property
    def translations(self) -> bool:
        """Whether the IOMMU's own translations are a target, of leaves or tables."""
        return bool(self.targets._value_ & _TRANSLATIONS)

    @property
    def leaves_only(self) -> bool:
        """Whether what is known of tables may stay."""
        return not self.targets._value_ & _TABLES

    @property
    def configuration(self) -> bool:
        """Whether what was read of the way to tables is a target."""
        return bool(self.targets._value_ & _CONFIG)

    @property
    def device_tlbs(self) -> bool:
        """Whether the translations that devices have are a target."""
        return bool(self.targets._value_ & _DEVICE_TLB)

    def reaches(self, pasid: int | None) -> bool:
        """Whether it is for requests with this PASID; None: for those without one."""
        if self.scope in _OF_PASID:
            return pasid == self.pasid
        return pasid is None or self.scope not in _WITHOUT_PASID


def is_generic(entries: UserArray) -> bool:
    """Whether the entries are of the generic form."""
    return entries.data_type == GENERIC


def carry_out(entries: UserArray, handled: Handled, do: Callable[[Invalidation], Outcome]) -> None:
    """Check and carry out the entries in order, up to the first that is refused; version 2 hears what became of each.

    EINVAL: no version has such a length; E2BIG: an unknown field is not 0; and the errors of `decode` and `do`.
    """
    for index, entry in _entries(entries):
        outcome = _attempt(entries, index, entry, do)
        handled.count += 1
        _report(entries, index, 0, outcome)


def gather(
    entries: UserArray,
    handled: Handled,
    take: Callable[[Invalidation], None],
    complete: Callable[[], Mapping[int, Outcome]],
) -> None:
    """The same for a driver that gathers what is asked for (`take`) and carries it out together (`complete`, which
    tells of the entries that had another outcome than NONE, by their numbers): also before an entry that is refused."""
    taken = 0
    try:
        for index, entry in _entries(entries):
            _attempt(entries, index, entry, take)
            taken += 1
    finally:
        outcomes = complete()
        handled.count = taken
        for index in range(taken if entries.entry_len >= InvalidateV2.SIZE else 0):
            _report(entries, index, 0, outcomes.get(index, Outcome.NONE))


def _entries(entries: UserArray) -> Iterator[tuple[int, InvalidateV2]]:
    """Each entry in the newest version, with its number. Errors as `carry_out`."""
    version = _version(entries.entry_len) if entries.entry_num else InvalidateV1
    raw = b""
    if entries.entry_len == version.SIZE:
        with suppress(UapiError):  # read one by one, those before the place that cannot be read are carried out
            raw = entries.packed(version, GENERIC)
    for index in range(entries.entry_num):
        at = index * version.SIZE
        one = raw[at : at + version.SIZE] if raw else entries.entry(index, version, GENERIC).to_bytes()
        # Who speaks version 1 names no architecture's id and no device: it begins as version 2 does, and ends there.
        yield index, InvalidateV2.from_bytes(one.ljust(InvalidateV2.SIZE, b"\0"))


def _attempt(entries: UserArray, index: int, entry: InvalidateV2, do: Callable[[Invalidation], T]) -> T:
    """Carry an entry out; one that is refused is told so."""
    try:
        return do(decode(entry, index))
    except UapiError as error:
        _report(entries, index, error.errno, Outcome.NONE)
        raise


def _version(length: int) -> type[InvalidateV1] | type[InvalidateV2]:
    """The version that entries of this length are of; longer ones than any are of the last, with 0 after it."""
    if length == InvalidateV1.SIZE:
        return InvalidateV1
    if length >= InvalidateV2.SIZE:
        return InvalidateV2
    raise UapiError(EINVAL, f"no version of the generic invalidation has entries of {length} bytes")


def _report(entries: UserArray, index: int, errno: int, outcome: Outcome) -> None:
    """Store what became of an entry, in a version that has room for that. EFAULT."""
    if entries.entry_len >= InvalidateV2.SIZE:
        at = InvalidateV2.OFFSETS["out_errno"]
        result = errno.to_bytes(4, "little") + int(outcome).to_bytes(4, "little")
        entries.caller.write(entries.uptr + index * entries.entry_len + at, result)


def decode(entry: InvalidateV2, index: int = 0) -> Invalidation:
    """What an entry asks for. EOPNOTSUPP: a value or bit that is not known; EINVAL: fields that do not go together;
    EOVERFLOW: a range that ends beyond the last address."""
    _known(entry, index)
    scope, targets, hints = _named(entry.scope, entry.targets, entry.hints)
    if not entry.targets:
        raise UapiError(EINVAL, f"entry {index} names no cache")
    if entry.targets & _TABLES and entry.hints & _LEAF_ONLY:
        raise UapiError(EINVAL, f"entry {index} is for tables, and says that only leaves changed")
    if entry.targets & _CONFIG and scope in _RANGES:
        raise UapiError(EINVAL, f"entry {index}: configuration has no addresses, but the scope is {scope.name}")
    pasid = entry.pasid if scope in _OF_PASID else None
    if entry.pasid >= _PASIDS or (pasid is None and entry.pasid):
        raise UapiError(EINVAL, f"entry {index} has PASID {entry.pasid:#x} in scope {scope.name}")
    arch_id = entry.arch_id if entry.valid & _ARCH_ID else None
    device = entry.device if entry.valid & _DEVICE else None
    if (arch_id is None and entry.arch_id) or (device is None and entry.device):
        raise UapiError(EINVAL, f"entry {index} has an id whose bit in `valid` is not set")
    window = _window(entry, scope, index)
    return Invalidation(scope, pasid, window, entry.granule_lg2, targets, hints, arch_id, device)


@lru_cache(maxsize=1024)
def _named(scope: int, targets: int, hints: int) -> tuple[Scope, Target, Hint]:
    """Known values by their names. An enumeration is slow to find them, and most entries of a guest have the same."""
    return Scope(scope), Target(targets), Hint(hints)


def _known(entry: InvalidateV2, index: int) -> None:
    """EOPNOTSUPP: something that no version has a meaning for."""
    scope = entry.scope if entry.scope not in _SCOPES else 0
    targets, hints, valid = entry.targets & ~_ALL_TARGETS, entry.hints & ~_ALL_HINTS, entry.valid & ~_ALL_VALID
    if not (scope | targets | hints | entry.reserved | valid):
        return
    unknown = {"scope": scope, "targets": targets, "hints": hints, "reserved": entry.reserved, "valid": valid}
    field, value = next((field, value) for field, value in unknown.items() if value)
    raise UapiError(EOPNOTSUPP, f"entry {index}: {field} has {value:#x}, which is not known")


def _window(entry: InvalidateV2, scope: Scope, index: int) -> Range | None:
    if scope not in _RANGES:
        if entry.addr or entry.count or entry.granule_lg2:
            raise UapiError(EINVAL, f"entry {index} has a range, but the scope is {scope.name}")
        return None
    if not _PAGE_LG2 <= entry.granule_lg2 < 64 or not entry.count:
        raise UapiError(EINVAL, f"entry {index} has {entry.count} granules of 2**{entry.granule_lg2} bytes")
    if entry.addr & (1 << entry.granule_lg2) - 1:
        raise UapiError(EINVAL, f"entry {index}: {entry.addr:#x} lies within a granule of 2**{entry.granule_lg2} bytes")
    last = entry.addr + (entry.count << entry.granule_lg2) - 1
    if last > _LAST:
        raise UapiError(EOVERFLOW, f"entry {index}: {entry.count} granules from {entry.addr:#x} end beyond 2**64")
    return Range(entry.addr, last)
