"""What a VMM may offer its guest, and what it offered and may not."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from softiommu.vmm.capabilities.families import Decoded, Info, decode, told
from softiommu.vmm.capabilities.rules import REQUEST_FLAGS, Capability, Kind, Need, Request, Rule
from softiommu.words import Word

NOTHING = Request(0)


class Verdict(Enum):
    """What becomes of a field."""

    FORWARD = "forward"
    MASK = "mask"
    NEEDS = "needs"
    #: The VMM emulates it, and fills it in as it likes.
    OWN = "own"


class Answer(NamedTuple):
    """What becomes of one field, and why. `hardware` and `offered` are its values; `missing` is what it needs."""

    register: str
    field: str
    verdict: Verdict
    hardware: int
    offered: int
    reason: str
    source: str
    missing: tuple[Need, ...] = ()


class Offer(NamedTuple):
    """Registers for a guest: what hardware has and the rules allow. Fields that are the VMM's own are 0 in it."""

    decoded: Decoded
    kernel: Capability
    requests: Request
    words: dict[str, Word]
    answers: tuple[Answer, ...]

    @property
    def flags(self) -> int:
        """The flags of VIOMMU_ALLOC that this offer rests on."""
        used = 0
        for request, flag in REQUEST_FLAGS.items():
            used |= flag if request in self.requests else 0
        return used

    def answer(self, register: str, field: str) -> Answer:
        """The answer for a field. KeyError: there is no such field."""
        for answer in self.answers:
            if (answer.register, answer.field) == (register, field):
                return answer
        raise KeyError(f"{register}.{field}")


class Finding(NamedTuple):
    """A field that was offered with a value that no rule allows."""

    register: str
    field: str
    hardware: int
    offered: int
    allowed: int
    reason: str
    source: str

    def __str__(self) -> str:
        values = f"offered {self.offered:#x}, allowed {self.allowed:#x}, hardware {self.hardware:#x}"
        return f"{self.register}.{self.field}: {values}: {self.reason} [{self.source}]"


def negotiate(info: Info, kernel: Capability | None = None, requests: Request = NOTHING) -> Offer:
    """What may be offered to a guest on this hardware, field by field.

    `kernel` is what the VMM knows of the kernel: by default what `info` tells. It leaves out what the VMM does not
    know itself. `requests` is what it will ask for when it allocates the vIOMMU. ValueError: `info` is too short.
    """
    known = told(info) if kernel is None else kernel
    decoded = decode(info)
    answers: list[Answer] = []
    words: dict[str, Word] = {}
    for register in decoded.family.registers if decoded.family else ():
        word = decoded.words[register.name]
        judged = [
            _judge((register.name, field), rule, getattr(word, field), known, requests)
            for field, rule in register.rules.items()
        ]
        answers += judged
        words[register.name] = register.word.of(**{answer.field: answer.offered for answer in judged})
        if word.reserved:
            answers.append(_reserved(register.name, word.reserved))
    return Offer(decoded, known, requests, words, tuple(answers))


def _judge(where: tuple[str, str], rule: Rule, raw: int, kernel: Capability, requests: Request) -> Answer:
    register, field = where
    raw, why, missing = int(raw), rule.why, tuple(need for need in rule.needs if not need.met(kernel, requests))
    if rule.kind is Kind.OWN:
        return Answer(register, field, Verdict.OWN, raw, 0, why, rule.source)
    if rule.kind is Kind.MASK:
        return Answer(register, field, Verdict.MASK, raw, rule.absent, why, rule.source)
    if rule.assumed is not None:
        return Answer(register, field, Verdict.FORWARD, raw, rule.assumed, why, rule.source)
    if missing and raw == rule.absent:
        return Answer(register, field, Verdict.MASK, raw, raw, f"{why}: the hardware has none", rule.source, missing)
    if missing:
        lacks = "; ".join(map(str, missing))
        return Answer(register, field, Verdict.NEEDS, raw, rule.absent, f"{why}: needs {lacks}", rule.source, missing)
    return Answer(register, field, Verdict.FORWARD, raw, raw, why, rule.source)


_UNNAMED = "no field that this project knows: a later manual may give it a meaning"
_EVERY = "every manual: reserved bits are not to be relied on"


def _reserved(register: str, bits: int) -> Answer:
    return Answer(register, "reserved", Verdict.MASK, bits, 0, _UNNAMED, _EVERY)


def lint(
    offered: Mapping[str, int],
    info: Info,
    kernel: Capability | None = None,
    requests: Request = NOTHING,
) -> list[Finding]:
    """What a VMM offered its guest, by the names of registers, that no rule allows.

    ValueError: a name that is no register of this hardware, a value wider than it, or `info` is too short.
    """
    offer = negotiate(info, kernel, requests)
    family = offer.decoded.family
    if family is None and offered:
        raise ValueError(f"hardware information of type {info.type:#x} has no registers")
    findings: list[Finding] = []
    for name, value in offered.items():
        assert family is not None, "there are registers"
        register = family.register(name)
        word = register.word(value)
        for field, rule in register.rules.items():
            answer = offer.answer(name, field)
            seen = int(getattr(word, field))
            if not rule.allows(seen, answer.offered):
                findings.append(_finding(answer, seen))
        if word.reserved:
            raw = offer.decoded.words[name].reserved
            findings.append(_finding(_reserved(name, raw), word.reserved))
    return findings


def _finding(answer: Answer, seen: int) -> Finding:
    reason = answer.reason
    if answer.verdict is Verdict.FORWARD:
        reason = f"beyond what the hardware has: {reason}"
    return Finding(answer.register, answer.field, answer.hardware, seen, answer.offered, reason, answer.source)
