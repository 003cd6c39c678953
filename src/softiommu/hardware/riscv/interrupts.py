"""Pending bits, their vectors, and messages or wires. RISC-V IOMMU 1.0, ipsr, icvec and msi_cfg_tbl."""

from __future__ import annotations

from collections.abc import Callable

from softiommu.hardware.riscv.registers import VECTORS, Icvec, Igs, Ipsr, MsiControl, Registers
from softiommu.memory.physical import BadAddressError


class Interrupts:
    """The interrupts of one IOMMU.

    `message(address, data)` is an MSI's write; `wire(vector, level)` a wire. `failed(address)` hears of a message
    that no memory took.
    """

    def __init__(
        self,
        registers: Registers,
        message: Callable[[int, int], None] | None,
        wire: Callable[[int, bool], None] | None,
        failed: Callable[[int], None],
    ) -> None:
        self._registers, self._message, self._wire, self._failed = registers, message, wire, failed
        #: Vectors whose message waits until it is unmasked, and wires that are raised.
        self._waiting: set[int] = set()
        self._raised: set[int] = set()

    def icvec_written(self) -> None:
        """Causes that do not exist have no vector."""
        have = self._registers.CAPABILITIES
        absent = (0 if have.HPM else Icvec.PMIV.mask) | (0 if have.ATS else Icvec.PIV.mask)
        self._registers.ICVEC = self._registers.ICVEC & ~absent

    def vector_written(self, vector: int) -> None:
        """A vector's registers changed: they exist where messages do; what waited goes out when it is unmasked."""
        registers = self._registers
        if registers.CAPABILITIES.IGS == Igs.WSI:
            registers.MSI_ADDR[vector] = registers.MSI_DATA[vector] = registers.MSI_VEC_CTL[vector] = 0
        elif vector in self._waiting and not registers.MSI_VEC_CTL[vector].M:
            self._waiting.discard(vector)
            self._send(vector)

    def pend(self, cause: int) -> None:
        """Set a bit of ipsr; a message goes out when it was not set."""
        old = self._registers.IPSR
        if old & cause:
            return
        self._registers.IPSR = old | cause
        if self._registers.FCTL.WSI:
            self.wires()
        else:
            self._post(self._vector(cause))

    def wires(self) -> None:
        """Raise and lower wires as ipsr and icvec have it. Whoever hears a wire may change them at once."""
        for vector in range(VECTORS):
            level = bool(self._registers.FCTL.WSI) and any(
                self._registers.IPSR & cause and self._vector(cause) == vector for cause in _CAUSES
            )
            if level != (vector in self._raised):
                self._raised ^= {vector}
                if self._wire is not None:
                    self._wire(vector, level)

    def _vector(self, cause: int) -> int:
        return int(getattr(self._registers.ICVEC, _CAUSES[cause]))

    def _post(self, vector: int) -> None:
        if MsiControl(self._registers.MSI_VEC_CTL[vector]).M:
            self._waiting.add(vector)
        else:
            self._send(vector)

    def _send(self, vector: int) -> None:
        self.send(self._registers.MSI_ADDR[vector].ADDR << 2, self._registers.MSI_DATA[vector].VALUE)

    def send(self, address: int, data: int) -> None:
        """An MSI's write."""
        if self._message is None:
            return
        try:
            self._message(address, data)
        except BadAddressError:
            self._failed(address)


_CAUSES = {Ipsr.CIP.mask: "CIV", Ipsr.FIP.mask: "FIV", Ipsr.PMIP.mask: "PMIV", Ipsr.PIP.mask: "PIV"}
