"""What a VMM may tell its guest of the IOMMU: negotiated by rules, never guessed."""

from softiommu.vmm.capabilities.families import FAMILIES, Info, decode, told
from softiommu.vmm.capabilities.negotiate import Answer, Finding, Offer, Verdict, lint, negotiate
from softiommu.vmm.capabilities.probe import Seen, probe
from softiommu.vmm.capabilities.rules import Capability, Request, Rule, Step

__all__ = [
    "FAMILIES",
    "Answer",
    "Capability",
    "Finding",
    "Info",
    "Offer",
    "Request",
    "Rule",
    "Seen",
    "Step",
    "Verdict",
    "decode",
    "lint",
    "negotiate",
    "probe",
    "told",
]
