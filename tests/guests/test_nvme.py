"""The NVMe controller, with the guest's own driver."""

from guests.vm import Vm
from softiommu.guest import qemu

NVME = "0000:00:07.0"


def test_the_guest_finds_the_controller_and_its_namespace():
    with Vm("vtd", options=[*qemu.iommufd(), "-device", qemu.passed(NVME, "nvme0")]) as vm:
        vm.run("modprobe nvme")
        vm.wait_for("[ -b /dev/nvme0n1 ]")
        assert "softiommu" in vm.run("cat /sys/class/nvme/nvme0/model")
        assert vm.run("cat /sys/block/nvme0n1/size") == str((64 << 20) // 512)
        assert vm.leave() == 0
        assert vm.errors == ""
