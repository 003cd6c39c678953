"""The mock IOMMU has no features to choose, and no hardware: a program makes its devices with the test command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.errors import ModelError

if TYPE_CHECKING:
    from softiommu.machine.models import Built, Site
    from softiommu.machine.reading import Table


def read(table: Table) -> object:
    """Nothing to choose."""
    return None


def build(features: object, site: Site) -> Built:
    """Never asked: no device of the machine is behind it."""
    raise ModelError("the mock IOMMU has no hardware")
