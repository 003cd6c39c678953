"""The AMD driver over the AMD model, in any order: devices and their TLBs reach exactly what their domains hold."""

import contextlib

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drivers.amd_rig import BOTH, RW, Endpoint, reach, rig
from softiommu.drivers.amd.domain import AmdDomain
from softiommu.drivers.function import Function
from softiommu.errors import UapiError
from softiommu.hardware.amd.events import Code
from softiommu.hardware.iommu import TranslationFaultError
from softiommu.pagetable.kinds import READ, WRITE


class DeviceTlb(Endpoint):
    """A device that caches translations by PASID and page, until it is told to forget."""

    def __init__(self):
        super().__init__()
        self.cached = {}

    def invalidate(self, pasid, first, last):
        for key in [key for key in self.cached if key[0] == pasid and first <= key[1] <= last]:
            del self.cached[key]
        return True


class AnyOrder(RuleBasedStateMachine):
    """Maps, unmaps, attaches and requests in any order: a device reaches exactly what its domain holds."""

    places = st.sampled_from([0x10000, 0x11000, 0x1FF000, 0x200000, 0x3FF000, 1 << 30, (1 << 30) + 0x1000, 1 << 40])
    routes = st.sampled_from([(0x20, None), (0x28, None), (0x300, None), (0x300, 1), (0x300, 700)])
    some = st.one_of(st.none(), st.integers(0, 3))

    @initialize()
    def start(self):
        self.iommu, self.driver = rig()
        sids = (0x20, 0x28, 0x300)
        self.devices = {
            sid: self.driver.device(Function(f"d{sid:x}", (sid,), pasid_bits=10, ats=sid != 0x20)) for sid in sids
        }
        self.tlbs = {sid: DeviceTlb() for sid in sids}
        for sid, tlb in self.tlbs.items():
            self.iommu.connect(sid, tlb)
        self.domains = [AmdDomain(self.driver, guest=guest) for guest in (False, False, True, True)]
        self.held = [{}, {}, {}, {}]
        self.attached = {}

    @rule(which=st.integers(0, 3), iova=places, pages=st.sampled_from([1, 2, 3, 512, 513]))
    def map(self, which, iova, pages):
        held = self.held[which]
        wanted = [iova + 0x1000 * n for n in range(pages)]
        if any(page in held for page in wanted):
            return
        pa = (1 << 32) + (which << 34) + iova
        self.domains[which].map(iova, pa, 0x1000 * pages, RW)
        held.update({page: (pa + page - iova, iova, pages) for page in wanted})

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def unmap(self, data):
        which = data.draw(st.sampled_from([n for n in range(4) if self.held[n]]))
        held = self.held[which]
        _, iova, pages = held[data.draw(st.sampled_from(sorted(held)))]
        assert self.domains[which].unmap(iova, 0x1000 * pages) == 0x1000 * pages
        self.domains[which].flush()
        for n in range(pages):
            del held[iova + 0x1000 * n]

    @rule(route=routes, which=some)
    def attach(self, route, which):
        sid, pasid = route
        if which is None:
            self.devices[sid].detach(pasid)
            self.attached.pop(route, None)
            return
        try:
            self.devices[sid].attach(self.domains[which], pasid)
        except UapiError:
            host = which < 2
            base = self.attached.get((sid, None))
            pasids = [key for key in self.attached if key[0] == sid and key[1] is not None]
            assert (host and (pasid is not None or pasids)) or (pasid is not None and base in (0, 1))
            return
        self.attached[route] = which

    @rule(route=routes, iova=places, offset=st.integers(0, 0xFFF), want=st.sampled_from([READ, WRITE]))
    def request(self, route, iova, offset, want):
        which = self.attached.get(route)
        found = self.held[which].get(iova) if which is not None else None
        got = reach(self.iommu, route[0], iova + offset, want, route[1])
        assert got == found[0] + offset if found else isinstance(got, Code)

    @rule(route=routes, iova=places)
    def ask(self, route, iova):
        sid, pasid = route
        with contextlib.suppress(TranslationFaultError):
            found = self.iommu.ats_translate(sid, iova, BOTH, pasid)
            if found.allowed & BOTH:
                self.tlbs[sid].cached[pasid, iova] = found.pa

    @invariant()
    def device_tlbs_hold_what_domains_do(self):
        for sid, tlb in self.tlbs.items() if hasattr(self, "iommu") else ():
            for (pasid, iova), pa in tlb.cached.items():
                assert self.held[self.attached[sid, pasid]][iova][0] == pa

    @invariant()
    def the_buffer_is_empty(self):
        if hasattr(self, "iommu"):
            assert self.iommu.registers.CMD_HEAD == self.iommu.registers.CMD_TAIL

    def teardown(self):
        if not hasattr(self, "iommu"):
            return
        for sid, pasid in [*self.attached]:
            self.devices[sid].detach(pasid)
        for domain in self.domains:
            domain.unmap(0, 1 << 48)
            domain.flush()
            domain.free()
        assert len(self.iommu.iotlb.cache) == 0


AnyOrder.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_a_device_reaches_exactly_what_its_domain_holds = AnyOrder.TestCase
