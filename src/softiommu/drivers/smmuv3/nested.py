"""A guest's STE over a stage 2 of the host: what a guest may say in it, and the STE that the hardware reads.

The guest's stage 1 and its tables of context descriptors lie in its own memory, at intermediate addresses.
"""

from __future__ import annotations

from errno import EINVAL, EIO
from typing import TYPE_CHECKING

from softiommu.abi.iommufd import HwptArmSmmuv3, HwptDataType
from softiommu.drivers.driver import NestedDomain, unsupported
from softiommu.drivers.generic_invalidation import gather, is_generic
from softiommu.drivers.smmuv3.domain import ABORT, Entry, Route
from softiommu.drivers.smmuv3.generic import Gathered
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError
from softiommu.hardware.smmuv3.tables import Config, Eats, S1Dss, S1Fmt, Ste0, Ste1
from softiommu.words import Word, bit, bits

if TYPE_CHECKING:
    from softiommu.drivers.smmuv3.viommu import SmmuViommu


class GuestSte0(Word):
    """What a guest may say in word 0 of its STE."""

    V = bit(0)
    CONFIG = bits(3, 1, Config)
    S1FMT = bits(5, 4, S1Fmt)
    S1CONTEXTPTR = bits(51, 6)
    S1CDMAX = bits(63, 59)


class GuestSte1(Word):
    """What a guest may say in word 1 of its STE."""

    S1DSS = bits(1, 0, S1Dss)
    S1CIR = bits(3, 2)
    S1COR = bits(5, 4)
    S1CSH = bits(7, 6)
    S1STALLD = bit(27)
    EATS = bits(29, 28, Eats)


class SmmuNested:
    """A guest's STE, which devices with a name in the guest are attached to."""

    #: As a domain of stage 2 it routes a whole stream: the guest's PASIDs are its own.
    first = False

    def __init__(self, viommu: SmmuViommu, how: GuestSte0, attributes: GuestSte1) -> None:
        self.viommu, self._how, self._attributes = viommu, how, attributes
        self.owner = viommu.owner
        #: The streams that are routed through it.
        self.sids: list[int] = []
        viommu.nested.append(self)

    @property
    def config(self) -> Config:
        """What is done with the stream."""
        return self._how.CONFIG if self._how.V else Config.ABORT

    @property
    def valid(self) -> bool:
        """Whether the guest's STE is valid."""
        return bool(self._how.V)

    @property
    def uses_ats(self) -> bool:
        """Whether devices may ask for translations: only a guest that says so invalidates their TLBs."""
        return self.config != Config.S1 or self._attributes.EATS == Eats.FULL

    def join(self, route: Route) -> None:
        """A stream is routed through it from now on; its device TLB holds addresses of the guest."""
        self.sids.append(route.sid)
        self.viommu.parent.nested.append(route)

    def leave(self, route: Route) -> None:
        """It is not any more."""
        self.sids.remove(route.sid)
        self.viommu.parent.nested.remove(route)

    def entry(self, ats: bool) -> Entry:
        """The STE for the hardware: the guest's stage 1 over the parent's stage 2, stage 2 alone, or nothing."""
        if self.config == Config.ABORT:
            return ABORT
        how, attributes, tags, root, *rest = self.viommu.parent.entry(ats)
        if self.config == Config.BYPASS:
            return how, attributes, tags, root, *rest
        how = Ste0(self._how).replace(CONFIG=Config.NEST)
        guests = Ste1(self._attributes.replace(EATS=Eats.OFF))
        return how, Ste1(attributes | guests).replace(MEV=1), tags, root, *rest

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Entries of the generic form. EOPNOTSUPP: only the vIOMMU takes commands; errors of the generic form."""
        if not is_generic(entries):
            raise unsupported("the commands of an SMMUv3 guest are for its vIOMMU")
        waiting = Gathered(self.owner, self.viommu.parent.id)
        gather(entries, handled, lambda asked: waiting.take(self._streams(asked.device), asked), waiting.complete)

    def _streams(self, name: int | None) -> list[int]:
        if name is not None:
            raise UapiError(EINVAL, f"only a vIOMMU knows a device {name:#x}")
        return self.sids

    def free(self) -> None:
        """The hardware has nothing of it but what the parent's VMID tags."""
        self.viommu.nested.remove(self)


def read_nested(viommu: SmmuViommu, flags: int, data: UserData) -> SmmuNested:
    """The domain of a guest's STE. EOPNOTSUPP: flags; EINVAL: another type or length; EIO: what no guest may say."""
    if flags:
        raise unsupported(f"flags {flags:#x} for a nested domain")
    given = data.copy(HwptArmSmmuv3, HwptDataType.ARM_SMMUV3)
    how, attributes = GuestSte0(given.ste0), GuestSte1(given.ste1)
    if not how.V:
        return SmmuNested(viommu, GuestSte0(0), GuestSte1(0))
    if how.reserved or attributes.reserved:
        raise UapiError(EIO, f"a guest's STE cannot have bits {how.reserved:#x} and {attributes.reserved:#x}")
    if how.CONFIG not in (Config.ABORT, Config.BYPASS, Config.S1):
        raise UapiError(EIO, f"a guest's STE cannot have Config {int(how.CONFIG)}: {how!r}")
    if attributes.EATS not in (Eats.OFF, Eats.FULL):
        raise UapiError(EIO, f"a guest's STE cannot have EATS {int(attributes.EATS)}: {attributes!r}")
    return SmmuNested(viommu, how, attributes)


_: type[NestedDomain] = SmmuNested
