"""PRPs: data lies where pages and lists say, and an offset where there must be none is refused."""

import pytest
from hypothesis import given, strategies as st
from nvme_driver import DSM, IDENTIFY, READ, WRITE

from softiommu.hardware.devices.nvme.commands import CommandError, Status
from softiommu.hardware.devices.nvme.prp import segments

PAGE = 64  # eight entries in a list: chains of lists are short


class Lists:
    """Memory of lists, each filling a page to its end or less."""

    def __init__(self):
        self.words = {}
        self.reads = []

    def read(self, at, length):
        self.reads.append((at, length))
        return b"".join(self.words[at + n].to_bytes(8, "little") for n in range(0, length, 8))

    def write(self, entries, slot, places):
        """Store entries from `slot` of a page on; where the list starts."""
        place = next(places)
        room = PAGE // 8 - slot
        if len(entries) > room:
            entries = [*entries[: room - 1], self.write(entries[room - 1 :], 0, places)]
        for number, entry in enumerate(entries):
            self.words[place + 8 * (slot + number)] = entry
        return place + 8 * slot


@given(st.data())
def test_segments_cover_the_pages_in_their_order(data):
    length = data.draw(st.integers(1, 40 * PAGE))
    offset = data.draw(st.integers(0, PAGE // 4 - 1)) * 4
    pages = [PAGE * data.draw(st.integers(1, 60)) for _ in range(-(-(offset + length) // PAGE))]
    lists = Lists()
    if len(pages) <= 2:
        prp2 = pages[1] if len(pages) == 2 else data.draw(st.integers(0, 1 << 64))
    else:
        prp2 = lists.write(pages[1:], data.draw(st.integers(0, 7)), iter(range(1 << 20, 1 << 21, PAGE)))
    found = segments(lists.read, pages[0] + offset, prp2, length, PAGE)
    addresses = [iova + n for iova, size in found for n in range(size)]
    assert addresses == [page + n for page in pages for n in range(PAGE)][offset : offset + length]
    for at, size in lists.reads:
        assert at // PAGE == (at + size - 1) // PAGE


def test_neighbours_are_one_where_there_are_many():
    lists = Lists()
    for number in range(7):
        lists.words[0x1000 + 8 * number] = 0x2000 + PAGE * (number + (number > 3))
    last = 3 * PAGE - 8
    assert segments(lists.read, 0x2000 - PAGE + 4, 0x1000, 8 * PAGE - 12, PAGE) == [
        (0x2000 - PAGE + 4, 5 * PAGE - 4),
        (0x2000 + 5 * PAGE, last),
    ]


@pytest.mark.parametrize(
    ("prp1", "prp2", "length"),
    [(1, 0, 4), (2, 0, 4), (0, 8, 2 * PAGE), (4, 8, PAGE), (0, 0x1004, 3 * PAGE), (0, 0x1001, 3 * PAGE)],
)
def test_offsets_where_there_must_be_none(prp1, prp2, length):
    with pytest.raises(CommandError) as caught:
        segments(Lists().read, prp1, prp2, length, PAGE)
    assert caught.value.status == Status.PRP_OFFSET_INVALID


@pytest.mark.parametrize("bad", [0, 6, 7])
def test_offsets_in_entries_and_in_the_link_of_lists(bad):
    lists = Lists()
    for number in range(8):
        lists.words[0x1000 + 8 * number] = 0x2000 + (8 if number == bad else 0)
        lists.words[0x2000 + 8 * number] = 0x4000
    with pytest.raises(CommandError) as caught:
        segments(lists.read, 0, 0x1000, 12 * PAGE, PAGE)
    assert caught.value.status == Status.PRP_OFFSET_INVALID


def test_a_list_that_leads_to_itself_ends_with_the_data():
    lists = Lists()
    for number in range(8):
        lists.words[0x1000 + 8 * number] = 0x1000
    found = segments(lists.read, 0, 0x1000, 100 * PAGE, PAGE)
    assert sum(size for _, size in found) == 100 * PAGE


@pytest.mark.parametrize("opcode", [READ, WRITE])
@pytest.mark.parametrize(
    ("prp1", "prp2", "blocks", "status"),
    [
        (0x100002, 0, 1, 0x013),
        (0x100E00, 0x101004, 8, 0x013),
        (0x100000, 0x101008, 16, 0x013),
        (0x100000, 0x101004, 24, 0x013),
        (0x100000, 1 << 44, 24, 0x004),
        (0x100000, 1 << 44, 16, 0x004),
        (0x100E00, 0x102000, 8, 0x000),
    ],
)
def test_commands_fail_by_their_prps(nvme, opcode, prp1, prp2, blocks, status):
    done = nvme.run(1, opcode, 1, prp1=prp1, prp2=prp2, dword12=blocks - 1)
    assert done.status == status


def test_a_chain_of_lists_in_memory(nvme):
    pages = [nvme.alloc() for _ in range(128)]
    pages = pages[::2] + pages[1::2]
    for number, page in enumerate(pages):
        nvme.store(page, bytes([number]) * 4096)
    first, lists = nvme.prps(pages)
    early = lists + 4096 - 8 * 64  # 63 entries and a link fit between here and the end of the page
    nvme.store(early, nvme.load(lists, 63 * 8) + (lists + 4096).to_bytes(8, "little"))
    assert nvme.alloc() == lists + 4096
    nvme.store(lists + 4096, b"".join(page.to_bytes(8, "little") for page in pages[64:]))
    done = nvme.run(1, WRITE, 1, prp1=first, prp2=early, dword12=1023)
    assert done.status == 0
    found = nvme.nvme.subsystem.find(1).read(0, 128 * 4096)
    assert found == b"".join(bytes([number]) * 4096 for number in range(128))


def test_identify_and_ranges_may_cross_a_page(nvme):
    at = [nvme.alloc() for _ in range(3)]
    assert nvme.run(0, IDENTIFY, prp1=at[0] + 0xFFC, prp2=at[2], dword10=1).status == 0
    assert nvme.load(at[0] + 0xFFC, 4) + nvme.load(at[2], 4092) == nvme.identify(1)[1]
    assert nvme.run(0, IDENTIFY, prp1=at[0] + 0xFFC, prp2=at[2] + 4, dword10=1).status == 0x013
    nvme.store(at[0] + 0xFF8, (0xFF << 32).to_bytes(8, "little"))
    nvme.store(at[2], (8191).to_bytes(8, "little"))
    assert nvme.run(1, DSM, 1, prp1=at[0] + 0xFF8, prp2=at[2], dword11=4).status == 0x080
    nvme.store(at[0] + 0xFF8, (1 << 32).to_bytes(8, "little"))
    nvme.store(at[2], (7).to_bytes(8, "little"))
    assert nvme.run(1, DSM, 1, prp1=at[0] + 0xFF8, prp2=at[2], dword11=4).status == 0
