"""NVMe: a small driver starts the controller, makes queues and moves blocks; what goes wrong has the right status."""

import struct

import pytest
from nvme_driver import (
    ABORT,
    ACQ,
    AER,
    AQA,
    ASQ,
    CAP,
    CC,
    COMPARE,
    CREATE_CQ,
    CREATE_SQ,
    CSTS,
    DELETE_CQ,
    DELETE_SQ,
    DSM,
    ENABLE,
    FLUSH,
    FORMAT,
    GET_FEATURES,
    GET_LOG,
    IDENTIFY,
    INTMC,
    INTMS,
    READ,
    SET_FEATURES,
    VS,
    WRITE,
    WRITE_ZEROES,
    Driver,
)

from softiommu.errors import ModelError
from softiommu.hardware.bus import Port
from softiommu.hardware.devices.nvme import namespace
from softiommu.hardware.devices.nvme.controller import Nvme
from softiommu.hardware.devices.nvme.namespace import FileBacking, Namespace, RamBacking
from softiommu.hardware.msi import Kind
from softiommu.memory.physical import PhysicalMemory

SIZE = 4 << 20
FATAL = 2


def start(namespaces=None, io=True, **keys):
    memory = PhysicalMemory(16 << 20)
    kept = [Namespace(RamBacking(SIZE))] if namespaces is None else namespaces
    nvme = Nvme(Port(memory, 0x38), kept, **keys)
    driver = Driver(nvme.function, memory)
    driver.nvme, driver.heard = nvme, []
    nvme.function.on_interrupt = driver.heard.append
    assert driver.enable() == 1
    if io:
        driver.make_queues()
    return driver


@pytest.fixture
def driver():
    return start()


def pattern(length, seed=1):
    return bytes((seed * 7 + n * 13 + (n >> 8)) & 255 for n in range(length))


# Registers


def test_registers_say_what_it_is():
    driver = start(io=False)
    assert driver.read(VS) == 0x10400
    assert driver.read(CAP, 8) == driver.read(CAP) | driver.read(CAP + 4) << 32
    assert driver.read(CAP) == 0x02010000 | 1023
    assert driver.read(CAP + 4) == 1 << 5 | 4 << 20
    assert (driver.read(CSTS), driver.read(0x1000)) == (1, 0)


@pytest.mark.parametrize(
    "cc", [ENABLE | 1 << 4, ENABLE | 5 << 7, ENABLE | 1 << 11], ids=["command set", "page size", "arbitration"]
)
def test_a_configuration_that_cannot_be_is_fatal(cc):
    driver = start(io=False)
    driver.write(CC, 0)
    assert driver.enable(cc=cc) == FATAL
    driver.write(CC, 0)
    assert driver.read(CSTS) == 0
    assert driver.enable() == 1
    driver.write(CC, 0)
    assert driver.enable(cc=cc) == FATAL
    # Of EN=0 and EN=1 behind one another the device of a mapped BAR sees the last.
    assert driver.enable() == 1


def test_admin_queues_of_one_entry_are_fatal():
    driver = start(io=False)
    driver.write(CC, 0)
    assert driver.enable(size=1) == FATAL


def test_admin_queues_of_4096_entries_run_to_their_end_by_one_doorbell():
    driver = start(io=False)
    driver.write(CC, 0)
    assert driver.enable(size=4096) == 1
    ring = driver.rings[0]
    for _ in range(4095):
        driver.push(ring, GET_FEATURES, dword10=7)
    driver.ring_doorbell(ring)
    assert sum(driver.pop(ring, doorbell=False) is not None for _ in range(4095)) == 4095


def test_disabling_keeps_the_admin_queues_registers_and_nothing_else(driver):
    driver.write(INTMS, 5)
    kept = [driver.read(at, 8) for at in (ASQ, ACQ)]
    driver.write(CC, 0)
    assert driver.read(CSTS) == 0
    assert [driver.read(at, 8) for at in (ASQ, ACQ)] == kept
    assert driver.read(INTMS) == driver.read(INTMC) == 0
    assert driver.enable() == 1
    assert driver.run(0, DELETE_SQ, dword10=1).status == 0x101
    driver.function.reset()
    driver.function.write_config(4, 2, 6)
    assert [driver.read(at) for at in (CC, CSTS, AQA, ASQ, ACQ)] == [0] * 5


def test_after_a_shutdown_no_command_runs(driver):
    driver.write(CC, ENABLE | 1 << 14)
    assert driver.read(CSTS) == 0b1001
    driver.push(driver.rings[0], IDENTIFY, prp1=driver.alloc(), dword10=1)
    driver.ring_doorbell(driver.rings[0])
    assert driver.pop(driver.rings[0]) is None
    driver.write(CC, 0)
    assert driver.enable() == 1


# Admin commands


def test_identify_tells_of_controller_and_namespaces():
    driver = start([Namespace(RamBacking(SIZE)), Namespace(RamBacking(SIZE), 1, b"u" * 16)], serial="S1", pairs=4)
    status, page = driver.identify(1)
    assert status == 0
    assert struct.unpack_from("<HH20s40s8s", page) == (
        0x1B36,
        0x1AF4,
        b"S1".ljust(20),
        b"softiommu NVMe".ljust(40),
        b"1.0     ",
    )
    assert (page[77], page[80:84], page[111]) == (7, b"\0\4\1\0", 1)
    assert (page[256], page[259], page[512], page[513], page[516], page[525]) == (2, 3, 0x66, 0x44, 2, 7)
    assert page[768:].startswith(b"nqn.2014-08.org.nvmexpress:uuid:")
    blocks = [struct.unpack_from("<QQQ", driver.identify(0, nsid)[1]) for nsid in (1, 2)]
    assert blocks == [(SIZE >> 9,) * 3, (SIZE >> 12,) * 3]
    assert [driver.identify(0, nsid)[1][26] for nsid in (1, 2)] == [0, 1]
    assert struct.unpack_from("<II", driver.identify(0, 1)[1], 128) == (9 << 16, 12 << 16)
    assert struct.unpack_from("<III", driver.identify(2, 0)[1]) == (1, 2, 0)
    assert struct.unpack_from("<III", driver.identify(2, 1)[1]) == (2, 0, 0)
    assert driver.identify(3, 2)[1][:20] == b"\3\x10\0\0" + b"u" * 16
    assert any(driver.identify(3, 1)[1][4:20])


@pytest.mark.parametrize(
    ("cns", "nsid", "status"),
    [(0, 0, 0xB), (0, 2, 0xB), (0, 0xFFFFFFFF, 0xB), (2, 0xFFFFFFFE, 0xB), (3, 7, 0xB), (0x10, 0, 2), (0xFF, 1, 2)],
)
def test_identify_of_what_is_not_there_fails(driver, cns, nsid, status):
    assert driver.identify(cns, nsid) == (status, bytes(4096))


@pytest.mark.parametrize(
    ("opcode", "dword10", "dword11", "prp1", "status"),
    [
        (CREATE_CQ, 0x000F0000, 3, 0, 0x101),
        (CREATE_CQ, 0x000F0001, 3, 0, 0x101),
        (CREATE_CQ, 0x000F0009, 3, 0, 0x101),
        (CREATE_CQ, 0x00000002, 3, 0, 0x102),
        (CREATE_CQ, 0x04000002, 3, 0, 0x102),
        (CREATE_CQ, 0x000F0002, 2, 0, 0x002),
        (CREATE_CQ, 0x000F0002, 3, 0x800, 0x013),
        (CREATE_CQ, 0x000F0002, 3 | 1 << 16, 0, 0x108),
        (CREATE_SQ, 0x000F0000, 1 | 1 << 16, 0, 0x101),
        (CREATE_SQ, 0x000F0001, 1 | 1 << 16, 0, 0x101),
        (CREATE_SQ, 0x000F0002, 1, 0, 0x101),
        (CREATE_SQ, 0x000F0002, 1 | 9 << 16, 0, 0x101),
        (CREATE_SQ, 0x000F0002, 1 | 3 << 16, 0, 0x100),
        (CREATE_SQ, 0x04000002, 1 | 1 << 16, 0, 0x102),
        (CREATE_SQ, 0x000F0002, 1 << 16, 0, 0x002),
        (CREATE_SQ, 0x000F0002, 1 | 1 << 16, 0x4, 0x013),
        (DELETE_CQ, 0, 0, 0, 0x101),
        (DELETE_CQ, 1, 0, 0, 0x10C),
        (DELETE_CQ, 2, 0, 0, 0x101),
        (DELETE_SQ, 0, 0, 0, 0x101),
        (DELETE_SQ, 2, 0, 0, 0x101),
        (0x10, 0, 0, 0, 0x001),
        (0x18, 0, 0, 0, 0x001),
    ],
)
def test_queues_that_cannot_be_are_refused(driver, opcode, dword10, dword11, prp1, status):
    done = driver.run(0, opcode, prp1=0x100000 + prp1, dword10=dword10, dword11=dword11)
    assert (done.status, done.retry) == (status, False)


def test_queues_need_their_entry_sizes():
    driver = start(io=False)
    driver.write(CC, 1)
    for opcode in (CREATE_CQ, CREATE_SQ):
        assert driver.run(0, opcode, prp1=0x100000, dword10=0xF0001, dword11=0x10001).status == 0x102


def test_queues_come_and_go(driver):
    assert driver.run(0, DELETE_SQ, dword10=1).status == 0
    assert driver.run(0, DELETE_CQ, dword10=1).status == 0
    driver.make_queues(size=4)
    driver.make_queues(2, cq=1)
    for _ in range(9):
        assert driver.run(1, FLUSH, 1).status == 0
    driver.push(driver.rings[2], FLUSH, 1)
    driver.ring_doorbell(driver.rings[2])
    done = driver.pop(driver.rings[1])
    assert (done.sq, done.sq_head, done.status) == (2, 1, 0)


def feature(driver, opcode, fid, dword11=0, nsid=0, high=0):
    done = driver.run(0, opcode, nsid, dword10=high | fid, dword11=dword11)
    return done.status, done.dword0


@pytest.mark.parametrize(
    ("fid", "value", "nsid"),
    [
        (1, 0x01020304, 0),
        (2, 0x20, 0),
        (4, 0x1234, 0),
        (4, 0x101234, 0),
        (5, 0x55, 1),
        (6, 0, 0),
        (8, 0x1234, 0),
        (9, 0x10001, 0),
        (10, 1, 0),
        (11, 0x1FF, 0),
    ],
)
def test_features_keep_what_is_set_until_a_reset(driver, fid, value, nsid):
    _, default = feature(driver, GET_FEATURES, fid, value, nsid)
    assert feature(driver, SET_FEATURES, fid, value, nsid) == (0, 0)
    expected = value & 0xFFFFFF07 if fid == 1 else value
    assert feature(driver, GET_FEATURES, fid, value, nsid) == (0, expected)
    assert feature(driver, GET_FEATURES, fid, value, nsid, 1 << 8) == (0, default)
    assert feature(driver, GET_FEATURES, fid, value, nsid, 2 << 8) == (0, default)
    assert feature(driver, GET_FEATURES, fid, value, nsid, 3 << 8) == (0, 6 if fid == 5 else 4)
    driver.write(CC, 0)
    driver.enable()
    assert feature(driver, GET_FEATURES, fid, value, nsid) == (0, default)


@pytest.mark.parametrize(
    ("opcode", "fid", "dword11", "nsid", "high", "status"),
    [
        (GET_FEATURES, 3, 0, 0, 0, 0x002),
        (GET_FEATURES, 0xFF, 0, 0, 0, 0x002),
        (GET_FEATURES, 1, 0, 0, 4 << 8, 0x002),
        (GET_FEATURES, 4, 1 << 16, 0, 0, 0x002),
        (GET_FEATURES, 9, 9, 0, 0, 0x002),
        (SET_FEATURES, 9, 9, 0, 0, 0x002),
        (SET_FEATURES, 4, 2 << 20, 0, 0, 0x002),
        (SET_FEATURES, 2, 1, 0, 0, 0x002),
        (SET_FEATURES, 5, 1 << 16, 1, 0, 0x002),
        (SET_FEATURES, 5, 0, 9, 0, 0x00B),
        (SET_FEATURES, 6, 0, 0, 1 << 31, 0x10D),
        (SET_FEATURES, 6, 0, 1, 0, 0x10F),
        (SET_FEATURES, 7, 0, 0, 0, 0x00C),
    ],
)
def test_features_that_cannot_be_are_refused(driver, opcode, fid, dword11, nsid, high, status):
    assert feature(driver, opcode, fid, dword11, nsid, high) == (status, 0)


def test_the_number_of_queues_is_what_there_is():
    driver = start(io=False, pairs=3)
    for asked in (0, 0x000F000F):
        assert feature(driver, SET_FEATURES, 7, asked) == (0, 0x00020002)
    assert feature(driver, SET_FEATURES, 7, 0xFFFF) == (2, 0)
    assert feature(driver, GET_FEATURES, 7) == (0, 0x00020002)
    assert feature(driver, SET_FEATURES, 5, 7, 0xFFFFFFFF) == (0, 0)
    assert feature(driver, GET_FEATURES, 5, 0, 1) == (0, 7)


def test_log_pages(driver):
    driver.io(WRITE, 0, 8, [driver.alloc()])
    driver.io(READ, 0, 1, [driver.alloc()])
    driver.run(1, 0x55, 1)
    status, health = driver.log(2)
    assert status == 0
    assert (health[0], health[1] | health[2] << 8, health[3]) == (0, 323, 100)
    assert [health[at] for at in (32, 48, 64, 80, 160, 176)] == [1, 1, 1, 1, 0, 1]
    status, errors = driver.log(1, 4096)
    assert struct.unpack_from("<QHHHHQI", errors) == (1, 1, driver.cid - 2, 0xC002, 0, 0, 1)
    assert not any(errors[64:])
    assert driver.log(3)[1][:16] == b"\1".ljust(8, b"\0") + b"1.0     "
    assert driver.log(2, 8, offset=508)[1] == bytes(8)


def test_the_error_log_names_the_block_only_of_commands_that_have_one(driver):
    far = 1 << 40
    assert driver.io(READ, far, 1, [driver.alloc()]).status == 0x80
    assert driver.run(0, IDENTIFY, dword10=0x77).status == 2
    driver.write(0x1000 + 8 * 5, 1)
    entry = struct.Struct("<QHHHHQI")
    newest_first = [entry.unpack_from(driver.log(1, 4096)[1], 64 * n) for n in range(3)]
    assert [(sq, location, lba) for _, sq, _, _, location, lba, _ in newest_first] == [
        (0xFFFF, 0xFFFF, 0),
        (0, 0, 0),
        (1, 0, far),
    ]


@pytest.mark.parametrize(
    ("lid", "fields", "status"),
    [
        (4, {}, 0x109),
        (0, {}, 0x109),
        (2, {"nsid": 1}, 2),
        (2, {"dword12": 2}, 2),
        (2, {"dword13": 1}, 2),
        (2, {"dword11": 2}, 2),
    ],
)
def test_log_pages_that_are_not_there(driver, lid, fields, status):
    assert driver.run(0, GET_LOG, prp1=driver.alloc(), dword10=127 << 16 | lid, **fields).status == status


# Asynchronous events


def test_a_write_to_a_wrong_doorbell_is_an_event(driver):
    admin = driver.rings[0]
    cid = driver.push(admin, AER)
    driver.ring_doorbell(admin)
    assert driver.pop(admin) is None
    driver.write(0x1000 + 8 * 7, 1)
    done = driver.pop(admin)
    assert (done.cid, done.status, done.dword0) == (cid, 0, 0x010000)
    cid = driver.push(admin, AER)
    driver.ring_doorbell(admin)
    driver.write(0x1000 + 8, 16)
    assert driver.pop(admin) is None
    driver.log(1, 64, rae=1)
    assert driver.pop(admin) is None
    status, entry = driver.log(1, 64)
    assert (status, entry[:12]) == (0, struct.pack("<QHH", 2, 0xFFFF, 0xFFFF))
    done = driver.pop(admin)
    assert (done.cid, done.dword0) == (cid, 0x010100)


@pytest.mark.parametrize(("offset", "value"), [(8, 0), (8, 16), (12, 1), (12, 16), (4, 9)])
def test_doorbell_values_that_cannot_be_change_nothing(driver, offset, value):
    driver.write(0x1000 + offset, value)
    assert driver.run(1, FLUSH, 1).status == 0
    admin = driver.rings[0]
    driver.push(admin, AER)
    driver.ring_doorbell(admin)
    assert driver.pop(admin).dword0 == 0x010100


def test_requests_for_events_are_limited_and_can_be_aborted(driver):
    admin = driver.rings[0]
    cids = [driver.push(admin, AER) for _ in range(5)]
    driver.ring_doorbell(admin)
    done = driver.pop(admin)
    assert (done.cid, done.status) == (cids[4], 0x105)
    driver.push(admin, IDENTIFY, cid=cids[0])
    driver.ring_doorbell(admin)
    assert driver.pop(admin).status == 0x003
    abort = driver.push(admin, ABORT, cid=99, dword10=cids[1] << 16)
    driver.ring_doorbell(admin)
    first, second = driver.pop(admin), driver.pop(admin)
    assert (first.cid, first.status, first.retry) == (cids[1], 0x007, True)
    assert (second.cid, second.status, second.dword0) == (abort, 0, 0)
    assert driver.run(0, ABORT, dword10=cids[1] << 16 | 1).dword0 == 1


def test_the_temperature_tells_when_it_is_past_a_threshold(driver):
    admin = driver.rings[0]
    driver.push(admin, AER)
    driver.ring_doorbell(admin)
    feature(driver, SET_FEATURES, 4, 300)
    assert driver.log(2)[1][0] == 2
    feature(driver, SET_FEATURES, 4, 340)
    assert driver.log(2)[1][0] == 0
    feature(driver, SET_FEATURES, 11, 2)
    driver.push(admin, SET_FEATURES, dword10=4, dword11=1 << 20 | 330)
    driver.ring_doorbell(admin)
    assert driver.pop(admin).status == 0
    assert driver.pop(admin).dword0 == 0x020101


# Blocks


@pytest.mark.parametrize("format", [0, 1])
@pytest.mark.parametrize("blocks", [1, 2, 3, 17, 64])
def test_what_was_written_is_read(format, blocks):
    driver = start([Namespace(RamBacking(SIZE), format)])
    length = blocks << (9, 12)[format]
    data = pattern(length)
    source, target = ([driver.alloc() for _ in range(-(-length // 4096))] for _ in range(2))
    for number, page in enumerate(source):
        driver.store(page, data[number * 4096 : number * 4096 + 4096])
    assert driver.io(WRITE, 5, blocks, source).status == 0
    assert driver.io(READ, 5, blocks, target).status == 0
    assert b"".join(driver.load(page, 4096) for page in target)[:length] == data
    assert driver.io(COMPARE, 5, blocks, source).status == 0
    driver.store(source[-1], b"\xff")
    assert driver.io(COMPARE, 5, blocks, source).status == 0x285
    assert driver.io(WRITE_ZEROES, 5, blocks, [0]).status == 0
    assert driver.io(READ, 5, blocks, target).status == 0
    assert not any(b"".join(driver.load(page, 4096) for page in target)[:length])


@pytest.mark.parametrize(
    ("opcode", "lba", "count", "nsid", "dword0", "status"),
    [
        (READ, SIZE >> 9, 1, 1, 0, 0x080),
        (WRITE, (SIZE >> 9) - 1, 2, 1, 0, 0x080),
        (WRITE_ZEROES, (1 << 64) - 1, 1, 1, 0, 0x080),
        (COMPARE, 1 << 40, 1, 1, 0, 0x080),
        (READ, 0, 1025, 1, 0, 0x002),
        (READ, 0, 1, 0, 0, 0x00B),
        (WRITE, 0, 1, 2, 0, 0x00B),
        (WRITE_ZEROES, 0, 1, 0xFFFFFFFF, 0, 0x00B),
        (READ, 0, 1, 1, 1 << 8, 0x002),
        (READ, 0, 1, 1, 1 << 14, 0x002),
        (0x04, 0, 1, 1, 0, 0x001),
        (0x84, 0, 1, 1, 0, 0x001),
    ],
)
def test_blocks_that_cannot_be_moved(driver, opcode, lba, count, nsid, dword0, status):
    fields = {"dword10": lba & 0xFFFFFFFF, "dword11": lba >> 32, "dword12": count - 1}
    done = driver.run(1, opcode, nsid, dword0=dword0, prp1=driver.alloc(), **fields)
    assert (done.status, done.retry) == (status, False)


def test_deallocated_blocks_read_as_zeros(driver):
    page, ranges = driver.alloc(), driver.alloc()
    driver.store(page, b"x" * 4096)
    for lba in range(0, 64, 8):
        driver.io(WRITE, lba, 8, [page])
    driver.store(ranges, struct.pack("<IIQIIQIIQ", 0, 3, 2, 0, 0, 9, 0, 30, 20))
    assert driver.run(1, DSM, 1, prp1=ranges, dword10=2).status == 0
    found = driver.nvme.subsystem.find(1).read(0, 64 << 9)
    assert found == b"x" * (64 << 9)
    assert driver.run(1, DSM, 1, prp1=ranges, dword10=2, dword11=4).status == 0
    found = driver.nvme.subsystem.find(1).read(0, 64 << 9)
    assert [lba for lba in range(64) if not any(found[lba << 9 : lba + 1 << 9])] == [2, 3, 4, *range(20, 50)]
    driver.store(ranges, struct.pack("<IIQ", 0, 1, SIZE >> 9))
    assert driver.run(1, DSM, 1, prp1=ranges, dword11=4).status == 0x080


def test_format_changes_the_blocks_and_erases_them(driver):
    page = driver.alloc()
    driver.store(page, b"x" * 512)
    driver.io(WRITE, 0, 1, [page])
    for dword10, nsid, status in ((2, 1, 0x10A), (1 << 5, 1, 0x10A), (2 << 9, 1, 2), (1, 5, 0xB), (1, 1, 0)):
        assert driver.run(0, FORMAT, nsid, dword10=dword10).status == status
    assert struct.unpack_from("<Q", driver.identify(0, 1)[1]) == (SIZE >> 12,)
    assert driver.io(READ, 0, 1, [page]).status == 0
    assert driver.load(page, 4096) == bytes(4096)
    assert driver.run(0, FORMAT, 0xFFFFFFFF, dword10=1 << 9).status == 0
    assert driver.identify(0, 1)[1][26] == 0


def test_blocks_of_a_file_are_in_the_file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(pattern(3 << 20))
    with path.open("r+b") as file:
        driver = start([Namespace(FileBacking(file.fileno()))])
        page = driver.alloc()
        assert driver.io(READ, 8, 1, [page]).status == 0
        assert driver.load(page, 512) == path.read_bytes()[4096:4608]
        driver.store(page, b"y" * 512)
        assert driver.io(WRITE, 9, 1, [page], dword12=1 << 30).status == 0
        assert driver.io(WRITE_ZEROES, 16, 2500, [0]).status == 0
        assert driver.run(1, FLUSH, 0xFFFFFFFF).status == 0
        found = path.read_bytes()
        assert found[9 << 9 : 10 << 9] == b"y" * 512
        assert found[16 << 9 : 2516 << 9] == bytes(2500 << 9)
        file.truncate(8192)
        assert driver.io(READ, 1000, 1, [page]).status == 0x281
    assert driver.run(1, FLUSH, 1).status == 0x280
    assert driver.io(WRITE, 0, 1, [page]).status == 0x280
    assert driver.io(WRITE_ZEROES, 0, 1, [page]).status == 0x280
    assert driver.log(2)[1][160] == 4


def test_deallocated_blocks_of_a_file_take_no_room_where_it_can_have_holes(tmp_path, monkeypatch):
    path = tmp_path / "disk"
    for holes in (True, False):
        path.write_bytes(b"x" * SIZE)
        with path.open("r+b") as file, monkeypatch.context() as patch:
            if not holes:
                patch.setattr(namespace, "_fallocate", lambda *arguments: -1)
            FileBacking(file.fileno()).zero(4096, SIZE - 8192)
        assert path.read_bytes() == b"x" * 4096 + bytes(SIZE - 8192) + b"x" * 4096
        assert path.stat().st_blocks <= (SIZE >> 9 if not holes else 128)


def test_impossible_namespaces_and_controllers_are_refused():
    for backing, format, uuid in ((RamBacking(SIZE), 2, None), (RamBacking(2048), 0, None), (RamBacking(SIZE), 0, b"")):
        with pytest.raises(ModelError):
            Namespace(backing, format, uuid)
    with pytest.raises(ModelError):
        start(pairs=65)


# Queues


def test_a_full_completion_queue_holds_commands_back(driver):
    driver.make_queues(2, size=4)
    ring = driver.rings[2]
    ring.size = 16  # a longer submission queue for the same completion queue
    driver.run(0, DELETE_SQ, dword10=2)
    ring.at = driver.alloc()
    assert driver.run(0, CREATE_SQ, prp1=ring.at, dword10=0xF0002, dword11=2 << 16 | 1).status == 0
    cids = [driver.push(ring, FLUSH, 1) for _ in range(8)]
    driver.ring_doorbell(ring)
    ring.size = 4
    found = []
    for _ in range(3):
        found.append(driver.pop(ring, doorbell=False))
    assert driver.peek(ring) is None
    driver.write(0x1000 + 8 * 2 + 4, ring.head)
    while driver.peek(ring) is not None:
        found.append(driver.pop(ring))
    assert [done.cid for done in found] == cids
    assert [done.sq_head for done in found] == list(range(1, 9))


def test_an_event_waits_for_room_in_the_queue():
    driver = start(io=False)
    driver.write(CC, 0)
    driver.enable(size=2)
    admin = driver.rings[0]
    cid = driver.push(admin, AER)
    driver.ring_doorbell(admin)
    driver.push(admin, GET_FEATURES, dword10=1)
    driver.ring_doorbell(admin)
    driver.write(0x1000 + 8 * 5, 1)
    assert driver.pop(admin).cid == cid + 1
    assert driver.pop(admin).cid == cid


@pytest.mark.parametrize("register", [ASQ, ACQ])
def test_an_admin_queue_that_is_not_there_is_fatal(register):
    driver = start(io=False)
    driver.write(CC, 0)
    driver.write(register, 1 << 40, 8)
    driver.write(CC, ENABLE)
    driver.write(0x1000, 1)
    assert driver.read(CSTS) == 1 | FATAL
    driver.write(CC, 0)
    assert driver.enable() == 1


def test_without_bus_mastering_nothing_runs(driver):
    driver.function.write_config(4, 2, 2)
    driver.push(driver.rings[1], FLUSH, 1)
    driver.ring_doorbell(driver.rings[1])
    assert driver.read(CSTS) == 1 | FATAL


def test_data_that_cannot_be_reached_is_a_transfer_error(driver):
    for opcode in (READ, WRITE):
        done = driver.io(opcode, 0, 1, [1 << 40])
        assert (done.status, done.retry) == (0x004, True)
    assert driver.io(READ, 0, 1, [driver.alloc()]).status == 0


# Interrupts


def test_the_line_is_up_while_completions_wait(driver):
    assert driver.function.intx is False
    driver.heard.clear()
    ring = driver.rings[1]
    driver.push(ring, FLUSH, 1)
    driver.push(ring, FLUSH, 1)
    driver.ring_doorbell(ring)
    assert [(i.kind, i.asserted) for i in driver.heard] == [(Kind.INTX, True)]
    driver.pop(ring)
    assert driver.function.intx
    driver.write(INTMS, 1)
    assert (driver.read(INTMC), driver.function.intx) == (1, False)
    driver.write(INTMC, 1)
    assert (driver.read(INTMS), driver.function.intx) == (0, True)
    driver.pop(ring)
    assert not driver.function.intx


def test_each_queue_has_its_vector():
    driver = start(io=False)
    function = driver.function
    at = function.read_config(0x34, 1)
    while function.read_config(at, 1) != 0x11:
        at = function.read_config(at + 1, 1)
    function.write_config(at + 2, 2, 0x8000)
    for vector in range(9):
        driver.write(0x2000 + 16 * vector, 0xFEE00000, 8)
        driver.write(0x2008 + 16 * vector, 0x40 + vector)
        driver.write(0x200C + 16 * vector, 0)
    driver.make_queues(1, vector=3)
    driver.make_queues(2, vector=8)
    driver.make_queues(3, vector=8, interrupts=0)
    driver.heard.clear()
    for id in (1, 2, 3):
        driver.run(id, FLUSH, 1)
    assert [(i.kind, i.vector, i.data) for i in driver.heard] == [(Kind.MSIX, 3, 0x43), (Kind.MSIX, 8, 0x48)]
    assert driver.run(0, CREATE_CQ, prp1=0, dword10=0xF0004, dword11=9 << 16 | 1).status == 0x108
