"""What is found by trying, on machines and on kernels that do this and not that."""

from contextlib import nullcontext
from errno import EINVAL, EOPNOTSUPP

import pytest
from hypothesis import given, strategies as st

import softiommu
from softiommu.abi import amd_extension, iommufd as abi, riscv_extension
from softiommu.api import HwInfo
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse
from softiommu.vmm.capabilities import Capability, probe

FULL = """
name = "lab"
[[iommu]]
name = "iommu0"
model = "{}"
unit = "full"
[[device]]
name = "t0"
address = "0000:00:04.0"
model = "pcitest"
pasid_bits = 16
[[device]]
name = "edu0"
address = "0000:00:05.0"
model = "edu"
"""


def on(model, device, kernel=None):
    made = Machine(parse(FULL.format(model), "lab.toml"), kernel)
    with softiommu.open(made) as iommufd, iommufd.device(device) as held:
        return probe(iommufd, held).kernel


@pytest.mark.parametrize("model", ["vtd", "smmuv3", "amd", "riscv"])
def test_nesting_is_found(model):
    assert Capability.NESTING in on(model, "edu0")


def test_page_faults_are_found_where_device_and_iommu_have_them():
    assert Capability.PAGE_FAULTS in on("vtd", "t0")
    assert Capability.PAGE_FAULTS not in on("vtd", "edu0")


def test_an_old_kernel_nests_nothing():
    assert Capability.NESTING not in on("smmuv3", "edu0", "6.12")


def test_nesting_in_software_has_what_can_be_attached_and_no_more():
    first = Capability.NESTING | Capability.SUPERVISOR | Capability.EXTENDED_ACCESSED
    software = FULL.replace('unit = "full"', 'unit = "full"\nnesting = "software"')
    made = Machine(parse(software.format("vtd"), "lab.toml"))
    with softiommu.open(made) as iommufd:
        found = {}
        for device in ("t0", "edu0"):
            with iommufd.device(device) as held:
                found[device] = probe(iommufd, held).kernel & first
    # Without page requests, a table that the guest fills without telling cannot be followed.
    assert found == {"t0": Capability.NESTING, "edu0": Capability(0)}


class Kernel:
    """A kernel as scripted: which types of information and of vIOMMUs there are, and what else it does."""

    def __init__(self, types, viommus=(), does=()):
        self.types, self.viommus, self.does, self.made = types, viommus, does, []

    def ioas(self):
        return nullcontext(self)

    def fault_queue(self):
        self._only("faults")
        return nullcontext(self)

    def hw_info(self, type=None):
        number = self.types[0] if type is None else type
        if number not in self.types:
            raise OSError(EOPNOTSUPP, "no such type")
        return HwInfo(int(number), bytes(64), 8, 0)

    def hwpt(self, parent, flags=0, data=None, faults=None):
        if flags:
            self._only("parents")
        if data is not None:
            self._only("nested")
        #: What attaching this one needs.
        self.needed = "page requests" if faults is not None else FLAGS[data[1].flags] if data is not None else "nested"
        self.made.append((flags, data and data[0]))
        return nullcontext(self)

    def viommu(self, type, parent, data=None):
        if type not in self.viommus:
            raise OSError(EOPNOTSUPP, "no such vIOMMU")
        self.made.append(("viommu", type, data and len(data)))
        return nullcontext(self)

    def attach(self, target):
        self._only(self.needed)
        self.made.append("attach")
        return 1

    def detach(self):
        self.made.remove("attach")

    def _only(self, what):
        if what not in self.does:
            raise OSError(EINVAL, what)


V = abi.ViommuType
T = abi.HwInfoType
FLAGS = {0: "attached", 1: "supervisor", 2: "accessed"}
FEATURES = ("parents", "nested", "faults", "page requests", *FLAGS.values())


def test_a_command_queue_of_the_guests_own_is_found_by_its_viommu():
    kernel = Kernel((T.ARM_SMMUV3, T.TEGRA241_CMDQV), (V.ARM_SMMUV3, V.TEGRA241_CMDQV), ("parents",))
    seen = probe(kernel, kernel)
    assert [info.type for info in seen.infos] == [T.ARM_SMMUV3, T.TEGRA241_CMDQV]
    assert seen.kernel == Capability.NESTING | Capability.VCMDQ
    assert ("viommu", V.TEGRA241_CMDQV, abi.ViommuTegra241Cmdqv.SIZE) in kernel.made


@given(
    st.sampled_from([T.INTEL_VTD, T.ARM_SMMUV3, T.AMD, 0, 0xFEEDBEEF]),
    st.sets(st.sampled_from([T.TEGRA241_CMDQV, riscv_extension.HW_INFO])),
    st.sets(st.sampled_from([V.ARM_SMMUV3, V.TEGRA241_CMDQV, amd_extension.VIOMMU, riscv_extension.VIOMMU])),
    st.sets(st.sampled_from(FEATURES)),
)
def test_what_is_found_is_what_the_kernel_does(type_, more, viommus, does):
    kernel = Kernel((type_, *more), viommus, does)
    seen = probe(kernel, kernel)
    first = type_ == T.INTEL_VTD and {"parents", "nested"} <= does
    nests = {
        T.INTEL_VTD: first and "attached" in does,
        T.ARM_SMMUV3: "parents" in does and V.ARM_SMMUV3 in viommus,
        T.AMD: "parents" in does and amd_extension.VIOMMU in viommus,
        0: "parents" in does and riscv_extension.VIOMMU in viommus and riscv_extension.HW_INFO in more,
    }
    assert (Capability.SUPERVISOR in seen.kernel) == (first and "supervisor" in does)
    assert (Capability.EXTENDED_ACCESSED in seen.kernel) == (first and "accessed" in does)
    assert seen.infos[0].type == (riscv_extension.HW_INFO if not type_ and riscv_extension.HW_INFO in more else type_)
    tells_queues = type_ == T.ARM_SMMUV3 and T.TEGRA241_CMDQV in more
    queues = tells_queues and "parents" in does and V.TEGRA241_CMDQV in viommus
    assert (Capability.NESTING in seen.kernel) == nests.get(type_, False)
    assert (Capability.VCMDQ in seen.kernel) == bool(queues)
    assert (Capability.PAGE_FAULTS in seen.kernel) == ({"faults", "page requests"} <= does)
    assert "attach" not in kernel.made
