"""What guests' tests share."""

import os
from pathlib import Path

import pytest

from softiommu.errors import ConfigError
from softiommu.guest import nested
from softiommu.guest.folder import DEFAULT


@pytest.fixture(scope="session")
def qemu11():
    """QEMU 11; without it the tests skip, or fail where they must."""
    try:
        return nested.program(os.environ.get("SOFTIOMMU_GUESTS", Path(__file__).parents[2] / DEFAULT))
    except ConfigError as error:
        if os.environ.get("SOFTIOMMU_REQUIRE_ALL"):
            pytest.fail(f"SOFTIOMMU_REQUIRE_ALL is set: {error}")
        pytest.skip(str(error))
