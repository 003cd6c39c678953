"""Who pays for pinned pages."""

from __future__ import annotations

from errno import ENOMEM

import pytest
from hypothesis import given, strategies as st

from iommufd.fakes import FakeMm
from iommufd.soft import refused
from softiommu.memory.accounts import Accounts, Mode, Payer
from softiommu.memory.client import PAGE_SIZE
from strategies import calm

COUNTED = [Mode.NONE, Mode.USER, Mode.PROCESS]
CHARGES = st.lists(
    st.tuples(st.sampled_from(list(Mode)), st.integers(0, 2), st.integers(0, 1), st.integers(1, 9)), max_size=12
)


@calm
@given(charges=CHARGES)
def test_every_account_is_empty_when_each_charge_is_taken_back(charges: list[tuple[Mode, int, int, int]]) -> None:
    accounts, spaces = Accounts(), [FakeMm(1) for _ in range(3)]
    for mode, space, uid, pages in charges:
        accounts.charge(Payer(spaces[space], uid), pages, mode)
    for number, mm in enumerate(spaces):
        mine = [(mode, pages) for mode, space, _, pages in charges if space == number]
        assert mm.pinned == sum(pages for mode, pages in mine if mode is not Mode.UNCOUNTED)
        assert mm.locked == sum(pages for mode, pages in mine if mode is Mode.PROCESS)
    assert accounts.total == sum(mm.pinned for mm in spaces)
    for mode, space, uid, pages in charges:
        accounts.uncharge(Payer(spaces[space], uid), pages, mode)
    assert [(mm.pinned, mm.locked) for mm in spaces] == [(0, 0)] * 3
    assert accounts.total == 0


def test_a_users_limit_is_over_all_of_the_users_processes() -> None:
    accounts, one, two = Accounts(), FakeMm(1), FakeMm(1)
    one.limit = two.limit = 10 * PAGE_SIZE
    accounts.charge(Payer(one, 5), 6, Mode.USER)
    with refused(ENOMEM):
        accounts.charge(Payer(two, 5), 5, Mode.USER)
    accounts.charge(Payer(two, 6), 5, Mode.USER)
    assert accounts.total == 11


def test_a_processs_limit_is_its_own() -> None:
    accounts, one, two = Accounts(), FakeMm(1), FakeMm(1)
    one.limit = two.limit = 10 * PAGE_SIZE
    accounts.charge(Payer(one, 5), 6, Mode.PROCESS)
    accounts.charge(Payer(two, 5), 10, Mode.PROCESS)
    with refused(ENOMEM):
        accounts.charge(Payer(one, 5), 5, Mode.PROCESS)
    assert (one.locked, two.locked) == (6, 10)


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.UNCOUNTED])
def test_a_caller_who_may_lock_memory_has_no_limit(mode: Mode) -> None:
    accounts, mm = Accounts(), FakeMm(1)
    mm.limit = 0
    accounts.charge(Payer(mm, 5), 1000, mode)
    assert mm.pinned == (1000 if mode is Mode.NONE else 0)


@pytest.mark.parametrize("mode", COUNTED)
def test_part_of_a_page_of_the_limit_is_no_page(mode: Mode) -> None:
    accounts, mm = Accounts(), FakeMm(1)
    mm.limit = 2 * PAGE_SIZE - 1
    accounts.charge(Payer(mm, 5), 1, mode)
    if mode is not Mode.NONE:
        with refused(ENOMEM):
            accounts.charge(Payer(mm, 5), 1, mode)
    assert mm.pinned == 1


def test_without_limits_pages_are_counted_and_none_are_too_many() -> None:
    accounts, mm = Accounts(), FakeMm(1)
    mm.limit = 10 * PAGE_SIZE
    accounts.unlimited = True
    accounts.charge(Payer(mm, 5), 11, Mode.USER)
    assert accounts.total == 11
    accounts.unlimited = False
    with refused(ENOMEM):
        accounts.charge(Payer(mm, 5), 1, Mode.USER)
