"""From a device and process id to their contexts, then through both stages. RISC-V IOMMU 1.0, "Process to translate
an IOVA", whose steps have these numbers, and the processes to locate contexts that it names.

Links to tables are kept under the tags of their stage: GSCID and PSCID of a first stage, GSCID of a second. What the
second stage shows of directories and first-stage tables is walked whole. All else that may be cached is the
translator's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.cache import Shape
from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.links import LinkedWalker, Links
from softiommu.hardware.riscv.contexts import Decoder, Device, Space
from softiommu.hardware.riscv.events import Cause, Iotval2
from softiommu.hardware.riscv.tables import (
    BASE_DC,
    BASE_DDI,
    DDT_LEVELS,
    EXTENDED_DC,
    EXTENDED_DDI,
    PC,
    PDI,
    PDT_LEVELS,
    DirectoryEntry,
    MrifPte0,
    MrifPte1,
    MsiPte,
    MsiPteMode,
    ProcessTa,
    Tc,
    directory_index,
)
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.formats.riscv import A, D, Pte
from softiommu.pagetable.kinds import (
    ADDRESS_SIZE,
    BAD_TABLE,
    EXECUTE,
    GLOBAL,
    LENIENT,
    OK,
    PRIVILEGED,
    READ,
    WRITE,
)
from softiommu.pagetable.nested import walk_first
from softiommu.pagetable.walk import Walk, new, walk

if TYPE_CHECKING:
    from softiommu.hardware.riscv.registers import Capabilities, Ddtp
    from softiommu.memory.physical import PhysicalMemory

_PAGE_FAULT = (Cause.INSTRUCTION_PAGE_FAULT, Cause.READ_PAGE_FAULT, Cause.WRITE_PAGE_FAULT)
_GUEST_PAGE_FAULT = (
    Cause.INSTRUCTION_GUEST_PAGE_FAULT,
    Cause.READ_GUEST_PAGE_FAULT,
    Cause.WRITE_GUEST_PAGE_FAULT,
)
_ACCESS_FAULT = (Cause.INSTRUCTION_ACCESS_FAULT, Cause.READ_ACCESS_FAULT, Cause.WRITE_ACCESS_FAULT)


class BlockedError(TranslationFaultError):
    """A request that is blocked; `iotval2` is what its record says of a guest-physical address."""

    def __init__(self, cause: Cause, request: Request, iotval2: int = 0) -> None:
        super().__init__(cause, request)
        self.cause, self.iotval2 = cause, iotval2
        #: The device context forbids a record (DTF).
        self.quiet = False


class InterruptFile(NamedTuple):
    """An interrupt file in memory, and the MSI that tells of news in it."""

    pa: int
    notice: int
    notice_pa: int


class Step(NamedTuple):
    """What one stage says of an address: `allowed` is what may be done in 2**lg2 bytes without touching the flags."""

    oa: int
    lg2: int
    allowed: int
    is_global: bool = False
    pbmt: int = 0
    #: Where the address is an interrupt file's.
    mrif: InterruptFile | None = None


class Walker:
    """Reads directories and tables."""

    def __init__(self, memory: PhysicalMemory, capabilities: Capabilities, links: Links | None = None) -> None:
        self._memory, self._capabilities = memory, capabilities
        self._linked = LinkedWalker(memory, Links(Shape(1, 0)) if links is None else links)
        self._decoder = Decoder(capabilities)
        self._ddi = EXTENDED_DDI if capabilities.MSI_FLAT else BASE_DDI
        self._dc_bytes = EXTENDED_DC if capabilities.MSI_FLAT else BASE_DC

    def device_bits(self, ddtp: Ddtp) -> int:
        """How wide the device ids are that the directory has a place for (step 5); without one, all."""
        return self._ddi[DDT_LEVELS.get(ddtp.MODE, 3)]

    def fits_process(self, process_id: int) -> bool:
        """Whether the largest process directory has a place for a process id."""
        have = self._capabilities
        return not process_id >> (20 if have.PD20 else 17 if have.PD17 else 8 if have.PD8 else 0)

    def _load(self, pa: int, words: int, cause: Cause, request: Request) -> list[int]:
        if pa >> self._capabilities.PAS:
            raise BlockedError(cause, request)
        try:
            return [self._memory.read_u64(pa + 8 * n) for n in range(words)]
        except BadAddressError as error:
            raise BlockedError(cause, request) from error

    # Contexts

    def device(self, ddtp: Ddtp, request: Request) -> Device:
        """The device context (step 6)."""
        table, level = ddtp.PPN << 12, DDT_LEVELS[ddtp.MODE] - 1
        while level:
            at = table + 8 * directory_index(level, request.sid, self._ddi)
            (raw,) = self._load(at, 1, Cause.DDT_LOAD_ACCESS_FAULT, request)
            entry = DirectoryEntry(raw)
            if not entry.V:
                raise BlockedError(Cause.DDT_NOT_VALID, request)
            if entry.reserved:
                raise BlockedError(Cause.DDT_MISCONFIGURED, request)
            table, level = entry.PPN << 12, level - 1
        at = table + self._dc_bytes * directory_index(0, request.sid, self._ddi)
        words = self._load(at, self._dc_bytes // 8, Cause.DDT_LOAD_ACCESS_FAULT, request)
        if not Tc(words[0]).V:
            raise BlockedError(Cause.DDT_NOT_VALID, request)
        device = self._decoder.device(words)
        if device is None:
            raise BlockedError(Cause.DDT_MISCONFIGURED, request)
        return device

    def process(self, device: Device, process_id: int, request: Request) -> Space:
        """The process context (step 14). Its directory is guest-physical where there is a second stage."""
        table, level = device.pdtp.PPN << 12, PDT_LEVELS[device.pdtp.MODE] - 1
        while level:
            at = self._shown(device, table + 8 * directory_index(level, process_id, PDI), request)
            (raw,) = self._load(at, 1, Cause.PDT_LOAD_ACCESS_FAULT, request)
            entry = DirectoryEntry(raw)
            if not entry.V:
                raise BlockedError(Cause.PDT_NOT_VALID, request)
            if entry.reserved:
                raise BlockedError(Cause.PDT_MISCONFIGURED, request)
            table, level = entry.PPN << 12, level - 1
        at = self._shown(device, table + PC * directory_index(0, process_id, PDI), request)
        words = self._load(at, PC // 8, Cause.PDT_LOAD_ACCESS_FAULT, request)
        if not ProcessTa(words[0]).V:
            raise BlockedError(Cause.PDT_NOT_VALID, request)
        space = self._decoder.process(words, device)
        if space is None:
            raise BlockedError(Cause.PDT_MISCONFIGURED, request)
        return space

    def _shown(self, device: Device, gpa: int, request: Request) -> int:
        """Where a process directory entry lies: an implicit read through the second stage."""
        if device.second is None:
            return gpa
        found = walk(device.second.table, self._memory, device.second.root, gpa, READ)
        if found.status in (BAD_TABLE, ADDRESS_SIZE):
            raise BlockedError(Cause.PDT_LOAD_ACCESS_FAULT, request)
        if found.status != OK:
            raise _guest_page_fault(request, gpa, IMPLICIT=1)
        return found.oa

    # Stages

    def first(self, device: Device, space: Space, request: Request) -> Step:
        """The first stage (step 17): the address that it gives, guest-physical where there is a second."""
        stage = space.first
        if stage is None:
            return Step(request.iova, 64, READ | WRITE | EXECUTE)
        width = stage.table.input_bits
        if request.iova >> width - 1 not in (0, (1 << 65 - width) - 1):
            raise BlockedError(_by_access(_PAGE_FAULT, request.want), request)
        iova = request.iova & (1 << width) - 1
        want = request.want | (PRIVILEGED if request.privileged else 0)
        if device.second is None:
            found = self._linked.walk((device.gscid, space.pscid), stage, iova, want, request.iova)
        else:
            both = walk_first(stage, device.second, self._memory, iova, want)
            if both.fetch_ipa is not None and both.status not in (BAD_TABLE, ADDRESS_SIZE):
                written = int(both.fetch_want == WRITE)
                raise _guest_page_fault(request, both.fetch_ipa, IMPLICIT=1, IMPLICIT_WRITE=written)
            if both.stage1 is None:
                raise BlockedError(_by_access(_ACCESS_FAULT, request.want), request)
            found = both.stage1
        if found.status in (BAD_TABLE, ADDRESS_SIZE):
            raise BlockedError(_by_access(_ACCESS_FAULT, request.want), request)
        if found.status != OK:
            raise BlockedError(_by_access(_PAGE_FAULT, request.want), request)
        return _step(found)

    def second(self, device: Device, gpa: int, request: Request) -> Step:
        """MSI translation (step 18) and the second stage (step 19)."""
        stage = device.second
        if stage is None:
            return Step(gpa, 64, READ | WRITE | EXECUTE)
        if device.msi is not None and device.msi.covers(gpa):
            return self._interrupt_file(device, gpa, request)
        found = self._linked.walk((device.gscid,), stage, gpa, request.want)
        if found.status in (BAD_TABLE, ADDRESS_SIZE):
            raise BlockedError(_by_access(_ACCESS_FAULT, request.want), request)
        if found.status != OK:
            raise _guest_page_fault(request, gpa)
        step = _step(found)
        if device.msi is not None and device.msi.meets(gpa, step.lg2):
            return step._replace(lg2=12)  # pages of interrupt files are in this leaf: it does not count for them
        return step

    def _interrupt_file(self, device: Device, gpa: int, request: Request) -> Step:
        """The MSI page table's answer ("Process to translate addresses of MSIs")."""
        assert device.msi is not None, "only MSI addresses come here"
        at = device.msi.table | device.msi.file(gpa) << 4
        words = self._load(at, 2, Cause.MSI_PTE_LOAD_ACCESS_FAULT, request)
        pte = MsiPte(words[0])
        if not pte.V:
            raise BlockedError(Cause.MSI_PTE_NOT_VALID, request)
        mrif = self._capabilities.MSI_MRIF and pte.M == MsiPteMode.MRIF
        file, notice = MrifPte0(words[0]), MrifPte1(words[1])
        wrong = file.reserved or notice.reserved if mrif else pte.reserved or pte.M != MsiPteMode.BASIC
        if pte.C or wrong:
            raise BlockedError(Cause.MSI_PTE_MISCONFIGURED, request)
        if request.want & (EXECUTE | LENIENT) == EXECUTE:
            raise BlockedError(Cause.INSTRUCTION_ACCESS_FAULT, request)
        if not mrif:
            return Step(pte.PPN << 12 | gpa & 0xFFF, 12, READ | WRITE)
        number = notice.N_HIGH << 10 | notice.N_LOW
        return Step(gpa, 12, READ | WRITE, mrif=InterruptFile(file.ADDR << 9, number, notice.NPPN << 12))


def _step(found: Walk) -> Step:
    """A leaf: it cannot be written before its dirty flag is set, nor used at all before its accessed flag is."""
    pte = found.pte
    allowed = found.allowed & ((READ | WRITE | EXECUTE) if pte & D else (READ | EXECUTE)) if pte & A else 0
    pbmt = (pte & Pte.PBMT.mask) >> Pte.PBMT.low
    return new(Step, (found.oa, found.lg2, allowed, bool(found.allowed & GLOBAL), pbmt, None))


def _by_access(causes: tuple[Cause, Cause, Cause], want: int) -> Cause:
    """The cause for the original access: execute, read or write. A translation request (LENIENT) is a read."""
    if want & LENIENT:
        return causes[1]
    return causes[0] if want & EXECUTE else causes[2] if want & WRITE else causes[1]


def _guest_page_fault(request: Request, gpa: int, **how: int) -> BlockedError:
    iotval2 = Iotval2.of(GPA=(gpa & (1 << 64) - 1) >> 2, **how)
    return BlockedError(_by_access(_GUEST_PAGE_FAULT, request.want), request, iotval2)
