"""The command queue: commands are fetched, checked and carried out in order. Arm IHI 0070, 3.5, 4 and 7.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.hardware.smmuv3.commands import (
    COMMAND_BYTES,
    LAST_SIZE,
    LAYOUTS,
    TLBI_TG,
    Address1,
    AtcInv0,
    AtcInv1,
    CfgiCd0,
    Leaf1,
    Op,
    PriResp1,
    Range1,
    Resp,
    Resume0,
    Resume1,
    Signal,
    Sync0,
    Sync1,
)
from softiommu.hardware.smmuv3.registers import CmdqCons, CommandError, Ring
from softiommu.hardware.smmuv3.signals import Wire
from softiommu.hardware.smmuv3.stalls import Outcome
from softiommu.hardware.smmuv3.tables import Strw
from softiommu.hardware.smmuv3.tlb import ADDRESS, Selection
from softiommu.memory.physical import BadAddressError

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.bulk import Bulk
    from softiommu.hardware.smmuv3.model import Smmu
    from softiommu.memory.physical import PhysicalMemory

_ALL_STREAMS = 31
#: So many commands are worth to be looked at together.
_LONG = 32


class IllegalError(Exception):
    """A command that hardware refuses: CERROR_ILL."""


class _Command(NamedTuple):
    """A command with its words decoded. Their types are those of its layout."""

    op: Op
    low: Any
    high: Any


class CommandQueue:
    """The queue of one SMMU."""

    def __init__(self, smmu: Smmu, memory: PhysicalMemory) -> None:
        self._smmu, self._memory = smmu, memory
        self._running = False
        #: An ATC invalidation since the last SYNC got no completion.
        self._timed_out = False
        self._bulk: Bulk | None = None
        #: So many commands are taken one by one.
        self._single = 0
        self._handlers = {
            Op.PREFETCH_CONFIG: self._prefetch,
            Op.PREFETCH_ADDR: self._prefetch,
            Op.CFGI_STE: self._cfgi_ste,
            Op.CFGI_STE_RANGE: self._cfgi_ste_range,
            Op.CFGI_CD: self._cfgi_cd,
            Op.CFGI_CD_ALL: self._cfgi_cd_all,
            Op.ATC_INV: self._atc_inv,
            Op.PRI_RESP: self._pri_resp,
            Op.RESUME: self._resume,
            Op.STALL_TERM: self._stall_term,
            Op.SYNC: self._sync,
        }

    def run(self) -> None:
        """Carry commands out until the queue is empty or one is wrong. What a command sets off may ring again."""
        if self._running:
            return
        self._running = True
        try:
            while self._batch():
                pass
        finally:
            self._running = False

    def _batch(self) -> bool:
        """Carry out what the doorbell told of; whether there may be more."""
        registers, signals = self._smmu.registers, self._smmu.signals
        base, prod, cons = registers.CMDQ_BASE, registers.CMDQ_PROD.WR, registers.CMDQ_CONS.RD
        ring = Ring(min(base.LOG2SIZE, self._smmu.identity.idr1.CMDQS))
        if not registers.CR0ACK.CMDQEN or signals.active("CMDQ_ERR") or ring.empty(prod, cons):
            return False
        start = (base.ADDR << 5) & ~(max(32, COMMAND_BYTES << ring.lg2) - 1)
        while not ring.empty(prod, cons):
            done = self.at_once(start, ring, prod, cons)
            if done:
                cons = ring.skip(cons, done)
                registers.CMDQ_CONS = CmdqCons(registers.CMDQ_CONS & CmdqCons.ERR.mask | cons)
                continue
            error = self._carry_out(start + COMMAND_BYTES * ring.slot(cons))
            if error is not CommandError.NONE:
                registers.CMDQ_CONS = registers.CMDQ_CONS.replace(ERR=error)
                signals.error("CMDQ_ERR")
                return False
            cons = ring.next(cons)
            registers.CMDQ_CONS = CmdqCons(registers.CMDQ_CONS & CmdqCons.ERR.mask | cons)
            if not registers.CR0ACK.CMDQEN:
                return False
        return True

    def at_once(self, start: int, ring: Ring, prod: int, cons: int, vmid: int | None = None) -> int:
        """Carry out a long run of invalidations in a queue, if one comes next (`vmid`: it is a guest's, which has
        this VMID): how many there were."""
        if self._single:
            self._single -= 1
            return 0
        count = ring.ahead(prod, cons)
        if count < _LONG:
            return 0
        from softiommu.hardware.smmuv3.bulk import Bulk

        if self._bulk is None:
            self._bulk = Bulk(self._smmu)
        try:
            raw = self._memory.read(start + COMMAND_BYTES * ring.slot(cons), COMMAND_BYTES * count)
        except BadAddressError:
            raw = b""
        done, answered = self._bulk.run(raw, not self._timed_out, vmid) if raw else (0, True)
        self._timed_out = self._timed_out or not answered
        # Where runs are short, commands are taken one by one for a while.
        self._single = 0 if done >= _LONG else _LONG
        return done

    def _carry_out(self, at: int) -> CommandError:
        try:
            low, high = self._memory.read_u64(at), self._memory.read_u64(at + 8)
        except BadAddressError:
            return CommandError.ABT
        return self.execute(low, high)

    def execute(self, low: int, high: int) -> CommandError:
        """Carry out a command, in whichever queue it lay."""
        try:
            command = self._decode(low, high)
            if command.op is Op.SYNC and self._timed_out:
                self._timed_out = False
                return CommandError.ATC_INV_SYNC
            self._handlers.get(command.op, self._tlbi)(command)
        except IllegalError:
            return CommandError.ILL
        return CommandError.NONE

    def _decode(self, low: int, high: int) -> _Command:
        try:
            op = Op(low & 0xFF)
        except ValueError as error:
            raise IllegalError from error
        layout = LAYOUTS[op]
        first, second = layout.low(low), layout.high(high)
        if not layout.exists(self._smmu.identity.idr0) or first.reserved or second.reserved:
            raise IllegalError
        return _Command(op, first, second)

    # Configuration

    def _prefetch(self, command: _Command) -> None:
        """A hint, which this hardware does not take."""

    def _cfgi_ste(self, command: _Command) -> None:
        leaf: Leaf1 = command.high
        sid: int = command.low.SID
        self._smmu.configuration.forget_streams(sid, sid, bool(leaf.LEAF))

    def _cfgi_ste_range(self, command: _Command) -> None:
        span: Range1 = command.high
        if span.RANGE == _ALL_STREAMS:
            self._smmu.configuration.forget_all()
            return
        size = 2 << span.RANGE
        first = command.low.SID & ~(size - 1)
        self._smmu.configuration.forget_streams(first, first + size - 1, False)

    def _cfgi_cd(self, command: _Command) -> None:
        low: CfgiCd0 = command.low
        self._smmu.configuration.forget_contexts(low.SID, low.SID, low.SSID, bool(command.high.LEAF))

    def _cfgi_cd_all(self, command: _Command) -> None:
        sid: int = command.low.SID
        self._smmu.configuration.forget_contexts(sid, sid, None, False)

    # Translations

    def _tlbi(self, command: _Command) -> None:
        op, low = command.op, command.low
        window = self._window(low, command.high) if isinstance(command.high, Address1) else None
        if op == Op.TLBI_NSNH_ALL:
            chosen = Selection(stage2=True)
        elif op in (Op.TLBI_EL2_ALL, Op.TLBI_EL2_VAA):
            chosen = Selection(Strw.EL2, window=window)
        elif op in (Op.TLBI_EL2_ASID, Op.TLBI_EL2_VA):
            # A regime without hosts (E2H) has no ASIDs.
            asid = self._asid(low.ASID) if self._smmu.registers.CR2.E2H else None
            chosen = Selection(Strw.EL2, None, asid, op == Op.TLBI_EL2_VA, window)
        else:
            chosen = self._non_hyp(op, low, window)
        self._smmu.tlb.drop(chosen)

    def _non_hyp(self, op: Op, low: Any, window: tuple[int, int] | None) -> Selection:
        vmid: int | None = low.VMID
        idr0 = self._smmu.identity.idr0
        if not idr0.S2P:
            vmid = None  # compared only where there is stage 2 (4.4)
        elif low.VMID >> 8 and not idr0.VMID16:
            raise IllegalError
        if op == Op.TLBI_S12_VMALL:
            return Selection(vmid=vmid, stage2=True)
        if op == Op.TLBI_S2_IPA:
            return Selection(vmid=vmid, window=window, stage1=False, stage2=True)
        asid = self._asid(low.ASID) if op in (Op.TLBI_NH_ASID, Op.TLBI_NH_VA) else None
        return Selection(Strw.NS_EL1, vmid, asid, op == Op.TLBI_NH_VA, window)

    def _asid(self, asid: int) -> int:
        if asid >> 8 and not self._smmu.identity.idr0.ASID16:
            raise IllegalError
        return asid

    def _window(self, low: Any, high: Address1) -> tuple[int, int]:
        """The addresses of an invalidation: a page, or with TG a range (4.4.1). TTL hints are not needed."""
        idr3, idr5 = self._smmu.identity.idr3, self._smmu.identity.idr5
        if high.TTL128 or (low.SCALE >> 5 and not idr5.DS):
            raise IllegalError
        first, size = high.ADDR << 12 & ADDRESS, 1 << 12
        if high.TG:
            # Level 1 of 16 KiB has leaves only with DS: else the hint counts as none.
            hint = high.TTL if idr5.DS or TLBI_TG[high.TG] != 14 or high.TTL != 1 else 0
            if not idr3.RIL or not (low.NUM or low.SCALE or hint):
                raise IllegalError
            size = (low.NUM + 1) << low.SCALE + TLBI_TG[high.TG]
        elif low.NUM or low.SCALE or high.TTL:
            raise IllegalError
        return first, min(first + size - 1, ADDRESS)

    # Devices

    def _atc_inv(self, command: _Command) -> None:
        low: AtcInv0 = command.low
        high: AtcInv1 = command.high
        if high.SIZE > LAST_SIZE:
            raise IllegalError
        size = 1 << 12 + high.SIZE
        first = (high.ADDR << 12) & ~(size - 1)
        pasid = low.SSID if low.SSV else None
        if not self._smmu.ats.invalidate([(low.SID, pasid, low.GLOBAL, first, first + size - 1)]):
            self._timed_out = True

    def _pri_resp(self, command: _Command) -> None:
        high: PriResp1 = command.high
        if high.RESP not in tuple(Resp):
            raise IllegalError
        pasid = command.low.SSID if command.low.SSV else None
        self._smmu.ats.respond(command.low.SID, pasid, high.PRGINDEX, high.RESP)

    def _resume(self, command: _Command) -> None:
        low: Resume0 = command.low
        high: Resume1 = command.high
        if low.AC:
            outcome = Outcome.RETRY
        else:
            aborts = low.AB or self._smmu.identity.idr0.TERM_MODEL
            outcome = Outcome.ABORT if aborts else Outcome.RAZ_WI
        self._smmu.stalls.resume(low.SID, high.STAG, outcome)

    def _stall_term(self, command: _Command) -> None:
        self._smmu.stalls.terminate(command.low.SID)

    def _sync(self, command: _Command) -> None:
        low: Sync0 = command.low
        high: Sync1 = command.high
        if low.CS == Signal.IRQ:
            self._smmu.signals.send(Wire.CMD_SYNC, high.MSIADDR << 2, low.MSIDATA)
        elif low.CS == Signal.SEV:
            self._smmu.signals.wake()
        elif low.CS != Signal.NONE:
            raise IllegalError
