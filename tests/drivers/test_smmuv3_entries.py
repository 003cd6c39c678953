"""How the SMMUv3 driver changes entries while the hardware looks at them."""

from hypothesis import given, settings, strategies as st

from softiommu.drivers.smmuv3.entries import used_of_ste, write_entry
from softiommu.hardware.smmuv3.tables import Config, Ste0, Ste1, Ste2, Ste3
from softiommu.memory.physical import PhysicalMemory

# Entries change while the hardware looks


def stes():
    return st.one_of(
        st.just((0,) * 8),
        st.just((int(Ste0.of(V=1)), *[0] * 7)),
        st.builds(
            lambda config, pointer, dss, vmid, root: (
                int(Ste0.of(V=1, CONFIG=config, S1CONTEXTPTR=pointer if config & 1 else 0)),
                int(Ste1.of(S1DSS=dss if config & 1 else 0, SHCFG=1)),
                int(Ste2.of(S2VMID=vmid if config & 2 else 0)),
                int(Ste3.of(S2TTB=root if config & 2 else 0)),
                *[0] * 4,
            ),
            st.sampled_from([Config.BYPASS, Config.S1, Config.S2, Config.NEST]),
            st.integers(1, 3),
            st.integers(0, 2),
            st.integers(1, 3),
            st.integers(1, 3),
        ),
    )


@settings(max_examples=300, deadline=None)
@given(old=stes(), new=stes())
def test_the_hardware_never_sees_half_of_an_entry(old, new):
    """At each store of 64 bits what matters of the entry is the old one, the new one, or that it is not valid."""
    memory = PhysicalMemory(1 << 20)
    at = memory.alloc(4096)
    seen = []

    class Watching:
        read_u64 = staticmethod(memory.read_u64)

        @staticmethod
        def write_u64(pa, value):
            memory.write_u64(pa, value)
            words = [memory.read_u64(at + 8 * n) for n in range(8)]
            seen.append([word & mask for word, mask in zip(words, used_of_ste(words), strict=True)])

    for number, word in enumerate(old):
        memory.write_u64(at + 8 * number, word)
    write_entry(Watching(), at, new, used_of_ste, lambda: None)
    assert [memory.read_u64(at + 8 * n) for n in range(8)] == list(new)
    whole = [[word & mask for word, mask in zip(words, used_of_ste(words), strict=True)] for words in (old, new)]
    assert all(state in whole or not state[0] & 1 for state in seen)
    changed = sum(a != b for a, b in zip(*whole, strict=True))
    if changed == 1 and old[0] & new[0] & 1:
        assert all(state[0] & 1 for state in seen)
