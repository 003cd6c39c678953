"""A device touches memory that is not there, and the program answers: I/O page faults, from Python.

This machine is in this process: no supervision, no device node. On a kernel that is built with the test command, the
same calls work under `softiommu.open_kernel()`.
"""

import softiommu
from softiommu.abi import iommufd as abi, iommufd_test as test


def main() -> None:
    """Make a nested page table, let the mock device fault in it, and answer."""
    with softiommu.open("mock") as iommufd, iommufd.ioas() as ioas:
        device = iommufd.mock_device(ioas)
        parent = device.hwpt(ioas, flags=abi.HwptAllocFlags.ALLOC_NEST_PARENT)
        with iommufd.fault_queue() as queue:
            table = (test.HWPT_DATA_SELFTEST, test.HwptSelftest(iotlb=7))
            with device.hwpt(parent, data=table, faults=queue) as nested:
                device.replace(nested)
                print("the device translates through a page table of the guest, nested in one of the host")

                device.fault(0x7000, perm=abi.PgfaultPerm.WRITE, group=1)
                (fault,) = queue.read()
                print(f"it wants {fault.perm!r} at {fault.addr:#x}, and waits for an answer")
                queue.respond(fault.cookie)
                print("answered: the device tries again")

                try:
                    queue.respond(fault.cookie)
                except softiommu.UapiError as error:
                    print(f"a second answer is refused: {error.why}")
                device.replace(ioas)
        parent.destroy()
        device.destroy()


if __name__ == "__main__":
    main()
