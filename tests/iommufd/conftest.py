"""Open iommufds that close at the end of each test and are checked for what they leave."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iommufd.soft import Soft, build

# `fuzz` is a package of the repository, beside tests.
sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def soft() -> Iterator[Soft]:
    """An iommufd on a machine with the mock, kernel 7.2."""
    opened = Soft()
    yield opened
    opened.close()


@pytest.fixture
def open_soft() -> Iterator[Callable[..., Soft]]:
    """Opens an iommufd on a machine of the given kernel (and `mock`, `no_iommu`)."""
    opened: list[Soft] = []

    def make(kernel: str = "7.2", mock: bool = True, no_iommu: bool = False) -> Soft:
        opened.append(Soft(build(kernel, mock, no_iommu)))
        return opened[-1]

    yield make
    for soft in opened:
        soft.close()
