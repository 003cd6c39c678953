"""Requester ids and groups."""

from softiommu.machine.pci import Bridge, PciDevice, requester_id
from softiommu.machine.topology import Place, places


def device(name, address, iommu="dmar0"):
    return PciDevice(name, address, 0, 0, model="edu", iommu=iommu)


def test_a_requester_id_is_bus_device_function():
    assert requester_id("0000:00:04.0") == 0x20
    assert requester_id("0000:02:1f.7") == 0x2FF


def test_a_device_by_itself_is_a_group_by_itself():
    found = places([device("a", "0000:00:04.0"), device("b", "0000:00:05.0")], [])
    assert found == {"a": Place(0, 0x20, (0x20,)), "b": Place(1, 0x28, (0x28,))}


def test_what_is_behind_a_bridge_shares_its_id_and_a_group():
    found = places(
        [device("a", "0000:02:01.0"), device("b", "0000:00:05.0"), device("c", "0000:02:02.0")],
        [Bridge("bridge", "0000:00:06.0", 2)],
    )
    assert found == {
        "a": Place(0, 0x200, (0x208, 0x200, 0x210)),
        "b": Place(1, 0x28, (0x28,)),
        "c": Place(0, 0x200, (0x210, 0x200, 0x208)),
    }


def test_a_device_without_an_iommu_has_no_place():
    assert places([device("a", "0000:00:04.0", None)], []) == {}
