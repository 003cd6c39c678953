"""A guest's first stage over a second stage of the host: what a guest may say in its device context, and the contexts
that the hardware reads: of a whole device, or of one of its processes.

The guest's tables lie in its own memory, at guest-physical addresses: a first stage, or a directory of its processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi.iommufd import HwptAllocFlags
from softiommu.abi.riscv_extension import HWPT_DATA, HwptRiscv
from softiommu.drivers.driver import NestedDomain, unsupported
from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError
from softiommu.hardware.riscv.events import Cause, Fault0
from softiommu.hardware.riscv.tables import (
    FIRST_STAGE,
    PDT_LEVELS,
    DeviceTa,
    FirstMode,
    Iosatp,
    PdtMode,
    Pdtp,
    ProcessTa,
    Tc,
)
from softiommu.words import Word, bit, bits

if TYPE_CHECKING:
    from softiommu.drivers.riscv.domain import Route
    from softiommu.drivers.riscv.driver import RiscvDriver
    from softiommu.drivers.riscv.slice import RiscvSlice


#: The only flag of HWPT_ALLOC that a nested domain has a use for.
_HWPT_PASID = int(HwptAllocFlags.ALLOC_PASID)
#: What comes of the guest's tables, or of requests that its context does not provide for.
_GUESTS_CAUSES = frozenset(
    {
        Cause.INSTRUCTION_PAGE_FAULT,
        Cause.READ_PAGE_FAULT,
        Cause.WRITE_PAGE_FAULT,
        Cause.TRANSACTION_TYPE_DISALLOWED,
        Cause.PDT_NOT_VALID,
        Cause.PDT_MISCONFIGURED,
    }
)


class GuestTc(Word):
    """What a guest may say in `tc`. GADE is about a second stage, of which the guest has none."""

    V = bit(0)
    EN_ATS = bit(1)
    DTF = bit(4)
    PDTV = bit(5)
    GADE = bit(7)
    SADE = bit(8)
    DPE = bit(9)


class GuestTa(Word):
    """What a guest may say in `ta`."""

    PSCID = bits(31, 12)


class GuestContext(NamedTuple):
    """A guest's device context, checked."""

    tc: GuestTc
    ta: GuestTa
    fsc: Iosatp | Pdtp


class RiscvNested:
    """A guest's device context, which devices are attached to. `private`: nobody else has its slice."""

    #: As a domain of the second stage it routes a whole stream: the guest's processes are its own.
    first = False

    def __init__(self, slice: RiscvSlice, context: GuestContext, private: bool) -> None:
        self.owner, self.slice, self._guest, self._private = slice.owner, slice, context, private
        self.routes: list[Route] = []
        slice.nested.append(self)

    @property
    def has_directory(self) -> bool:
        """Whether it has processes of its own, so that it cannot be one."""
        return bool(self._guest.tc.PDTV)

    @property
    def sets_flags(self) -> bool:
        """Whether the hardware sets flags in its first stage."""
        return bool(self._guest.tc.SADE)

    @property
    def is_silent(self) -> bool:
        """Whether faults are not recorded."""
        return bool(self._guest.tc.DTF)

    @property
    def pscid(self) -> int | None:
        """The address space of every request; None: the guest's directory tells, of each process."""
        return None if self._guest.tc.PDTV else self._guest.ta.PSCID

    @property
    def uses_ats(self) -> bool:
        """Whether devices may ask for translations: only a guest that says so invalidates their TLBs."""
        return bool(self._guest.tc.V and self._guest.tc.EN_ATS)

    def context(self, host: Tc) -> list[int]:
        """The device context for the hardware; all 0: the guest's is not valid, and neither is this."""
        tc, ta, fsc = self._guest
        if not tc.V:
            return [0] * 4
        guests = {name: getattr(tc, name) for name in ("DTF", "PDTV", "SADE", "DPE")}
        # Whoever may not ask for translations asks for no pages.
        asks = {name: getattr(host, name) & tc.EN_ATS for name in ("EN_ATS", "EN_PRI", "PRPR")}
        mixed = host.replace(**asks, **guests)
        return [mixed, self.slice.iohgatp, DeviceTa(ta), fsc]

    def process(self) -> tuple[int, int]:
        """The words of a process context with its first stage; all 0: the guest's context is not valid."""
        tc, ta, fsc = self._guest
        return (ProcessTa.of(V=1, PSCID=ta.PSCID), fsc) if tc.V else (0, 0)

    def hears(self, sid: int, record: Sequence[int]) -> bool:
        """Tell the guest of a fault that its own tables made; False: it is not the guest's, or nobody listens."""
        cause = Fault0(record[0]).CAUSE
        if cause not in _GUESTS_CAUSES and (self._guest.tc.V or cause != Cause.DDT_NOT_VALID):
            return False
        return self.slice.report(sid, record)

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """As the slice does."""
        self.slice.invalidate(entries, handled, self)

    def free(self) -> None:
        """Nothing is attached any more. What was cached of the guest's tables went when devices left."""
        self.slice.nested.remove(self)
        if self._private:
            self.slice.free()


def read_context(driver: RiscvDriver, flags: int, data: UserData) -> GuestContext:
    """A guest's device context. EOPNOTSUPP: flags, or what the hardware has not; EINVAL: another type or length, bits
    that are reserved or no guest's, fields that do not go together; EFAULT."""
    if flags & ~_HWPT_PASID:
        raise unsupported(f"flags {flags:#x} for a nested domain")
    given = data.copy(HwptRiscv, HWPT_DATA)
    tc, ta = GuestTc(given.tc), GuestTa(given.ta)
    fsc = Pdtp(given.fsc) if tc.PDTV else Iosatp(given.fsc)
    wrong = tc.reserved or ta.reserved or fsc.reserved
    if wrong:
        raise UapiError(EINVAL, f"a guest's context cannot be {tc!r} {ta!r} {fsc!r}")
    if tc.DPE and not tc.PDTV:
        raise UapiError(EINVAL, "DPE: there is no directory whose process 0 could be the default")
    if tc.SADE and not driver.capabilities.AMO_HWAD:
        raise unsupported("SADE: the hardware sets no flags")
    _check_mode(driver, fsc)
    return GuestContext(tc, ta, fsc)


def _check_mode(driver: RiscvDriver, fsc: Iosatp | Pdtp) -> None:
    """Whether there are such tables. EINVAL: the mode is reserved; EOPNOTSUPP: the hardware has them not."""
    known = PDT_LEVELS if isinstance(fsc, Pdtp) else FIRST_STAGE
    if not fsc.MODE:
        return
    if fsc.MODE not in known:
        raise UapiError(EINVAL, f"mode {int(fsc.MODE)} is reserved: {fsc!r}")
    name = PdtMode(fsc.MODE).name if isinstance(fsc, Pdtp) else FirstMode(fsc.MODE).name
    if not getattr(driver.capabilities, name):
        raise unsupported(f"the hardware has no {name}")


_: type[NestedDomain] = RiscvNested
