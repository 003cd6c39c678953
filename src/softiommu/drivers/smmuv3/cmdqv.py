"""Tegra241's CMDQV as the kernel's driver uses it: an interface for each guest, with queues in the guest's own memory.

A guest rings its doorbell by a store into a page that it maps, which in silicon is the page of registers. Here it is
memory: nobody is told of a store, so `poll` carries what the guest stored to the registers, and back what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EEXIST, EINVAL, EIO, ENOSPC
from struct import Struct
from typing import TYPE_CHECKING

from softiommu.abi.iommufd import (
    HwInfoTegra241Cmdqv,
    HwQueueType,
    VeventqType,
    VeventTegra241Cmdqv,
    ViommuTegra241Cmdqv,
    ViommuType,
)
from softiommu.drivers.driver import Device, ViommuHost
from softiommu.drivers.smmuv3.viommu import SmmuViommu
from softiommu.drivers.user_data import UserData
from softiommu.errors import UapiError
from softiommu.hardware.smmuv3.cmdqv_registers import (
    PAGE_SIZE,
    QUEUE_STRIDE,
    Allocation,
    Enable,
    Page0,
    Page1,
    Param,
    QueueBase,
    Registers,
    SidMatch,
    VintfConfig,
    VintfRegisters,
    queue_page0,
    queue_page1,
    vintf,
)
from softiommu.hardware.smmuv3.commands import COMMAND_BYTES

if TYPE_CHECKING:
    from softiommu.drivers.function import Bus
    from softiommu.drivers.smmuv3.domain import SmmuDomain
    from softiommu.drivers.smmuv3.driver import SmmuDriver

_SHOWN = Struct("<6I")
#: The registers of a queue that its owner stores into, in the order in which a poll carries them over, and the others.
_STORED = (Page0.CONS.offset, Page0.PROD.offset, Page0.CONFIG.offset, Page0.GERRORN.offset)
_FROM_HARDWARE = (Page0.CONS.offset, Page0.STATUS.offset, Page0.GERROR.offset)
_LEAST_BYTES = 2 * COMMAND_BYTES


class Cmdqv:
    """The extension of one SMMU, running. `most_lg2` is the largest queue. Interface 0 is the host's."""

    def __init__(self, bus: Bus, most_lg2: int) -> None:
        self.bus, self.most_lg2 = bus, most_lg2
        self.param = Param(bus.read(Registers.PARAM.offset, 4))
        self.queues, self.streams = 1 << self.param.per_interface_lg2, 1 << self.param.NUM_SID_PER_VM_LOG2
        self._users: dict[int, CmdqvViommu] = {}
        bus.write(Registers.CONFIG.offset, 4, Enable.of(EN=1))

    def hw_info(self) -> bytes:
        """What GET_HW_INFO tells of it."""
        param = self.param
        return HwInfoTegra241Cmdqv(0, param.VER, param.per_interface_lg2, param.NUM_SID_PER_VM_LOG2, 0).to_bytes()

    def take(self, viommu: CmdqvViommu) -> int:
        """An interface. ENOSPC: every one is used."""
        for number in range(1, 1 << self.param.NUM_VINTF_LOG2):
            if number not in self._users:
                self._users[number] = viommu
                return number
        raise UapiError(ENOSPC, "every interface of the CMDQV is used")

    def give(self, number: int) -> None:
        """An interface is free again."""
        del self._users[number]

    def interrupt(self) -> None:
        """A queue failed: its guest is told which."""
        failed = self.bus.read(Registers.VINTF_ERR_MAP.offset, 8)
        for number, viommu in list(self._users.items()):
            if failed >> number & 1:
                viommu.tell_errors()


class CmdqvViommu(SmmuViommu):
    """A guest's slice that has an interface of its own."""

    def __init__(
        self, owner: SmmuDriver, cmdqv: Cmdqv, parent: SmmuDomain, host: ViommuHost, data: UserData | None
    ) -> None:
        """EINVAL: no data, or of another type or length; ENOSPC."""
        if data is None:
            raise UapiError(EINVAL, "a vIOMMU with a CMDQV tells where its page is, and needs room for that")
        answer = data.copy(ViommuTegra241Cmdqv, ViommuType.TEGRA241_CMDQV)
        self._cmdqv, self._bus = cmdqv, cmdqv.bus
        self._number = cmdqv.take(self)
        self._slots: dict[Device, int] = {}
        #: By the number of a queue: what its page showed last.
        self._shown: dict[int, tuple[int, ...]] = {}
        self._page = host.mmap_region(PAGE_SIZE, self.poll)
        answer.out_vintf_mmap_offset, answer.out_vintf_mmap_length = self._page, PAGE_SIZE
        try:
            data.reply(answer.to_bytes())
        except UapiError:
            cmdqv.give(self._number)
            raise
        super().__init__(owner, parent, host)
        config = VintfConfig.of(EN=1, VMID=parent.id)
        self._bus.write(vintf(self._number) + VintfRegisters.CONFIG.offset, 4, config)

    # Streams

    def add_vdevice(self, device: Device, virt_id: int) -> None:
        """Name a stream. EINVAL: too large for the hardware; ENOSPC: it knows no more streams; errors of a vIOMMU."""
        if virt_id >> SidMatch.SID.width:
            raise UapiError(EINVAL, f"the hardware takes no stream id {virt_id:#x}")
        slot = next((n for n in range(self._cmdqv.streams) if n not in self._slots.values()), None)
        if slot is None:
            raise UapiError(ENOSPC, f"an interface of the CMDQV knows {self._cmdqv.streams} streams")
        super().add_vdevice(device, virt_id)
        self._slots[device] = slot
        at = vintf(self._number)
        self._bus.write(at + VintfRegisters.SID_REPLACE.at(slot), 4, self.stream_of(virt_id))
        self._bus.write(at + VintfRegisters.SID_MATCH.at(slot), 4, SidMatch.of(EN=1, SID=virt_id))

    def remove_vdevice(self, device: Device) -> None:
        """Forget a name."""
        slot = self._slots.pop(device)
        self._bus.write(vintf(self._number) + VintfRegisters.SID_MATCH.at(slot), 4, 0)
        self._bus.write(vintf(self._number) + VintfRegisters.SID_REPLACE.at(slot), 4, 0)
        super().remove_vdevice(device)

    # Queues

    def hw_queue_types(self) -> Sequence[int]:
        """Its own."""
        return (HwQueueType.TEGRA241_CMDQV,)

    def add_hw_queue(self, index: int, iova: int, pa: int, length: int) -> int | None:
        """Give a queue to the guest. EINVAL: there is no such queue, or of such a size or place in memory; EEXIST: it
        is taken; EIO: the one before it comes first."""
        if index >= self._cmdqv.queues:
            raise UapiError(EINVAL, f"an interface has {self._cmdqv.queues} queues, and none with number {index}")
        if index in self._shown:
            raise UapiError(EEXIST, f"queue {index} is in use")
        if index and index - 1 not in self._shown:
            raise UapiError(EIO, f"queue {index} needs queue {index - 1}")
        most = COMMAND_BYTES << self._cmdqv.most_lg2
        if length & length - 1 or not _LEAST_BYTES <= length <= most:
            raise UapiError(EINVAL, f"{length:#x} bytes at {iova:#x} are no queue of {_LEAST_BYTES}..{most:#x} bytes")
        if pa & length - 1 or pa & ~QueueBase.ADDR.mask:
            # The hardware takes the address bits below the size for 0, and so would read what lies before the queue.
            raise UapiError(EINVAL, f"{iova:#x} leads to {pa:#x}, where no queue of {length:#x} bytes can lie")
        number = self._queue(index)
        base = QueueBase.of(LOG2SIZE=(length // COMMAND_BYTES).bit_length() - 1, ADDR=pa >> 5)
        self._bus.write(queue_page1(number) + Page1.BASE.offset, 8, base)
        self._allocate(number, Allocation.of(ALLOC=1, LVCMDQ=index, VINTF=self._number))
        self._shown[index] = (0,) * 6
        self.host.store(self._place(index), _SHOWN.pack(*self._shown[index]))
        return index - 1 if index else None

    def remove_hw_queue(self, index: int) -> None:
        """Take a queue away."""
        self.poll()
        number = self._queue(index)
        self._bus.write(queue_page0(number) + Page0.CONFIG.offset, 4, 0)
        self._allocate(number, Allocation(0))
        self._bus.write(queue_page1(number) + Page1.BASE.offset, 8, 0)
        del self._shown[index]
        self.host.store(self._place(index), bytes(_SHOWN.size))

    def _queue(self, index: int) -> int:
        """Every interface has as many queues, one after the other."""
        return self._number * self._cmdqv.queues + index

    def _allocate(self, number: int, how: Allocation) -> None:
        self._bus.write(Registers.CMDQ_ALLOC.at(number), 4, how)

    def _place(self, index: int) -> int:
        return self._page + QUEUE_STRIDE * index

    # The guest's page

    def poll(self) -> bool:
        """What the guest stored in its page takes effect, and the page shows what came of it. Whether it did store."""
        stored = False
        for index, shown in list(self._shown.items()):
            raw = self.host.load(self._place(index), _SHOWN.size)
            now = _SHOWN.unpack(raw)
            if now != shown:
                self._carry_over(index, shown, now)
                stored = True
        return stored

    def _carry_over(self, index: int, shown: tuple[int, ...], now: tuple[int, ...]) -> None:
        at, place, after = queue_page0(self._queue(index)), self._place(index), list(now)
        for register in _STORED:
            word = register // 4
            if now[word] != shown[word]:
                self._bus.write(at + register, 4, now[word])
        for register in _FROM_HARDWARE:
            value = self._bus.read(at + register, 4)
            after[register // 4] = value
            self.host.store(place + register, value.to_bytes(4, "little"))
        self._shown[index] = tuple(after)

    def tell_errors(self) -> None:
        """Queues of the guest failed. Without an event queue the guest finds out by its page alone."""
        at = vintf(self._number)
        maps = [self._bus.read(at + VintfRegisters.LVCMDQ_ERR_MAP.at(number), 8) for number in (0, 1)]
        self.report(VeventqType.TEGRA241_CMDQV, VeventTegra241Cmdqv(*maps).to_bytes())

    def free(self) -> None:
        """The interface is free again."""
        self._bus.write(vintf(self._number) + VintfRegisters.CONFIG.offset, 4, 0)
        self._cmdqv.give(self._number)
        super().free()
