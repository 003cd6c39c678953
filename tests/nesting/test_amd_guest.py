"""A complete guest of an AMD IOMMU: a GCR3 table and guest tables over the host's table."""

from nesting.whole_guest import IOVA, PAGE, RW, TARGET, Vm, WholeGuest
from softiommu.abi.amd_extension import VIOMMU
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, Scope, Target
from softiommu.abi.iommufd import HwptAmdGuest, HwptDataType
from softiommu.hardware.amd.tables import Dte, Dte0, Dte1, Gcr3Entry


class AmdVm(Vm):
    """The guest. Requests without a PASID have PASID 0."""

    MACHINE, VIOMMU, TABLE = "amd", VIOMMU, "x86-64-4level"

    def nest(self):
        """A device table entry."""
        self.gcr3 = self.page()
        self.route(self.table)
        entry = Dte(Dte0.of(V=1, TV=1, GV=1, GIoV=1), Dte1.of(DomainID=7)).with_gcr3_root(self.gcr3)
        return self.device.hwpt(self.viommu, 0, (HwptDataType.AMD_GUEST, HwptAmdGuest.from_bytes(entry.to_bytes())))

    def route(self, table):
        """Write the GCR3 entry of PASID 0."""
        self.ram.write_u64(self.gcr3, Gcr3Entry.of(V=1, ADDR=table.root >> 12))

    def forget(self, iova):
        """What a guest does when a page has gone."""
        entry = InvalidateV1(scope=Scope.RANGE, addr=iova, count=1, granule_lg2=12, targets=Target.LEAF)
        assert self.viommu.invalidate(GENERIC, [entry]) == 1


class TestAmdGuest(WholeGuest):
    """What every guest does, and what only this does."""

    VM = AmdVm

    def test_another_table_in_the_gcr3_table(self, vm):
        one, two, target = vm.page(b"the first table."), vm.page(b"the second table"), vm.page()
        other = vm.ram.table(vm.TABLE)
        for table, page in ((vm.table, one), (other, two)):
            table.map(IOVA, page, PAGE, RW)
            table.map(TARGET, target, PAGE, RW)
        assert vm.moved(IOVA, target) == b"the first table."
        vm.route(other)
        assert vm.moved(IOVA, target) == b"the first table."
        everything = Target.LEAF | Target.TABLES | Target.CONFIG
        assert vm.viommu.invalidate(GENERIC, [InvalidateV1(scope=Scope.PASID, targets=everything)]) == 1
        assert vm.moved(IOVA, target) == b"the second table"
