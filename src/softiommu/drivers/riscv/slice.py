"""A guest's slice of a RISC-V IOMMU: a GSCID of its own for the parent's second stage, and the guest's invalidations.

Two guests over one parent, or two IOMMUs of one guest, may give the same PSCID to different address spaces: what is
cached of theirs differs by the GSCID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from errno import EINVAL, EIO
from functools import partial
from typing import TYPE_CHECKING

from softiommu.abi.generic_invalidation import Hint, Outcome, Scope, Target
from softiommu.abi.riscv_extension import INVALIDATE_DATA, VEVENTQ, RiscvCommand, RiscvFault
from softiommu.drivers.driver import Range, ViommuHost
from softiommu.drivers.generic_invalidation import Invalidation, carry_out, is_generic
from softiommu.drivers.riscv.queue import EVERYWHERE, device_tlb
from softiommu.drivers.user_data import Handled, UserArray
from softiommu.errors import UapiError
from softiommu.hardware.riscv.commands import (
    LAYOUTS,
    Ats0,
    Command,
    Iodir0,
    Iotinval0,
    Iotinval1,
)
from softiommu.hardware.riscv.events import Fault0

if TYPE_CHECKING:
    from softiommu.drivers.riscv.device import RiscvDevice
    from softiommu.drivers.riscv.domain import RiscvDomain, Route
    from softiommu.drivers.riscv.nested import RiscvNested
    from softiommu.hardware.riscv.tables import Iohgatp

_COMMAND = Iotinval0.COMMAND.mask
_PAGE_LG2 = 12
_PSCID_BITS = 20
#: More commands than this cost more than forgetting an address space.
_MOST_PAGES = 64

Words = tuple[int, int]


class RiscvSlice:
    """What one guest has of an IOMMU. `names` are its device ids, which only a vIOMMU gives, as `host`."""

    def __init__(self, parent: RiscvDomain, host: ViommuHost | None = None) -> None:
        self.owner, self.parent, self._host = parent.owner, parent, host
        self.id = parent.owner.gscids.take()
        #: The command that forgets every first stage.
        self._space = Iotinval0.of(COMMAND=Command.IOTINVAL_VMA, GV=1, GSCID=self.id)
        self.nested: list[RiscvNested] = []
        self.names: dict[int, RiscvDevice] = {}
        have = self.owner.capabilities
        #: Bits of both words of IOTINVAL.VMA that the hardware has not.
        self._absent = 0 if have.NL else Iotinval0.NL.mask, 0 if have.S else Iotinval1.S.mask
        self._converters: dict[int, Callable[[int, int], list[Words] | str]] = {
            Command.IOTINVAL_VMA: self._of_space,
            Command.IODIR_INVAL_PDT: self._of_process,
            Command.ATS_INVAL: self._of_device_tlb,
        }
        parent.slices.append(self)

    @property
    def iohgatp(self) -> Iohgatp:
        """The second stage: the parent's, under the slice's own name."""
        return self.parent.iohgatp.replace(GSCID=self.id)

    def cached(self) -> Iterator[Route]:
        """The streams whose device TLBs hold addresses that the guest's tables gave."""
        for nested in self.nested:
            if nested.uses_ats:
                yield from (route for route in nested.routes if self.owner.routes.uses_ats(route.sid))

    def forget_all(self) -> None:
        """Forget every first stage."""
        self.owner.queue.submit((self._space, 0))

    def free(self) -> None:
        """Forget the second stage (the first went when devices left), and give the id back."""
        self.owner.queue.submit((Iotinval0.of(COMMAND=Command.IOTINVAL_GVMA, GV=1, GSCID=self.id), 0))
        self.parent.slices.remove(self)
        self.owner.gscids.give(self.id)

    def report(self, sid: int, record: Sequence[int]) -> bool:
        """Tell the guest of a fault, by its name for the device; False: it has none, or nobody listens."""
        name = next((name for name, device in self.names.items() if sid in device.function.sids), None)
        if name is None or self._host is None:
            return False
        try:
            event = RiscvFault(int(Fault0(record[0]).replace(DID=name)), *record[1:])
            self._host.report_event(VEVENTQ, event.to_bytes())
        except UapiError:  # no event queue
            return False
        return True

    def invalidate(self, entries: UserArray, handled: Handled, of: RiscvNested | None = None) -> None:
        """Carry out commands of the guest's queue, or generic entries; `of`: for one context. EINVAL: another type;
        EIO: a command that no guest may give. Those before the first wrong entry are done, and counted."""
        if is_generic(entries):
            carry_out(entries, handled, partial(self._generic, of))
            return
        if entries.data_type != INVALIDATE_DATA:
            raise UapiError(EINVAL, f"entries of type {entries.data_type:#x} are not for a guest of RISC-V")
        good: list[list[Words]] = []
        try:
            for number in range(entries.entry_num):
                entry = entries.entry(number, RiscvCommand, INVALIDATE_DATA)
                good.append(self._convert(number, entry.low, entry.high))
        finally:
            self.owner.queue.submit(*(command for commands in good for command in commands))
            handled.count = len(good)

    # The guest's commands

    def _convert(self, number: int, low: int, high: int) -> list[Words]:
        """What the hardware is told in place of a command. EIO."""
        kind = low & _COMMAND
        convert = self._converters.get(kind)
        if convert is None:
            raise _refused(number, low, high, "it is no command of guests")
        layout = LAYOUTS[Command(kind)]
        if low & layout.low.RESERVED or high & layout.high.RESERVED:
            raise _refused(number, low, high, "it has reserved bits")
        done = convert(low, high)
        if isinstance(done, str):
            raise _refused(number, low, high, done)
        return done

    def _of_space(self, low: int, high: int) -> list[Words] | str:
        """IOTINVAL.VMA, for the guest's own spaces alone."""
        if low & self._absent[0] or high & self._absent[1]:
            return "the hardware has no such invalidation"
        return [(low & ~Iotinval0.GSCID.mask | self._space, high)]

    def _of_process(self, low: int, high: int) -> list[Words] | str:
        """IODIR.INVAL_PDT, by the host's ids of the device."""
        asked = Iodir0(low)
        if not asked.DV or asked.PID >> self.owner.routes.process_bits:
            return "no device, or a process that no directory has a place for"
        device = self.names.get(asked.DID)
        if device is None:
            return f"no vDEVICE has device id {asked.DID:#x}"
        return [(asked.replace(DID=sid), high) for sid in device.function.sids]

    def _of_device_tlb(self, low: int, high: int) -> list[Words] | str:
        """ATS.INVAL, by the host's id of the device."""
        asked = Ats0(low)
        name = asked.RID | (asked.DSEG << 16 if asked.DSV else 0)
        device = self.names.get(name)
        if device is None or not self.owner.capabilities.ATS:
            return f"no vDEVICE with a TLB has device id {name:#x}"
        sid = device.function.sids[0]
        if not self.owner.routes.uses_ats(sid):
            return []  # nothing is cached there
        return [(asked.replace(RID=sid & 0xFFFF, DSEG=sid >> 16, DSV=int(sid >> 16 != 0)), high)]

    # Generic entries

    def _generic(self, of: RiscvNested | None, asked: Invalidation) -> Outcome:
        """EINVAL: a device by a name that none has, or which a context does not know; an id that is no PSCID."""
        chosen = self._chosen(of, asked)
        queue = self.owner.queue
        if asked.targets & Target.CONFIG:
            queue.submit(*(self._configuration(route, asked) for _, route in chosen if self._has_context(asked)))
        if asked.translations and (of is None or any(_concerns(asked, of, route) for route in of.routes)):
            queue.submit(*self._pages(of, asked))
        if not asked.targets & Target.DEVICE_TLB:
            return Outcome.NONE
        where = (0, EVERYWHERE) if asked.window is None else _block(asked.window)
        uses = self.owner.routes.uses_ats
        cached = [(nested, route) for nested, route in chosen if nested.uses_ats and uses(route.sid)]
        told = [(nested, route) for nested, route in cached if _concerns(asked, nested, route)]
        # One without a process is for all.
        pids = [(route.sid, asked.pasid if nested.has_directory else route.pasid) for nested, route in told]
        answered = queue.submit(*(device_tlb(*each, *where) for each in dict.fromkeys(pids)))
        return Outcome.NONE if answered else Outcome.DEVICE_TIMEOUT

    def _chosen(self, of: RiscvNested | None, asked: Invalidation) -> list[tuple[RiscvNested, Route]]:
        """The streams that an entry is about."""
        sids = None
        if asked.device is not None:
            device = self.names.get(asked.device) if of is None else None
            if device is None:
                raise UapiError(EINVAL, f"{asked.device:#x} is no device of a vIOMMU's")
            sids = device.function.sids
        if asked.arch_id is not None and asked.arch_id >> _PSCID_BITS:
            raise UapiError(EINVAL, f"{asked.arch_id:#x} is no PSCID")
        domains = self.nested if of is None else [of]
        return [(nested, route) for nested in domains for route in nested.routes if sids is None or route.sid in sids]

    def _has_context(self, asked: Invalidation) -> bool:
        return asked.pasid is None or not asked.pasid >> self.owner.routes.process_bits

    def _configuration(self, route: Route, asked: Invalidation) -> Words:
        """Forget a process context; or a device context, and all process contexts with it."""
        if asked.pasid is not None:
            return Iodir0.of(COMMAND=Command.IODIR_INVAL_PDT, DV=1, DID=route.sid, PID=asked.pasid), 0
        return Iodir0.of(COMMAND=Command.IODIR_INVAL_DDT, DV=1, DID=route.sid), 0

    def _pages(self, of: RiscvNested | None, asked: Invalidation) -> list[Words]:
        """Forget leaves, and what leads to them. A command that names a PSCID leaves global pages."""
        low, window = self._space, asked.window
        pscid = asked.arch_id if asked.arch_id is not None or of is None else of.pscid
        if pscid is not None and asked.scope is not Scope.DOMAIN and not asked.hints & Hint.GLOBAL:
            low = low.replace(PSCV=1, PSCID=pscid)
        have = self.owner.capabilities
        if window is None or not (asked.leaves_only or have.NL):
            return [(low, 0)]
        named = low.replace(AV=1, NL=int(not asked.leaves_only))
        pages = range(window.first >> _PAGE_LG2, (window.last >> _PAGE_LG2) + 1)
        if len(pages) == 1 or (not have.S and len(pages) <= _MOST_PAGES):
            return [(named, Iotinval1.of(PAGE=page)) for page in pages]
        first, lg2 = _block(window)
        if not have.S:
            return [(low, 0)]
        ones = (1 << lg2 - _PAGE_LG2 - 1) - 1
        return [(named, Iotinval1.of(S=1, PAGE=first >> _PAGE_LG2 | ones))]


def _concerns(asked: Invalidation, nested: RiscvNested, route: Route) -> bool:
    """Whether an entry is about requests that go by a route, or by one of the guest's own processes below it."""
    return nested.has_directory or asked.reaches(route.pasid)


def _block(window: Range) -> tuple[int, int]:
    """The smallest aligned power of two of bytes with a range: its first address, and its logarithm."""
    lg2 = max((window.first ^ window.last).bit_length(), _PAGE_LG2)
    return window.first >> lg2 << lg2, lg2


def _refused(number: int, low: int, high: int, why: str) -> UapiError:
    return UapiError(EIO, f"command {number}, {low:#x} {high:#x}, is refused: {why}")
