"""Which fields of a RISC-V IOMMU's registers a guest may be offered, by this project's extension of the uAPI.

A guest's first stages and process directories are walked by the hardware under the host's second stage. Its device
directory, its second stages and its commands are read by the VMM, whose own they are.
"""

from __future__ import annotations

from softiommu.vmm.capabilities.rules import Capability, Need, Rule, Step, Table, at_most, mask, own, read

#: What is checked of a guest's device context.
NESTED = "docs/extensions.md: HWPT data of RISC-V"
#: Which commands are taken of a guest.
COMMANDS = "docs/extensions.md: commands of RISC-V"
_MANUAL = "RISC-V IOMMU 1.0, capabilities"
_CONTROL = "RISC-V IOMMU 1.0, fctl"

_NESTED = (Need(Step.SOFTWARE, "nested translation for guests", Capability.NESTING),)
_PASID = (*_NESTED, Need(Step.SOFTWARE, "PASIDs of the device", Capability.PASID))
_ATS = (
    *_NESTED,
    Need(Step.SOFTWARE, "ATS of the device", Capability.ATS),
    Need(Step.SOFTWARE, "page requests brought to the VMM", Capability.PAGE_FAULTS),
)
_SECOND = own("the VMM reads the guest's second stage, and maps what it says", _MANUAL)
_INTERRUPTS = own("the VMM remaps the guest's interrupts", _MANUAL)
_REGISTERS = own("the VMM's register file", _MANUAL)
_MODES = own("how tables and queues lie in memory is the VMM's to say", _CONTROL)


def _walked(what: str) -> Rule:
    return read(f"{what}, which hardware walks", NESTED, needs=_NESTED)


def _directory(bits: int) -> Rule:
    return read(f"process directories of {bits} bits, which hardware walks", NESTED, needs=_PASID)


CAPABILITIES: Table = {
    "VERSION": read("the version of the manual", _MANUAL, at_most),
    "SV32": _walked("first stages of 32 bits"),
    "SV39": _walked("first stages of 39 bits"),
    "SV48": _walked("first stages of 48 bits"),
    "SV57": _walked("first stages of 57 bits"),
    "SVRSW60T59B": _walked("bits of entries for software"),
    "SVPBMT": _walked("memory types in tables"),
    "SV32X4": _SECOND,
    "SV39X4": _SECOND,
    "SV48X4": _SECOND,
    "SV57X4": _SECOND,
    "AMO_MRIF": _INTERRUPTS,
    "MSI_FLAT": _INTERRUPTS,
    "MSI_MRIF": _INTERRUPTS,
    "AMO_HWAD": read("accessed and dirty flags that hardware sets in first stages: SADE", NESTED, needs=_NESTED),
    "ATS": read("device TLBs and page requests", NESTED, needs=_ATS),
    "T2GPA": mask("translated requests have the host's addresses", NESTED),
    "END": mask("tables are little-endian: SBE is refused", NESTED),
    "IGS": own("interrupts of the VMM's queues", _MANUAL),
    "HPM": mask("performance counters are the host's", _MANUAL),
    "DBG": _REGISTERS,
    "PAS": read("how wide guest-physical addresses are", _MANUAL, at_most),
    "PD8": _directory(8),
    "PD17": _directory(17),
    "PD20": _directory(20),
    "QOSID": mask("quality of service is the host's", _MANUAL),
    "NL": read("invalidations of tables alone, which are passed on", COMMANDS, needs=_NESTED),
    "S": read("invalidations of ranges, which are passed on", COMMANDS, needs=_NESTED),
    "CUSTOM": mask("no manual says what these mean", _MANUAL),
}
FCTL: Table = {
    "BE": _MODES,
    "WSI": _MODES,
    "GXL": _MODES,
}
