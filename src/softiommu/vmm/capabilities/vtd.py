"""Which fields of a VT-d unit's capability registers a guest may be offered.

A guest's first-stage tables are walked by the hardware under the host's second stage. Its root, context and PASID
tables, its second-stage tables and its commands are read by the VMM, whose own they are.
"""

from __future__ import annotations

from softiommu.vmm.capabilities.rules import Capability, Need, Step, Table, at_most, demand, mask, own, read

#: What is checked when a nested HWPT is made and attached.
NESTED = "Linux 7.1, drivers/iommu/intel/nested.c: checks of IOMMU_HWPT_DATA_VTD_S1"
#: The registers are reported raw, and to be understood by the manual.
UAPI = "Linux 7.1, include/uapi/linux/iommufd.h: struct iommu_hw_info_vtd"
#: Entries of HWPT_INVALIDATE: device TLBs follow by themselves.
FLUSH = "Linux 7.1, include/uapi/linux/iommufd.h: struct iommu_hwpt_vtd_s1_invalidate"
#: What one VMM compares with the host before it starts.
VMM = "QEMU, hw/i386/intel_iommu_accel.c: comparison with the host"
_CAP = "Intel VT-d, 11.4.2"
_ECAP = "Intel VT-d, 11.4.3"

_NESTED = (Need(Step.SOFTWARE, "nested translation for guests", Capability.NESTING),)
_SUPERVISOR = (*_NESTED, Need(Step.SOFTWARE, "supervisor requests, nested", Capability.SUPERVISOR))
_ACCESSED = (*_NESTED, Need(Step.SOFTWARE, "extended accessed flags, nested", Capability.EXTENDED_ACCESSED))
_PASID = (*_NESTED, Need(Step.SOFTWARE, "PASIDs of the device", Capability.PASID))
_ATS = (Need(Step.SOFTWARE, "ATS of the device", Capability.ATS),)
_FAULTS = (*_ATS, Need(Step.SOFTWARE, "page requests brought to the VMM", Capability.PAGE_FAULTS))
_EXEC = (*_PASID, Need(Step.SOFTWARE, "execute permission of the device's PASIDs", Capability.PASID_EXEC))

_REGISTERS = "the VMM's register file"
_READS = "the VMM reads these tables of the guest"
_SECOND = "the VMM reads the guest's second stage, and maps what it says"
_TAKES = "the VMM takes the guest's commands"
_INTERRUPTS = "the VMM remaps the guest's interrupts"

CAP: Table = {
    "ND": own("domain ids are the guest's own names: the host tags with others", _CAP),
    "AFL": own(_REGISTERS, _CAP),
    "RWBF": read("whether tables that hardware walks must be pushed out of write buffers", _CAP, demand),
    "PLMR": mask("protected memory is the host's", _CAP),
    "PHMR": mask("protected memory is the host's", _CAP),
    "CM": own("1 where the VMM shadows the guest's tables; it is never hardware's", _CAP),
    "SAGAW": read("widths of the guest's second stage, which is mapped into the host's", _CAP),
    "MGAW": read("how wide addresses of devices are", _CAP, at_most),
    "ZLR": read("reads of no bytes", _CAP),
    "FRO": own(_REGISTERS, _CAP),
    "SSLPS": own(_SECOND, _CAP),
    "PSI": own(_TAKES, _CAP),
    "NFR": own(_REGISTERS, _CAP),
    "MAMV": own(_TAKES, _CAP),
    "DWD": read("writes are drained by invalidations", _CAP),
    "DRD": read("reads are drained by invalidations", _CAP),
    "FS1GP": read("1 GiB pages of tables that hardware walks", VMM, needs=_NESTED),
    "PI": mask("posted interrupts go past the VMM", _CAP),
    "FS5LP": read("tables of five levels that hardware walks", NESTED, needs=_NESTED),
    "ECMDS": mask("commands of the performance counters, which are the host's", _CAP),
    "ESIRTPS": own(_INTERRUPTS, _CAP),
    "ESRTPS": own(_READS, _CAP),
}
ECAP: Table = {
    "C": own(_READS, _ECAP),
    "QI": own(_TAKES, _ECAP),
    "DT": read("a device that the VMM describes with ATS", FLUSH, needs=_ATS),
    "IR": own(_INTERRUPTS, _ECAP),
    "EIM": own(_INTERRUPTS, _ECAP),
    "PT": own("the VMM attaches the device to the parent", _ECAP),
    "SC": read("accesses that do not snoop are made to", NESTED),
    "IRO": own(_REGISTERS, _ECAP),
    "MHMV": own(_INTERRUPTS, _ECAP),
    "MTS": mask("memory types of the second stage, which is the host's", _ECAP),
    "NEST": mask("nested translation is used up: the guest's second stage is read by the VMM", NESTED),
    "DIS": mask("taken back by later manuals", _ECAP),
    "PRS": read("page requests", _ECAP, needs=_FAULTS),
    "ERS": read("requests to execute", _ECAP, needs=_EXEC),
    "SRS": read("supervisor pages: IOMMU_VTD_S1_SRE", NESTED, needs=_SUPERVISOR),
    "NWFS": read("translation requests that do not write", _ECAP, needs=_ATS),
    "EAFS": read("extended accessed flags: IOMMU_VTD_S1_EAFE", NESTED, needs=_ACCESSED),
    "PSS": read("how many PASIDs", _ECAP, at_most, _PASID),
    "PASID": read("PASIDs", _ECAP, needs=_PASID),
    "DIT": mask("the kernel flushes device TLBs by itself, and at its own pace", FLUSH),
    "PDS": read("page requests are drained", _ECAP, needs=_FAULTS),
    "SMTS": read("PASID tables, whose first-stage entries become nested HWPTs", NESTED, needs=_NESTED),
    "VCS": mask("PASIDs are the guest's own names: none is asked of the host", _ECAP),
    "SSADS": mask("hardware sets no flags in a second stage that the VMM reads", _ECAP),
    "SSTS": own(_SECOND, _ECAP),
    "FSTS": read("first-stage tables, which hardware walks", NESTED, needs=_NESTED),
    "SMPWCS": read("whether walks of tables see the CPU's caches", NESTED, needs=_NESTED),
    "RPS": mask("requests without PASID have the host's RID_PASID", NESTED),
    "PMS": mask("performance counters are the host's", _ECAP),
    "RPRIVS": mask("requests without PASID have the host's RID_PRIV", NESTED),
}
