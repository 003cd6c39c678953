"""A stage 2 with the VMID that a VM has on its CPUs: who may ask for one, and what becomes of it, through the ioctls.

No kernel has this: the oracle is docs/extensions.md, and Arm IHI 0070, 3.17.
"""

from errno import EBUSY, EINVAL, EOPNOTSUPP

import pytest

import softiommu
from drivers.smmuv3_guest import RAM, Guest, context
from drivers.smmuv3_machines import arm
from softiommu.abi import iommufd as abi
from softiommu.abi.iommufd import HwptAllocFlags, HwptDataType, ViommuType
from softiommu.abi.smmuv3_extension import HW_CAP_BTM, HW_CAP_HTTU, VIOMMU_ALLOC_BTM, ViommuBtm
from softiommu.errors import ConfigError
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.hardware.smmuv3.broadcast import Broadcast, Tlbi
from softiommu.hardware.smmuv3.events import Event
from softiommu.hardware.smmuv3.registers import Registers
from softiommu.machine.description import load
from softiommu.memory.physical import PAGE

KVMS, IOVA, ASID, SID = 3, 0x5000, 7, 0x28
BOTH = "extensions = { BTM = 1, HTTU = 1 }"
HEARS = "idr0 = { BTM = 1 }"


class Host:
    """An iommufd with a device, and a nest parent that shows a guest's RAM."""

    def __init__(self, *lines):
        self.iommufd = softiommu.open(arm(*(lines or (HEARS, BOTH))))
        self.machine = self.iommufd.backend.machine
        self.smmu = self.machine.hardware.iommus["smmu0"].unit
        self.device, self.guest, self.ioas = self.iommufd.device("pcitest0"), Guest(), self.iommufd.ioas()
        self.ioas.map_file(self.guest.memory.file.fd, 0, 2 << 20, iova=RAM)
        self.parent = self.new_parent()

    def new_parent(self):
        return self.device.hwpt(self.ioas, HwptAllocFlags.ALLOC_NEST_PARENT)

    def viommu(self, vmid=KVMS, parent=None, flags=VIOMMU_ALLOC_BTM, type=ViommuType.ARM_SMMUV3, data=None):
        raw = ViommuBtm(vmid).to_bytes() if data is None else data
        return self.device.viommu(type, parent or self.parent, bytearray(raw) if raw else None, flags)

    def refused(self, *arguments, **keys):
        with pytest.raises(OSError, match=r"\w") as error:
            self.viommu(*arguments, **keys)
        return error.value.errno

    def nested(self, viommu):
        given = self.guest.ste(EATS=0)
        return self.device.hwpt(viommu, 0, (HwptDataType.ARM_SMMUV3, given))

    def vmid(self):
        """What the stream's STE says."""
        base, shape = self.smmu.registers.STRTAB_BASE.ADDR << 6, self.smmu.registers.STRTAB_BASE_CFG
        memory = self.machine.hardware.memory
        leaf = memory.read_u64(base) & ~(PAGE - 1) if shape.FMT else base
        return memory.read_u64(leaf + 64 * SID + 16) & 0xFFFF

    def tags(self):
        """The VMIDs of what is cached."""
        return {page.tags[1] for page, _ in self.smmu.tlb.iotlb.cache.items()}

    def reach(self, iova=IOVA):
        try:
            return self.smmu.translate(SID, iova, 1).pa
        except TranslationFaultError as fault:
            return Event(fault.reason)


def test_the_kernel_tells_what_it_can_and_the_registers_stay_raw():
    host = Host()
    info = host.device.hw_info()
    assert info.capabilities & (HW_CAP_BTM | HW_CAP_HTTU) == HW_CAP_BTM | HW_CAP_HTTU
    assert host.smmu.read(Registers.CR2.offset, 4) >> 2 & 1 == 0
    raw = abi.HwInfoArmSmmuv3.from_bytes(info.data)
    assert raw.idr0 == host.smmu.registers.IDR0


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((HEARS,), 0),
        ((BOTH,), HW_CAP_HTTU),
        ((HEARS, "extensions = { BTM = 1 }"), HW_CAP_BTM),
        ((HEARS, BOTH, "iort = { HTTU = 0 }"), HW_CAP_BTM),
        ((HEARS, BOTH, "iort = { HTTU = 1 }"), HW_CAP_BTM),
        ((HEARS, BOTH, 'nesting = "software"'), 0),
        ((HEARS, BOTH, 'nesting = "mixed"'), HW_CAP_BTM | HW_CAP_HTTU),
        (("idr0 = { BTM = 1, S2P = 0, VMID16 = 0 }", BOTH), 0),
    ],
)
def test_a_kernel_without_the_extension_or_hardware_without_the_feature_tells_nothing(lines, told):
    with softiommu.open(arm(*lines)) as iommufd:
        capabilities = iommufd.device("pcitest0").hw_info().capabilities
    assert capabilities & (HW_CAP_BTM | HW_CAP_HTTU) == told


def test_the_firmware_decides_what_the_driver_does_and_not_what_it_tells():
    with softiommu.open(arm("iort = { HTTU = 1 }")) as iommufd, iommufd.ioas() as ioas:
        device = iommufd.device("pcitest0")
        info = device.hw_info()
        assert not info.capabilities & abi.HwCapabilities.DIRTY_TRACKING
        assert abi.HwInfoArmSmmuv3.from_bytes(info.data).idr0 >> 6 & 3 == 2
        with pytest.raises(OSError, match="dirty tracking") as error:
            device.hwpt(ioas, HwptAllocFlags.ALLOC_DIRTY_TRACKING)
        assert error.value.errno == EOPNOTSUPP


@pytest.mark.parametrize("lines", [("idr0 = { HTTU = 1 }", "iort = { HTTU = 2 }"), ("iort = { HTTU = 3 }",)])
def test_a_firmware_adds_nothing(lines):
    with pytest.raises(ConfigError, match=r"cannot add to IDR0.HTTU"):
        arm(*lines)


def test_released_kernels_refuse_the_flag():
    host = Host(HEARS)
    assert host.refused() == EOPNOTSUPP
    assert host.smmu.read(Registers.CR2.offset, 4) >> 2 & 1 == 1


@pytest.mark.parametrize(
    ("keys", "errno"),
    [
        ({"data": b""}, EINVAL),
        ({"data": bytes(4)}, EINVAL),
        ({"data": ViommuBtm(KVMS).to_bytes() + bytes(4)}, EINVAL),
        ({"data": ViommuBtm(KVMS, 1).to_bytes()}, EOPNOTSUPP),
        ({"vmid": 0}, EINVAL),
        ({"vmid": 0x10000}, EINVAL),
        ({"flags": VIOMMU_ALLOC_BTM | 1}, EOPNOTSUPP),
        ({"flags": 1}, EOPNOTSUPP),
        ({"flags": VIOMMU_ALLOC_BTM >> 1}, EOPNOTSUPP),
        ({"type": 0}, EOPNOTSUPP),
        ({"type": ViommuType.TEGRA241_CMDQV}, EOPNOTSUPP),
    ],
)
def test_a_wrong_request_is_refused_and_changes_nothing(keys, errno):
    host = Host()
    assert host.refused(**keys) == errno
    host.device.attach(host.parent)
    before = host.vmid()
    assert before not in (0, KVMS)
    assert host.viommu().id
    assert host.vmid() == KVMS


def test_a_queue_of_the_guests_own_has_no_vmid_to_ask_for():
    host = Host('unit = "tegra241"', HEARS, BOTH)
    data = abi.ViommuTegra241Cmdqv().to_bytes()
    assert host.refused(type=ViommuType.TEGRA241_CMDQV, data=data) == EOPNOTSUPP


def test_one_vmid_is_of_one_domain_and_a_parent_has_one():
    host = Host()
    other = host.new_parent()
    first = host.viommu(KVMS)
    assert host.refused(KVMS, other) == EBUSY
    assert host.refused(KVMS + 1) == EBUSY
    again = host.viommu(KVMS)
    second = host.viommu(KVMS + 1, other)
    first.destroy()
    assert host.refused(KVMS, host.new_parent()) == EBUSY
    again.destroy()
    second.destroy()
    assert host.viommu(KVMS, other).id


def test_a_parent_whose_slices_know_nothing_of_it_keeps_its_vmid():
    host = Host()
    plain = host.viommu(flags=0, data=b"")
    assert host.refused() == EBUSY
    plain.destroy()
    assert host.viommu().id


def test_the_vmid_reaches_what_is_attached_and_goes_with_the_last_slice():
    host = Host()
    host.device.attach(host.parent)
    own = host.vmid()
    assert isinstance(host.reach(RAM), int)
    viommu = host.viommu()
    assert host.vmid() == KVMS
    assert not host.tags()
    name = viommu.vdevice(host.device, 1)
    nested = host.nested(viommu)
    host.device.attach(nested)
    assert host.vmid() == KVMS
    host.device.attach(host.parent)
    assert isinstance(host.reach(RAM), int)
    assert host.tags() == {KVMS}
    for made in (nested, name, viommu):
        made.destroy()
    assert host.vmid() == own
    assert not host.tags()


@pytest.mark.parametrize(("heard_as", "seen"), [(KVMS, Event.F_TRANSLATION), (KVMS + 1, "stale")])
def test_a_broadcast_with_the_shared_vmid_needs_no_command(heard_as, seen):
    host = Host()
    viommu = host.viommu()
    viommu.vdevice(host.device, 1)
    pages = host.guest.pages()
    pages.map(IOVA, RAM + 0x100000, PAGE, 3)
    host.guest.set_context(0, context(pages, ASID, ASET=0))
    host.device.attach(host.nested(viommu))
    old = host.reach()
    assert isinstance(old, int)
    pages.unmap(IOVA, PAGE)
    host.machine.hardware.broadcast(Broadcast(Tlbi.VAE1, heard_as, ASID, IOVA, IOVA + PAGE - 1))
    assert host.reach() == (old if seen == "stale" else seen)


def test_the_built_in_machine_is_such():
    with softiommu.open("smmuv3-btm") as iommufd:
        assert load("smmuv3-btm").summary
        assert iommufd.device("edu0").hw_info().capabilities & HW_CAP_BTM
