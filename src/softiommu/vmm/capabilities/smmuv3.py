"""Which fields of an SMMUv3's ID registers a guest may be offered."""

from __future__ import annotations

from softiommu.vmm.capabilities.rules import (
    Capability,
    Kind,
    Need,
    Request,
    Rule,
    Step,
    Table,
    at_most,
    choice,
    demand,
    equal,
    mask,
    own,
    read,
)

#: The list of the fields that user space may read, and what it may take for granted.
UAPI = "Linux 7.1, include/uapi/linux/iommufd.h: struct iommu_hw_info_arm_smmuv3"
#: The four steps, with BTM as example of the first, and OAS, VAX, GRAN, BBML and CD2L of the fourth.
STEPS = "https://lore.kernel.org/linux-iommu/20241106180531.GA520535@nvidia.com/"
#: What hardware says and is not so: BTM of MMU-700 (erratum 2812531), HTTU where the IORT overrides it.
BROKEN = "https://lore.kernel.org/linux-iommu/20241104114723.GA11511@willie-the-truck/"
#: The fields of an STE that the kernel takes from a guest.
VSTE = "Linux 7.1, arm-smmu-v3-iommufd.c: fields of the STE taken from a guest"
#: The commands that the kernel takes from a guest.
COMMANDS = "Linux 7.1, arm-smmu-v3-iommufd.c: commands taken from a guest"
#: What one VMM compares with the host before it starts.
VMM = "QEMU, hw/arm/smmuv3-accel.c: comparison with the host"
_ARM = "Arm IHI 0070, 6.3."

_NESTED = Need(Step.SOFTWARE, "nested translation for guests", Capability.NESTING)
_PRI = Need(Step.SOFTWARE, "page requests of a nested stream brought to the VMM")
_UNLISTED = "not in the kernel's list of fields to read: nested translation was never looked at with it"


def _unlisted() -> Rule:
    return mask(_UNLISTED, UAPI)


IDR0: Table = {
    "S2P": mask("the guest has stage 1; stage 2 under it is the host's", VSTE),
    "S1P": read("a nested HWPT is the guest's stage 1", UAPI, needs=(_NESTED,)),
    "TTF": read("formats of tables that stage 1 walks", UAPI),
    "COHACC": Rule(Kind.READ, "VFIO has coherent devices only", UAPI, assumed=1),
    "BTM": read(
        "TLB maintenance of the guest's CPUs reaches its SMMU, if both have one VMID",
        STEPS,
        needs=(
            Need(Step.SOFTWARE, "KVM's VMID in the stage-2 domain", Capability.BTM),
            Need(Step.ENABLE, "the vIOMMU takes the VMID of the VM", Request.BTM),
        ),
    ),
    "HTTU": read(
        "hardware sets flags in the guest's tables by atomic accesses",
        BROKEN,
        at_most,
        (Need(Step.FIRMWARE, "the IORT leaves HTTU as the register has it", Capability.HTTU),),
    ),
    "DORMHINT": mask("the guest cannot see when the host's SMMU sleeps", _ARM + "1"),
    "HYP": mask("a guest's STE has no STRW: its streams are EL1's", VSTE),
    "ATS": read(
        "a device that the VMM describes with ATS",
        UAPI,
        needs=(Need(Step.SOFTWARE, "ATS of the device", Capability.ATS),),
    ),
    "NS1ATS": mask("split-stage ATS needs two stages of the guest's own", VSTE),
    "ASID16": read("the guest's ASIDs are tags in the host's TLB", UAPI),
    "MSI": own("interrupts of the VMM's queues", _ARM + "1"),
    "SEV": own("events of the VMM's command queue", _ARM + "1"),
    "ATOS": mask("address translation by registers is not handed on", COMMANDS),
    "PRI": read("page requests", UAPI, needs=(Need(Step.SOFTWARE, "ATS of the device", Capability.ATS), _PRI)),
    "VMW": mask("VMIDs are the host's", COMMANDS),
    "VMID16": mask("VMIDs are the host's", COMMANDS),
    "CD2L": read("the SMMU itself reads the guest's table of context descriptors", UAPI),
    "VATOS": mask("address translation by registers is not handed on", COMMANDS),
    "TTENDIAN": read("byte order of tables that stage 1 walks", UAPI, choice(0, 2, 3)),
    "ATSRECERR": _unlisted(),
    "STALL_MODEL": read("whether faults of the guest's streams stall", UAPI, choice(0, 1, 2)),
    "TERM_MODEL": read("whether CD.A may be 0", UAPI, demand),
    "ST_LEVEL": read("shapes of the stream table", UAPI, at_most),
    "RME_IMPL": mask("realms are the host's", _ARM + "1"),
}
IDR1: Table = {
    "SIDSIZE": read("stream ids", UAPI, at_most),
    "SSIDSIZE": read("the SMMU itself indexes the guest's context descriptors", UAPI, at_most),
    "PRIQS": own("size of the VMM's queue", _ARM + "2"),
    "EVENTQS": own("size of the VMM's queue", _ARM + "2"),
    "CMDQS": own("size of the VMM's queue", _ARM + "2"),
    "ATTR_PERMS_OVR": mask("a guest's STE has no overrides", VSTE),
    "ATTR_TYPES_OVR": mask("a guest's STE has no overrides", VSTE),
    "REL": own("where the VMM's queues and tables are", _ARM + "2"),
    "QUEUES_PRESET": own("where the VMM's queues and tables are", _ARM + "2"),
    "TABLES_PRESET": own("where the VMM's queues and tables are", _ARM + "2"),
    "ECMDQ": mask("a guest's commands go through the VMM, or through a queue of a CMDQV", COMMANDS),
}
IDR2: Table = {"BA_VATOS": mask("address translation by registers is not handed on", COMMANDS)}
IDR3: Table = {
    "HAD": _unlisted(),
    "PBHA": _unlisted(),
    "XNX": mask("of stage 2, which is the host's", VSTE),
    "PPS": mask("of page requests, which are not brought to the VMM", UAPI),
    "MPAM": mask("partitions are the host's: the kernel has none for guests", UAPI),
    "FWB": mask("of stage 2, which is the host's", VSTE),
    "STT": _unlisted(),
    "RIL": read("range invalidation, in commands that the kernel takes whole", UAPI),
    "BBML": read("how tables that stage 1 walks may change", UAPI, at_most),
    "E0PD": _unlisted(),
    "PTWNNC": mask("of stage 2, which is the host's", VSTE),
    "DPT": mask("the device permission table is the host's", VSTE),
}
#: The manual leaves it to implementations.
IDR4: Table = {"DATA": mask("implementation defined: nobody can say what it promises", _ARM + "5")}
IDR5: Table = {
    "OAS": read("what stage 1 puts out goes into stage 2", f"{STEPS}; {VMM}", at_most),
    "GRAN4K": read("granules of tables that stage 1 walks", UAPI),
    "GRAN16K": read("granules of tables that stage 1 walks", UAPI),
    "GRAN64K": read("granules of tables that stage 1 walks", UAPI),
    "DS": _unlisted(),
    "D128": _unlisted(),
    "VAX": read("how wide addresses of stage 1 are", UAPI, at_most),
    "STALL_MAX": own("how many faults the VMM keeps", _ARM + "6"),
}
_WHO = "the VMM's SMMU is its own make; a guest that knew the host's would work round its errata"
IIDR: Table = {name: own(_WHO, _ARM + "7") for name in ("IMPLEMENTER", "REVISION", "VARIANT", "PRODUCTID")}
_VERSION = "hardware mixes the features of several versions: each has its own bit"
AIDR: Table = {name: own(_VERSION, VMM) for name in ("ARCHMINOR", "ARCHMAJOR")}

_QUEUE = (
    Need(Step.SOFTWARE, "queues that hardware reads in a guest's memory", Capability.VCMDQ),
    Need(Step.ENABLE, "the vIOMMU is one with such queues", Request.VCMDQ),
)
CMDQV_UAPI = "Linux 7.1, include/uapi/linux/iommufd.h: struct iommu_hw_info_tegra241_cmdqv"
CMDQV: Table = {
    "VERSION": read("the interface that is mapped to the guest", CMDQV_UAPI, equal, _QUEUE),
    "LOG2VCMDQS": read("queues of an interface", CMDQV_UAPI, at_most, _QUEUE),
    "LOG2VSIDS": read("stream ids that an interface translates", CMDQV_UAPI, at_most, _QUEUE),
}
