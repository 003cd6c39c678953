"""NVM commands. NVM Express 1.4, section 6. A handler gives dword 0 of the completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.devices.nvme.commands import (
    ALL_NAMESPACES,
    BlocksDword12,
    Command,
    CommandError,
    DatasetDword10,
    DatasetDword11,
    Nvm,
    Status,
)
from softiommu.hardware.devices.nvme.structures import RANGE

if TYPE_CHECKING:
    from softiommu.hardware.devices.nvme.controller import Nvme
    from softiommu.hardware.devices.nvme.namespace import Namespace


def _transfer(nvme: Nvme, command: Command) -> tuple[Namespace, int, int]:
    """The namespace, first byte and bytes of a command that moves blocks. CommandError."""
    namespace = nvme.subsystem.find(command.nsid)
    count = BlocksDword12(command.dword12).NLB + 1
    nvme.check_length(count << namespace.lba_lg2)
    return namespace, *namespace.span(command.lba, count)


def _settle(nvme: Nvme, namespace: Namespace, command: Command) -> None:
    """Without a cache, or with Force Unit Access, a write stays when it completes."""
    if BlocksDword12(command.dword12).FUA or not nvme.features.write_cache:
        namespace.flush()


def flush(nvme: Nvme, command: Command) -> int:
    """Flush (6.8)."""
    namespaces = nvme.subsystem.namespaces
    chosen = namespaces if command.nsid == ALL_NAMESPACES else [nvme.subsystem.find(command.nsid)]
    for namespace in chosen:
        namespace.flush()
    return 0


def read(nvme: Nvme, command: Command) -> int:
    """Read (6.9)."""
    namespace, offset, length = _transfer(nvme, command)
    nvme.fill(command, length, lambda views: namespace.read_into(offset, views))
    nvme.logs.count_read(length)
    return 0


def write(nvme: Nvme, command: Command) -> int:
    """Write (6.15). Nothing is stored unless all data arrived."""
    namespace, offset, length = _transfer(nvme, command)
    nvme.drain(command, length, lambda views: namespace.write_from(offset, views))
    _settle(nvme, namespace, command)
    nvme.logs.count_write(length)
    return 0


def compare(nvme: Nvme, command: Command) -> int:
    """Compare (6.6)."""
    namespace, offset, length = _transfer(nvme, command)
    same = namespace.read(offset, length) == nvme.receive(command, length)
    nvme.logs.count_read(length)
    if not same:
        raise CommandError(Status.COMPARE_FAILURE)
    return 0


def write_zeroes(nvme: Nvme, command: Command) -> int:
    """Write Zeroes (6.17)."""
    namespace = nvme.subsystem.find(command.nsid)
    namespace.zero(*namespace.span(command.lba, BlocksDword12(command.dword12).NLB + 1))
    _settle(nvme, namespace, command)
    return 0


def dataset_management(nvme: Nvme, command: Command) -> int:
    """Dataset Management (6.7): deallocated blocks become 0; what else it tells is advice."""
    namespace = nvme.subsystem.find(command.nsid)
    count = DatasetDword10(command.dword10).NR + 1
    raw = nvme.receive(command, count * RANGE.size)
    ranges = [raw[at : at + RANGE.size] for at in range(0, len(raw), RANGE.size)]
    spans = [namespace.span(RANGE.field(one, "LBA"), RANGE.field(one, "BLOCKS")) for one in ranges]
    if DatasetDword11(command.dword11).AD:
        for offset, length in spans:
            namespace.zero(offset, length)
    return 0


HANDLERS: dict[int, Callable[[Nvme, Command], int | None]] = {
    Nvm.FLUSH: flush,
    Nvm.WRITE: write,
    Nvm.READ: read,
    Nvm.COMPARE: compare,
    Nvm.WRITE_ZEROES: write_zeroes,
    Nvm.DATASET_MANAGEMENT: dataset_management,
}
