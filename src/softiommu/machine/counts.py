"""What was done on a machine, counted: calls of programs, translations of its IOMMUs, nesting in software."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from softiommu.abi.iommufd import HwptInvalidate

if TYPE_CHECKING:
    from softiommu.iommufd.context import CallDone
    from softiommu.machine.assemble import Machine


@runtime_checkable
class CountingIommu(Protocol):
    """An IOMMU that counts what it does."""

    def counts(self) -> dict[str, int]:
        """What it did since it was made, by name: translations `found` in the IOTLB, those `walked` for, those that
        invalidations made it forget (`forgotten`); and what else the model counts."""
        ...


class Counts:
    """Counts from when it is made. It hears calls beside whoever heard them before."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._calls: Counter[str] = Counter()
        self._entries = 0
        self._before = machine.services.on_call
        machine.services.on_call = self._hear

    def _hear(self, done: CallDone) -> None:
        if self._before is not None:
            self._before(done)
        if done.error is None:
            self._calls[done.name] += 1
        if isinstance(done.cmd, HwptInvalidate):
            self._entries += done.cmd.entry_num

    def told(self) -> dict[str, Any]:
        """`calls` that succeeded, by their names; `invalidated`, entries of HWPT_INVALIDATE; `iommus` by name, as
        `CountingIommu` has it, with what nesting in software did (`shadow_parent.Work`) under `software`."""
        from softiommu.drivers.shadow.driver import ShadowDriver

        hardware = self._machine.hardware
        iommus: dict[str, dict[str, Any]] = {}
        for name, (unit, driver) in hardware.iommus.items() if hardware is not None else ():
            iommus[name] = dict(unit.counts()) if isinstance(unit, CountingIommu) else {}
            if isinstance(driver, ShadowDriver):
                iommus[name]["software"] = asdict(driver.work)
        return {"calls": dict(self._calls), "invalidated": self._entries, "iommus": iommus}
