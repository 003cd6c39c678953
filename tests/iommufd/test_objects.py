"""Numbers of objects."""

from __future__ import annotations

from errno import EBUSY, ENOENT

import pytest
from hypothesis import given, strategies as st

from iommufd.soft import APERTURE, Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.errors import UapiError
from softiommu.iommufd.objects import Object, ObjectTable
from strategies import calm


@calm
@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=60))
def test_an_id_is_always_the_lowest_free_one(steps: list[int | None]) -> None:
    table = ObjectTable()
    live: dict[int, Object] = {}
    for step in steps:
        if step is None:
            obj = table.add(Object())
            assert obj.id == min(set(range(1, len(live) + 2)) - set(live))
            live[obj.id] = obj
        elif step in live:
            table.remove(live.pop(step))
    assert len(table) == len(live)
    assert {obj.id for obj in table} == set(live)


def test_an_object_that_is_still_being_made_cannot_be_found_or_destroyed() -> None:
    table = ObjectTable()
    obj = table.add(Object())
    assert table.find(obj.id) is None
    with refused(ENOENT):
        table.check_destroy(obj.id)
    obj.ready = True
    assert table.check_destroy(obj.id) is obj


def test_a_tombstone_keeps_its_id_from_everybody() -> None:
    table = ObjectTable()
    obj = table.add(Object())
    table.remove(obj, tombstone=True)
    assert table.add(Object()).id == obj.id + 1
    with refused(ENOENT):
        table.check_destroy(obj.id)
    assert len(table) == 1


def test_an_id_of_another_kind_is_not_found(soft: Soft) -> None:
    queue = soft.call(abi.FaultAlloc())
    with pytest.raises(UapiError, match="fault queue") as caught:
        soft.map(queue.out_fault_id, 0, 4096)
    assert caught.value.errno == ENOENT


def test_the_id_of_a_vdevice_stays_dead_after_its_device_left(soft: Soft) -> None:
    ioas = soft.ioas()
    device = soft.mock(ioas)
    parent = soft.hwpt(device.out_idev_id, ioas, 1)
    kind = test.VIOMMU_TYPE_SELFTEST
    viommu = soft.call(abi.ViommuAlloc(type=kind, dev_id=device.out_idev_id, hwpt_id=parent)).out_viommu_id
    named = abi.VdeviceAlloc(viommu_id=viommu, dev_id=device.out_idev_id, virt_id=9)
    dead = soft.call(named).out_vdevice_id
    soft.destroy(device.out_stdev_id)
    assert soft.errno(abi.Destroy(id=dead)) == ENOENT
    new = [soft.ioas() for _ in range(8)]
    assert dead not in new
    soft.destroy(viommu)


def test_a_device_belongs_to_its_driver(soft: Soft) -> None:
    device = soft.mock(soft.ioas())
    assert soft.errno(abi.Destroy(id=device.out_idev_id)) == EBUSY


def test_mappings_do_not_keep_an_ioas_and_a_page_table_does(soft: Soft) -> None:
    ioas = soft.ioas()
    soft.map(ioas, 0x1000, 4096, APERTURE)
    soft.destroy(ioas)
    ioas = soft.ioas()
    device = soft.mock(ioas)
    assert soft.errno(abi.Destroy(id=ioas)) == EBUSY
    soft.destroy(device.out_stdev_id)
    soft.destroy(ioas)
