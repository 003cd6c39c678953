"""Which registers software can write, and when. Arm IHI 0070, 6.3: a register in use, or of an absent feature, is
read-only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.smmuv3.registers import Cr0, Cr1, Gbpa, IrqCtrl, Registers
from softiommu.words import Word

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.presets import Identity

_QUEUES = Cr0.CMDQEN.mask | Cr0.EVENTQEN.mask | Cr0.PRIQEN.mask
_TABLE_FIELDS = Cr1.TABLE_IC.mask | Cr1.TABLE_OC.mask | Cr1.TABLE_SH.mask
_QUEUE_FIELDS = Cr1.QUEUE_IC.mask | Cr1.QUEUE_OC.mask | Cr1.QUEUE_SH.mask

Hook = Callable[["RegisterRules", Word, Word], None]


def _guarded(name: str, enable: int, feature: str = "") -> Hook:
    """The register keeps its value while CR0 has one of the bits `enable`, or without a feature of IDR0."""

    def hook(rules: RegisterRules, old: Word, new: Word) -> None:
        absent = feature and not getattr(rules.identity.idr0, feature)
        if absent or rules.registers.CR0ACK & enable:
            setattr(rules.registers, name, old)

    return hook


def _interrupt(name: str, enable: int, feature: str = "") -> Hook:
    """The register keeps its value while its interrupt is enabled, without MSIs, or without its queue."""

    def hook(rules: RegisterRules, old: Word, new: Word) -> None:
        absent = not rules.identity.idr0.MSI or (feature and not getattr(rules.identity.idr0, feature))
        if absent or rules.registers.IRQ_CTRLACK & enable:
            setattr(rules.registers, name, old)

    return hook


class RegisterRules:
    """The registers of one SMMU, with the writes that only depend on other registers."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.registers = registers = Registers(self)
        registers.IDR0, registers.IDR1 = identity.idr0, identity.idr1
        registers.IDR3, registers.IDR5 = identity.idr3, identity.idr5
        registers.IIDR, registers.AIDR = identity.iidr, identity.aidr

    on_write_STRTAB_BASE = _guarded("STRTAB_BASE", Cr0.SMMUEN.mask)
    on_write_STRTAB_BASE_CFG = _guarded("STRTAB_BASE_CFG", Cr0.SMMUEN.mask)
    on_write_CR2 = _guarded("CR2", Cr0.SMMUEN.mask)
    on_write_CMDQ_BASE = _guarded("CMDQ_BASE", Cr0.CMDQEN.mask)
    on_write_CMDQ_CONS = _guarded("CMDQ_CONS", Cr0.CMDQEN.mask)
    on_write_EVENTQ_BASE = _guarded("EVENTQ_BASE", Cr0.EVENTQEN.mask)
    on_write_EVENTQ_PROD = _guarded("EVENTQ_PROD", Cr0.EVENTQEN.mask)
    on_write_PRIQ_BASE = _guarded("PRIQ_BASE", Cr0.PRIQEN.mask, "PRI")
    on_write_PRIQ_PROD = _guarded("PRIQ_PROD", Cr0.PRIQEN.mask, "PRI")
    on_write_PRIQ_CONS = _guarded("PRIQ_CONS", 0, "PRI")
    on_write_GERROR_IRQ_CFG0 = _interrupt("GERROR_IRQ_CFG0", IrqCtrl.GERROR.mask)
    on_write_GERROR_IRQ_CFG1 = _interrupt("GERROR_IRQ_CFG1", IrqCtrl.GERROR.mask)
    on_write_GERROR_IRQ_CFG2 = _interrupt("GERROR_IRQ_CFG2", IrqCtrl.GERROR.mask)
    on_write_EVENTQ_IRQ_CFG0 = _interrupt("EVENTQ_IRQ_CFG0", IrqCtrl.EVENTQ.mask)
    on_write_EVENTQ_IRQ_CFG1 = _interrupt("EVENTQ_IRQ_CFG1", IrqCtrl.EVENTQ.mask)
    on_write_EVENTQ_IRQ_CFG2 = _interrupt("EVENTQ_IRQ_CFG2", IrqCtrl.EVENTQ.mask)
    on_write_PRIQ_IRQ_CFG0 = _interrupt("PRIQ_IRQ_CFG0", IrqCtrl.PRIQ.mask, "PRI")
    on_write_PRIQ_IRQ_CFG1 = _interrupt("PRIQ_IRQ_CFG1", IrqCtrl.PRIQ.mask, "PRI")

    def on_write_PRIQ_IRQ_CFG2(self, old: Word, new: Word) -> None:
        """LO is there without MSIs, too."""
        if not self.identity.idr0.PRI or self.registers.IRQ_CTRLACK.PRIQ:
            self.registers.PRIQ_IRQ_CFG2 = old

    def on_write_CR1(self, old: Cr1, new: Cr1) -> None:
        """The attributes of tables and of queues are fixed while these are used."""
        ack = self.registers.CR0ACK
        fixed = (_TABLE_FIELDS if ack.SMMUEN else 0) | (_QUEUE_FIELDS if ack & _QUEUES else 0)
        self.registers.CR1 = Cr1(old & fixed | new & ~fixed)

    def on_write_GBPA(self, old: Gbpa, new: Gbpa) -> None:
        """Only a write with UPDATE changes something; it is done at once."""
        self.registers.GBPA = new.replace(UPDATE=0) if new.UPDATE else old

    def on_write_IRQ_CTRL(self, old: IrqCtrl, new: IrqCtrl) -> None:
        """It takes effect at once."""
        if not self.identity.idr0.PRI:
            new = new.replace(PRIQ=0)
        self.registers.IRQ_CTRL = self.registers.IRQ_CTRLACK = new
