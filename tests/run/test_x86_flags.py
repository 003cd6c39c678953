"""Conditions are said by the flags as the manual has them. (What arithmetic leaves is held against the processor.)"""

import pytest

from softiommu.run.trap.x86_flags import CF, OF, PF, SF, ZF, holds

#: Number in opcodes, name, and when it holds (Intel SDM volume 1, appendix B).
CONDITIONS = [
    (0x0, "o", lambda c, p, z, s, o: o),
    (0x2, "b", lambda c, p, z, s, o: c),
    (0x4, "e", lambda c, p, z, s, o: z),
    (0x6, "be", lambda c, p, z, s, o: c or z),
    (0x8, "s", lambda c, p, z, s, o: s),
    (0xA, "p", lambda c, p, z, s, o: p),
    (0xC, "l", lambda c, p, z, s, o: s != o),
    (0xE, "le", lambda c, p, z, s, o: z or s != o),
]


@pytest.mark.parametrize(("number", "name", "said"), CONDITIONS, ids=[name for _, name, _ in CONDITIONS])
def test_a_condition_holds_when_its_flags_say_so_and_else_its_opposite(number, name, said):
    for bits in range(32):
        flags = [bool(bits >> index & 1) for index in range(5)]
        word = sum(flag for flag, on in zip((CF, PF, ZF, SF, OF), flags, strict=True) if on)
        assert holds(number, word) == said(*flags)
        assert holds(number + 1, word) != said(*flags)
