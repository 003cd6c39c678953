"""Which fields of an AMD IOMMU's feature registers a guest may be offered."""

from __future__ import annotations

from softiommu.vmm.capabilities.rules import Capability, Need, Rule, Step, Table, at_most, mask, own, read

#: The list of the fields that a VMM is allowed.
UAPI = "Linux 7.1, include/uapi/linux/iommufd.h: struct iommu_hw_info_amd"
#: What is checked of a guest's device table entry.
NESTED = "Linux 7.1, drivers/iommu/amd/nested.c: checks of IOMMU_HWPT_DATA_AMD_GUEST"
_AMD = "AMD 48882, 3.4"

_NESTED = (Need(Step.SOFTWARE, "nested translation for guests", Capability.NESTING),)
_PASID = (*_NESTED, Need(Step.SOFTWARE, "PASIDs of the device", Capability.PASID))
_FAULTS = (
    Need(Step.SOFTWARE, "ATS of the device", Capability.ATS),
    Need(Step.SOFTWARE, "page requests brought to the VMM", Capability.PAGE_FAULTS),
)
_TAKES = own("the VMM takes the guest's commands", _AMD)
_LOGS = own("the VMM's logs", _AMD)
_REGISTERS = own("the VMM's register file", _AMD)
_HOST = own("the VMM reads the guest's host tables, and maps what they say", _AMD)
_INTERRUPTS = own("the VMM remaps the guest's interrupts", _AMD)


def _unlisted(what: str) -> Rule:
    return mask(f"not in the kernel's list of fields to read: {what}", UAPI)


EFR: Table = {
    "PreFSup": _TAKES,
    "PPRSup": read("page requests", UAPI, needs=_FAULTS),
    "XTSup": _INTERRUPTS,
    "NXSup": _unlisted("no-execute"),
    "GTSup": read("guest tables, which hardware walks", UAPI, needs=_NESTED),
    "IASup": _TAKES,
    "GASup": read("virtual interrupt controllers", UAPI),
    "HESup": _REGISTERS,
    "PCSup": mask("performance counters are the host's", _AMD),
    "HATS": _HOST,
    "GATS": read("levels of guest tables", NESTED, at_most, _NESTED),
    "GLXSup": read("levels of the GCR3 table", NESTED, at_most, _NESTED),
    "SmiFSup": mask("filters of system management interrupts are the firmware's", _AMD),
    "SmiFRC": mask("filters of system management interrupts are the firmware's", _AMD),
    "GAMSup": _unlisted("modes of virtual interrupt controllers"),
    "DualPprLogSup": _LOGS,
    "DualEventLogSup": _LOGS,
    "PASmax": read("how many PASIDs", UAPI, at_most, _PASID),
    "USSup": _unlisted("user and supervisor pages"),
    "DevTblSegSup": own("the VMM reads the guest's device table", _AMD),
    "PprOvrflwEarlySup": _LOGS,
    "PprAutoRspSup": _LOGS,
    "MarcSup": mask("apertures are the host's", _AMD),
    "BlkStopMrkSup": _unlisted("stop markers"),
    "PerfOptSup": _unlisted("performance hints"),
    "MsiCapMmioSup": _REGISTERS,
    "GIoSup": read("guest tables for requests without PASID", UAPI, needs=_NESTED),
    "HASup": mask("hardware sets no flags in host tables that the VMM reads", _AMD),
    "EPHSup": read("enhanced page request handling", UAPI, needs=_FAULTS),
    "AttrFWSup": _unlisted("attributes of forwarded requests"),
    "HDSup": mask("hardware sets no flags in host tables that the VMM reads", _AMD),
    "InvIotlbTypeSup": _TAKES,
    "GAUpdateDisSup": _unlisted("accessed flags that are not set"),
    "ForcePhyDestSup": _unlisted("destinations of interrupts"),
    "SNPSup": mask("encrypted memory is the host's", _AMD),
}
EFR2: Table = {
    "SEVSNPIOSup": mask("encrypted memory is the host's", _AMD),
    "GCR3TRPModeSup": _unlisted("the GCR3 table's address as the guest has it"),
    "SNPAVICSup": mask("encrypted memory is the host's", _AMD),
    "NumIntRemapSup": _INTERRUPTS,
    "HTRangeIgnore": _unlisted("the range of HyperTransport"),
}
