"""An IOMMU and software that devices ask for pages: what is there is a set, and requests are answered when told."""

from softiommu.hardware.iommu import ALL, ResponseCode, Translation
from softiommu.hardware.pci_config import ExtendedId

PAGE = 4096


def allow(function, ats=True):
    """Let a function ask for translations and for a page at a time."""
    config, find = function.write_config, function.find_capability
    config(find(ExtendedId.PRI) + 12, 4, 1)
    config(find(ExtendedId.PRI) + 4, 2, 1)
    config(find(ExtendedId.ATS) + 6, 2, ats << 15)


class Platform:
    """An IOMMU that serves ATS, and the software that answers: what is in `present` is there; `answer`, where
    it is not None, answers requests at once."""

    def __init__(self):
        self.present, self.wanted = set(), []
        self.answer = None

    def connect(self, sid, endpoint):
        self.endpoint = endpoint

    def ats_translate(self, sid, iova, want, pasid=None, privileged=False):
        return Translation(iova, 12, ALL if iova // PAGE in self.present else 0)

    def translate(self, sid, iova, want, pasid=None, privileged=False):
        return Translation(iova, 12, ALL)

    def admit_translated(self, sid, pa, want, pasid=None):
        return Translation(pa, 12, ALL)

    def page_request(self, request):
        self.wanted.append(request)
        if self.answer is not None:
            self.answer(request)

    def supply(self, request):
        """Make the page present."""
        self.present.add(request.iova // PAGE)
        self.respond(request)

    def respond(self, request, code=ResponseCode.SUCCESS):
        self.endpoint.page_response(None, request.group, code)

    def refuse(self, request):
        self.respond(request, ResponseCode.INVALID)

    def forget(self, *pages):
        """Software takes pages away."""
        for page in pages:
            self.present.discard(page // PAGE)
            self.endpoint.invalidate(None, page, page + PAGE - 1)

    def asked(self):
        """The pages that were asked for."""
        return [request.iova for request in self.wanted]
