"""Many commands of a guest at once become what they become one by one, and are refused where they are then."""

import pytest
from hypothesis import given, settings, strategies as st

from softiommu.drivers.smmuv3 import commands as smmuv3_commands
from softiommu.drivers.smmuv3.commands import WORDS, convert
from softiommu.hardware.smmuv3.commands import Op, Stream0

SIDS = {1: 0x20, 7: 0x1000, 0xFFFFFFFF: 0}
words = st.integers(0, 2**64 - 1)
commands = st.builds(
    lambda op, sid, low, high, named: (low & 0xFFFFFF00 | (sid if named else low >> 32) << 32 | op, high),
    st.one_of(st.sampled_from([*smmuv3_commands._KINDS]), st.sampled_from([*smmuv3_commands._KINDS, *Op, 0])),
    st.sampled_from([*SIDS, *SIDS, 2]),
    words,
    words,
    st.integers(0, 9).map(bool),
)


@settings(max_examples=300)
@given(st.lists(commands, max_size=40), st.integers(0, 0xFFFF))
def test_many_at_once_become_what_they_become_one_by_one(given, vmid):
    raw = b"".join(WORDS.pack(*command) for command in given)
    found = []
    for many in (1, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(smmuv3_commands, "_MANY", many)
            found.append(convert(raw, vmid, SIDS))
    assert found[0] == found[1]


@pytest.mark.parametrize("many", [1, 1 << 20])
def test_the_first_that_a_guest_may_not_give_ends_it(monkeypatch, many):
    monkeypatch.setattr(smmuv3_commands, "_MANY", many)
    good, unknown = (int(Op.TLBI_NH_ALL), 5), (int(Stream0.of(OPCODE=Op.CFGI_CD, SID=2)), 0)
    for wrong, why in ((unknown, "no vDEVICE has stream id 0x2"), ((int(Op.SYNC), 0), "it is no command of guests")):
        found = convert(b"".join(WORDS.pack(*one) for one in (good, wrong, good, unknown)), 9, SIDS)
        assert (found.raw, found.refusal) == (WORDS.pack(Op.TLBI_NH_ALL | 9 << 32, 5), why)
    assert convert(b"", 9, SIDS) == (b"", "")
