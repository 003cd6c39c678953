"""What a VMM may offer on a device's IOMMU, as plain data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from softiommu.abi.iommufd import HwCapabilities
from softiommu.errors import ConfigError
from softiommu.vmm.capabilities.families import ERRATA, FAMILIES
from softiommu.vmm.capabilities.negotiate import NOTHING, Answer, Offer, Verdict, negotiate
from softiommu.vmm.capabilities.probe import Seen
from softiommu.vmm.capabilities.rules import ASKED, TOLD, Capability, Request

#: No capability.
NONE = Capability(0)


class Report(NamedTuple):
    """The devices that are alike, what is known of their IOMMU, and an offer for each type of information."""

    devices: tuple[str, ...]
    seen: Seen
    kernel: Capability
    requests: Request
    offers: tuple[Offer, ...]


def reports(seen: Sequence[tuple[str, Seen]], assumed: Capability = NONE, requests: Request = NOTHING) -> list[Report]:
    """A report for each kind of device. `assumed` is taken for granted of the kernel."""
    alike: dict[Seen, list[str]] = {}
    for name, one in seen:
        alike.setdefault(one, []).append(name)
    found = []
    for one, names in alike.items():
        kernel = one.kernel | assumed
        offers = tuple(negotiate(info, kernel, requests) for info in one.infos)
        found.append(Report(tuple(names), one, kernel, requests, offers))
    return found


def capability(name: str) -> Capability:
    """A capability by its name. ConfigError: there is none."""
    if name.upper() in Capability.__members__:
        return Capability[name.upper()]
    raise ConfigError(f"no capability {name!r} of kernels: expected one of {', '.join(Capability.__members__)}")


def request(name: str) -> Request:
    """A request by its name. ConfigError: there is none."""
    if name.upper() in Request.__members__:
        return Request[name.upper()]
    raise ConfigError(f"no request {name!r} of vIOMMUs: expected one of {', '.join(Request.__members__)}")


def facts(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    info = report.seen.infos[0]
    return {
        "devices": list(report.devices),
        "out_capabilities": {"value": int(info.capabilities), "names": _names(info.capabilities)},
        "out_max_pasid_log2": info.pasid_bits,
        "kernel": [{"name": one.name, "known_by": TOLD[one]} for one in report.kernel],
        "requests": [{"name": one.name, "made_by": ASKED[one]} for one in report.requests],
        "types": [_type(int(info.type), offer) for info, offer in zip(report.seen.infos, report.offers, strict=True)],
    }


def _names(capabilities: int) -> list[str]:
    return [str(bit.name) for bit in HwCapabilities if capabilities & bit]


def _type(number: int, offer: Offer) -> dict[str, Any]:
    family = offer.decoded.family
    return {
        "type": number,
        "name": None if family is None else family.kind.name,
        "flags": [{"name": name, "meaning": meaning} for name, meaning in _flags(offer)],
        "registers": [
            {
                "name": name,
                "hardware": int(word),
                "offered": int(offer.words[name]),
                "fields": [_field(answer) for answer in offer.answers if answer.register == name],
            }
            for name, word in offer.decoded.words.items()
        ],
    }


def _flags(offer: Offer) -> list[tuple[str, str]]:
    kinds = offer.decoded.family.flags if offer.decoded.family is not None else None
    names = [] if kinds is None else [str(bit.name) for bit in kinds if offer.decoded.flags & bit]
    return [(name, ERRATA[name]) for name in names]


def _field(answer: Answer) -> dict[str, Any]:
    return {
        "field": answer.field,
        "verdict": answer.verdict.value,
        "hardware": answer.hardware,
        "offered": answer.offered,
        "needs": [{"kind": need.step.value, "what": need.what, "known_by": need.known_by} for need in answer.missing],
        "reason": answer.reason,
        "source": answer.source,
    }


def lines(report: Report) -> list[str]:
    """The same for people; sources are listed at the end."""
    info = report.seen.infos[0]
    names = ", ".join(_names(info.capabilities)) or "none"
    text = [
        f"{', '.join(report.devices)}:",
        f"out_capabilities {info.capabilities:#x} ({names}), {info.pasid_bits} PASID bits",
        *(f"kernel has {one.name}: {TOLD[one]}" for one in report.kernel),
        *(f"asked for {one.name}: {ASKED[one]}" for one in report.requests),
    ]
    sources: dict[str, int] = {}
    for told, offer in zip(report.seen.infos, report.offers, strict=True):
        text += _offer_lines(int(told.type), offer, sources)
    missing = {need for offer in report.offers for answer in offer.answers for need in answer.missing}
    ways = sorted({f"{need.name}: {need.known_by}" for need in missing if need.known_by is not None})
    return text + ways + [f"[{number}] {source}" for source, number in sources.items()]


def _offer_lines(number: int, offer: Offer, sources: dict[str, int]) -> list[str]:
    if offer.decoded.family is None:
        known = ", ".join(family.kind.name for family in FAMILIES.values())
        what = "nothing" if not number else f"type {number:#x}"
        return [f"GET_HW_INFO tells {what}: nothing may be forwarded (there are rules for {known})"]
    text = [offer.decoded.family.kind.name, *(f"{name}: {meaning}" for name, meaning in _flags(offer))]
    for name, word in offer.decoded.words.items():
        text.append(f"{name}: {int(word):#x} of the hardware, {int(offer.words[name]):#x} to the guest")
        text += [_line(answer, sources) for answer in offer.answers if answer.register == name]
    return text


def _line(answer: Answer, sources: dict[str, int]) -> str:
    number = sources.setdefault(answer.source, len(sources) + 1)
    value = f"{answer.hardware:#x}"
    if answer.verdict is not Verdict.OWN and answer.offered != answer.hardware:
        value += f" -> {answer.offered:#x}"
    return f"  {answer.verdict.value:7}  {answer.field:18} {value:12} {answer.reason} [{number}]"
