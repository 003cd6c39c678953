"""What the front ends offer keeps the rules, and is hardware that there could be."""

import pytest

import softiommu
from softiommu.errors import ConfigError
from softiommu.vmm.capabilities import lint, probe
from softiommu.vmm.offers import PASIDS_LG2, smmuv3_in_software, smmuv3_offer, vtd_in_software, vtd_offer


def seen(machine, device):
    with softiommu.open(machine) as iommufd:
        return probe(iommufd, iommufd.device(device))


def test_a_virtual_vtd_keeps_the_rules():
    found = seen("vtd-nested", "test0")
    offer = vtd_offer(found)
    assert lint({"CAP": offer.cap, "ECAP": offer.ecap}, found.infos[0], found.kernel) == []
    assert (offer.cap.CM, offer.ecap.FSTS, offer.ecap.SSTS, offer.ecap.NEST) == (1, 1, 0, 0)
    assert offer.ecap.PASID
    assert offer.ecap.PRS


def test_a_virtual_smmuv3_keeps_the_rules():
    found = seen("smmuv3", "pcitest0")
    offer = smmuv3_offer(found)
    words = {"IDR0": offer.idr0, "IDR1": offer.idr1, "IDR3": offer.idr3, "IDR5": offer.idr5}
    assert lint(words, found.infos[0], found.kernel) == []
    assert (offer.idr0.S1P, offer.idr0.S2P, offer.idr0.STALL_MODEL) == (1, 0, 1)


def test_a_guest_is_told_of_no_more_pasids_than_a_vmm_attaches():
    found = seen("vtd-nested", "test0")
    assert found.infos[0].pasid_bits > PASIDS_LG2
    assert vtd_offer(found).ecap.PSS + 1 == PASIDS_LG2


@pytest.mark.parametrize(("machine", "offer"), [("vtd", vtd_offer), ("vtd-sm", vtd_offer), ("vtd", smmuv3_offer)])
def test_hardware_that_does_not_nest_or_is_another_is_said(machine, offer):
    with pytest.raises(ConfigError, match=r"does not nest|is not behind"):
        offer(seen(machine, "edu0"))


@pytest.mark.parametrize("bits", [0, 1, 16, 20])
def test_in_software_there_are_pasids_where_the_host_has_them(bits):
    assert vtd_in_software(bits).ecap.PSS == max(min(bits, 10) - 1, 0)
    assert bool(vtd_in_software(bits).ecap.PASID) == bool(bits)
    assert smmuv3_in_software(bits).idr1.SSIDSIZE == min(bits, 10)
