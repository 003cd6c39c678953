"""The generic typed invalidation: what is refused, what is decoded, and both versions."""

from errno import E2BIG, EFAULT, EINVAL, EIO, EOPNOTSUPP, EOVERFLOW

import pytest
from hypothesis import given, strategies as st

from iommufd.fakes import BASE, FakeCaller, FakeMm
from softiommu.abi.generic_invalidation import (
    EXTENSIONS,
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
from softiommu.drivers.generic_invalidation import carry_out, decode
from softiommu.drivers.user_data import Handled, UserArray
from softiommu.errors import UapiError

ALL = {"scope": Scope.DOMAIN, "targets": Target.LEAF}
PAGE = {"scope": Scope.RANGE, "targets": Target.LEAF, "pasid": 7, "addr": 0x5000, "count": 2, "granule_lg2": 12}


class Array:
    """Entries in a program's memory, and what came of them."""

    def __init__(self, *entries, tail=b"", length=None):
        self.caller = FakeCaller(FakeMm(4))
        raw = [entry.to_bytes() + tail for entry in entries]
        self.length = length or (len(raw[0]) if raw else 0)
        self.caller.write(BASE, b"".join(raw))
        self.array = UserArray(self.caller, BASE, GENERIC, self.length, len(raw))
        self.handled, self.done = Handled(), []

    def carry_out(self, outcome=Outcome.NONE, refuse_at=None):
        """The errno, or 0."""

        def do(request):
            if len(self.done) == refuse_at:
                raise UapiError(EIO, "no")
            self.done.append(request)
            return outcome

        try:
            carry_out(self.array, self.handled, do)
        except UapiError as error:
            return error.errno
        return 0

    def results(self):
        entries = [self.caller.read(BASE + n * self.length, InvalidateV2.SIZE) for n in range(self.array.entry_num)]
        return [(entry.out_errno, entry.out_fault) for entry in map(InvalidateV2.from_bytes, entries)]


def test_the_type_is_far_from_the_vendors():
    assert GENERIC in EXTENSIONS
    assert (InvalidateV1.SIZE, InvalidateV2.SIZE) == (32, 56)
    assert list(InvalidateV2.FIELDS.items())[: len(InvalidateV1.FIELDS)] == list(InvalidateV1.FIELDS.items())


def test_a_range_is_decoded():
    request = decode(InvalidateV2(**PAGE, hints=Hint.LEAF_ONLY, valid=3, arch_id=9, device=0x20))
    assert request == (Scope.RANGE, 7, Range(0x5000, 0x6FFF), 12, Target.LEAF, Hint.LEAF_ONLY, 9, 0x20)
    assert (request.translations, request.leaves_only) == (True, True)
    assert [request.reaches(pasid) for pasid in (None, 7, 8)] == [False, True, False]


@pytest.mark.parametrize(
    ("scope", "reached"),
    [
        (Scope.DOMAIN, [True, True]),
        (Scope.RANGE_ALL_PASIDS, [True, True]),
        (Scope.NO_PASID, [True, False]),
        (Scope.RANGE_NO_PASID, [True, False]),
    ],
)
def test_a_scope_says_whose_requests_are_meant(scope, reached):
    where = {"addr": 0x1000, "count": 1, "granule_lg2": 12} if scope.name.startswith("RANGE") else {}
    request = decode(InvalidateV2(scope=scope, targets=Target.LEAF, **where))
    assert [request.reaches(pasid) for pasid in (None, 7)] == reached


def test_a_range_may_end_at_the_last_address():
    last = decode(InvalidateV2(**PAGE | {"addr": 2**64 - 8192}))
    assert last.window == Range(2**64 - 8192, 2**64 - 1)
    assert decode(InvalidateV2(**PAGE | {"addr": 0, "count": 2, "granule_lg2": 63})).window == Range(0, 2**64 - 1)


WRONG = [
    (ALL | {"scope": 6}, EOPNOTSUPP),
    (ALL | {"targets": 0}, EINVAL),
    (ALL | {"targets": 16}, EOPNOTSUPP),
    (ALL | {"targets": 0x8001}, EOPNOTSUPP),
    (ALL | {"hints": 16}, EOPNOTSUPP),
    (ALL | {"reserved": 1}, EOPNOTSUPP),
    (ALL | {"targets": 3, "hints": 1}, EINVAL),
    (ALL | {"pasid": 1}, EINVAL),
    (ALL | {"addr": 4096}, EINVAL),
    (ALL | {"count": 1}, EINVAL),
    (ALL | {"granule_lg2": 12}, EINVAL),
    (PAGE | {"pasid": 1 << 20}, EINVAL),
    (PAGE | {"scope": Scope.RANGE_NO_PASID}, EINVAL),
    (PAGE | {"scope": Scope.RANGE_ALL_PASIDS}, EINVAL),
    (PAGE | {"targets": Target.CONFIG}, EINVAL),
    (PAGE | {"count": 0}, EINVAL),
    (PAGE | {"granule_lg2": 11}, EINVAL),
    (PAGE | {"granule_lg2": 64}, EINVAL),
    (PAGE | {"addr": 0x5001}, EINVAL),
    (PAGE | {"granule_lg2": 14}, EINVAL),
    (PAGE | {"addr": 2**64 - 4096}, EOVERFLOW),
    (PAGE | {"count": 2**64 - 1}, EOVERFLOW),
]


@pytest.mark.parametrize("version", [InvalidateV1, InvalidateV2])
@pytest.mark.parametrize(("fields", "errno"), WRONG, ids=str)
def test_a_wrong_field_has_its_errno_in_both_versions(version, fields, errno):
    array = Array(version(**ALL), version(**fields), version(**ALL))
    assert (array.carry_out(), array.handled.count, len(array.done)) == (errno, 1, 1)
    if version is InvalidateV2:
        assert array.results() == [(0, 0), (errno, 0), (0, 0)]


@pytest.mark.parametrize(
    ("fields", "errno"),
    [({"valid": 4}, EOPNOTSUPP), ({"arch_id": 1}, EINVAL), ({"device": 1}, EINVAL)],
)
def test_wrong_fields_of_version_2(fields, errno):
    array = Array(InvalidateV2(**ALL | fields))
    assert (array.carry_out(), array.results()) == (errno, [(errno, 0)])


def test_version_2_hears_what_became_of_each_entry():
    entries = [InvalidateV2(**ALL, out_errno=99, out_fault=99) for _ in range(3)]
    array = Array(*entries)
    assert array.carry_out(Outcome.DEVICE_TIMEOUT, refuse_at=2) == EIO
    assert (array.handled.count, array.results()) == (2, [(0, 1), (0, 1), (EIO, 0)])


def test_version_1_is_not_written_to():
    entry = InvalidateV1(**ALL)
    array = Array(entry, entry)
    assert array.carry_out(Outcome.DEVICE_TIMEOUT) == 0
    assert array.caller.read(BASE, 64) == entry.to_bytes() * 2
    assert [(request.arch_id, request.device) for request in array.done] == [(None, None)] * 2


@pytest.mark.parametrize("length", [1, 31, 33, 40, 55])
def test_a_length_between_versions_is_of_none(length):
    array = Array(InvalidateV2(**ALL), length=length)
    assert (array.carry_out(), array.handled.count) == (EINVAL, 0)


def test_a_version_to_come_is_taken_while_it_says_nothing_new():
    array = Array(InvalidateV2(**ALL), tail=bytes(8))
    assert (array.carry_out(), array.results()) == (0, [(0, 0)])
    array = Array(InvalidateV2(**ALL), InvalidateV2(**ALL), tail=b"\1" + bytes(7))
    assert (array.carry_out(), array.handled.count) == (E2BIG, 0)


def test_no_entries_only_ask_whether_the_type_is_known():
    assert Array().carry_out() == 0


def test_entries_outside_of_memory_are_a_fault():
    array = Array(InvalidateV1(**ALL))
    array.array = array.array._replace(uptr=8)
    assert array.carry_out() == EFAULT


@given(st.sampled_from([InvalidateV1, InvalidateV2]), st.binary(min_size=56, max_size=56))
def test_any_bytes_are_a_request_or_refused(version, raw):
    array = Array(version.from_bytes(raw))
    errno = array.carry_out()
    assert errno in (0, EINVAL, EOPNOTSUPP, EOVERFLOW)
    assert array.handled.count == len(array.done) == (not errno)


@given(
    scope=st.sampled_from(Scope),
    targets=st.integers(1, 15),
    hints=st.sampled_from([0, 2, 4, 8, 14]),
    pasid=st.integers(1, 2**20 - 1),
    page=st.integers(0, 2**40),
    count=st.integers(1, 2**10),
)
def test_versions_mean_the_same(scope, targets, hints, pasid, page, count):
    is_range = scope.name.startswith("RANGE")
    where = {"addr": page << 12, "count": count, "granule_lg2": 12} if is_range else {}
    whose = {"pasid": pasid} if scope in (Scope.PASID, Scope.RANGE) else {}
    fields = {"scope": scope, "targets": targets & ~(4 if is_range else 0) or 1, "hints": hints} | where | whose
    old, new = Array(InvalidateV1(**fields)), Array(InvalidateV2(**fields))
    assert (old.carry_out(), new.carry_out()) == (0, 0)
    assert old.done == new.done
    assert new.done[0].window == (Range(page << 12, (page + count << 12) - 1) if is_range else None)
    named = Array(InvalidateV2(**fields, valid=Valid.ARCH_ID, arch_id=0))
    assert named.carry_out() == 0
    assert named.done[0] == old.done[0]._replace(arch_id=0)
