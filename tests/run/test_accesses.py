"""What an instruction does to a device's registers is what it does to memory, the processor being the judge."""

import signal

from run.test_tracer import run, said

#: Instructions as functions of rdi, rsi and rcx: what those are afterwards.
MACHINE = """
page = mmap.mmap(-1, 4096, prot=7)
function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

def call(code, rdi, rsi=0, rcx=0):
    out = (ctypes.c_uint64 * 3)()
    # mov r8, rcx; mov rcx, rdx; ...; cld; mov [r8], rdi; mov [r8 + 8], rsi; mov [r8 + 16], rcx; ret
    page[:] = bytes.fromhex("4989C8 4889D1" + code + "FC 498938 49897008 49894810 C3").ljust(4096, b"\\xCC")
    function(rdi, rsi, rcx, ctypes.addressof(out))
    return list(out)

def address(buffer, at=0):
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer, at))
"""
#: Loads from [rdi], and stores to [rdi], by register 0, 9 or 17; the first word says what processor they need.
LOADS = """
sse2 0 0F1007 0F2807 660F1007 660F2807 F30F6F07 660F6F07 660F6E07 F30F7E07 F30F1007 F20F1007
sse2 9 F3440F6F0F 66440F6E0F F2440F100F
pni 0 F20FF007
sse4_1 0 660F382A07
avx 0 C5FA6F07 C5FE6F07 C5FC1007 C5FC2807 C5FFF007 C5F96E07 C5FA7E07 C5FA1007 C5FB1007 C4E2792A07
avx 9 C57E6F0F C57C100F
avx512f 0 62F1FE486F07 62F17C481007 62F17D486F07
avx512vl 0 62F1FE086F07 62F1FE286F07
avx512vl 17 62E1FE286F0F
avx512f 17 62E1FE486F0F 62E17D086E0F
avx512bw 0 62F17F486F07
"""
STORES = """
sse2 0 0F1107 0F2907 660F1107 F30F7F07 660F7F07 660FE707 0F2B07 660F7E07 660FD607 F30F1107 F20F1107
sse2 9 F3440F7F0F
avx 0 C5FA7F07 C5FE7F07 C5FC2907 C5FDE707 C5F97E07 C5FB1107
avx 9 C57E7F0F
avx512f 0 62F1FE487F07
avx512vl 17 62E1FE287F0F
avx512f 17 62E1FE487F0F
"""
#: How all of a register is loaded from [rsi] and stored to [rsi + 64]: the widest that the processor has.
WHOLE = """
with open("/proc/cpuinfo") as info:
    has = set(next(line for line in info if line.startswith("flags")).split())
if "avx512f" in has:
    FILL = {0: "62F1FE486F06", 9: "6271FE486F0E", 17: "62E1FE486F0E"}
    SPILL = {0: "62F1FE487F4601", 9: "6271FE487F4E01", 17: "62E1FE487F4E01"}
elif "avx" in has:
    FILL, SPILL = {0: "C5FE6F06", 9: "C57E6F0E"}, {0: "C5FE7F4640", 9: "C57E7F4E40"}
else:
    FILL, SPILL = {0: "F30F6F06", 9: "F3440F6F0E"}, {0: "F30F7F4640", 9: "F3440F7F4E40"}

def forms(text):
    for line in text.strip().splitlines():
        need, number, *codes = line.split()
        for code in codes if need in has else ():
            yield int(number), code

def aligned(size):
    buffer = mmap.mmap(-1, size)
    return buffer, address(buffer)

bar, chance = mapped(device), random.Random(3)
at = address(bar) + 0x80
state, mine = aligned(4096)
memory, copy = aligned(4096)
wrong, done = [], 0
"""


def test_loads_of_vectors_do_with_the_bar_what_they_do_with_memory():
    code = f"""
for number, code in forms({LOADS!r}):
    os.pwrite(device, chance.randbytes(24), 0x80)
    memory[:64] = b"".join(os.pread(device, 8, 0x80 + part) for part in range(0, 64, 8))
    results, pattern = [], chance.randbytes(64)
    for place in (copy, at):
        state[:64] = pattern
        call(FILL[number] + code + SPILL[number], place, mine)
        results.append(state[64:128].hex())
    done += 1
    if results[0] != results[1]:
        wrong.append((code, *results))
print(done > 12, *wrong)
"""
    assert said(MACHINE + WHOLE + code) == ["True"]


def test_stores_of_vectors_do_with_the_bar_what_they_do_with_memory():
    code = f"""

for number, code in forms({STORES!r}):
    # What would start a transfer stays 0.
    state[:64] = chance.randbytes(24) + bytes(40)
    memory[:64], zeros = bytes(64), bytes(24)
    os.pwrite(device, zeros, 0x80)
    for place in (copy, at):
        call(FILL[number] + code, place, mine)
    done += 1
    if os.pread(device, 24, 0x80) != memory[:24]:
        wrong.append((code, os.pread(device, 24, 0x80).hex(), memory[:24].hex()))
print(done > 10, *wrong)
"""
    assert said(MACHINE + WHOLE + code) == ["True"]


def test_masked_moves_do_with_the_bar_what_they_do_with_memory():
    code = """
# vmovdqu64 from and to [rdi] under k1, which is set from rcx; some clear what is not chosen
for form, number in (("62F1FE496F07", 0), ("62F1FEC96F07", 0), ("62E1FE296F0F", 17), ("62E1FEA96F0F", 17),
                     ("62F1FE497F07", 0), ("62E1FE297F0F", 17)) if "avx512bw" in has else ():
    for mask in range(8):
        memory[:64] = chance.randbytes(24) + bytes(40)
        state[:64] = chance.randbytes(24) + bytes(40)
        os.pwrite(device, memory[:24], 0x80)
        results = []
        for place in (copy, at):
            call("C4E1FB92C9" + FILL[number] + form + SPILL[number], place, mine, mask)
            results.append(state[64:128].hex())
        done += 1
        if results[0] != results[1] or os.pread(device, 24, 0x80) != memory[:24]:
            wrong.append((form, mask, *results, os.pread(device, 24, 0x80).hex(), memory[:24].hex()))
print(done in (0, 48), *wrong)
"""
    assert said(MACHINE + WHOLE + code) == ["True"]


def test_memory_functions_of_any_size_work_on_the_bar():
    code = """
bar = mapped(device)
low, high = bytes(range(1, 9)), bytes(range(9, 25))
print(all(len(ctypes.string_at(address(bar), size)) == size for size in (*range(1, 140), 2048, 5000)))
for size in (*range(1, 140), 2048, 5000):
    # Where no register is.
    ctypes.memmove(address(bar) + 0x8000, bytes(size), size)
    ctypes.memset(address(bar) + 0x8000, 1, size)
ctypes.memmove(address(bar) + 0x80, low + high, 24)
print(os.pread(device, 24, 0x80) == low + high)
ctypes.memset(address(bar) + 0x80, 5, 24)
print(os.pread(device, 24, 0x80) == 24 * b"\\5")
"""
    assert said(MACHINE + code) == ["True"] * 3


#: One device is accessed by instructions, its twin by calls: an edu's registers answer to accesses of some widths only.
COPIES = """
bar, twin, memory = mapped(device), bound(1), mmap.mmap(-1, 4096)
at, mine = address(bar) + 0x80, address(memory)

def reset():
    for edu in (device, twin):
        for part in range(3):
            os.pwrite(edu, bytes(range(16 * part + 1, 16 * part + 9)), 0x80 + 8 * part)

def read(edu, width, count=24):
    return b"".join(os.pread(edu, width, 0x80 + part) for part in range(0, count, width))

def write(data, width, offset=0x80):
    for part in range(0, len(data), width):
        os.pwrite(twin, data[part : part + width], offset + part)

def moved(code, rdi, rsi, rcx):
    after = call(code, rdi, rsi, rcx)
    return "{:+}{:+}{:+}".format(after[0] - rdi, after[1] - rsi, after[2])
"""


def test_copies_go_element_by_element_in_both_directions_and_restart():
    code = """
for width, code in ((1, "F3A4"), (2, "F366A5"), (4, "F3A5"), (8, "F348A5")):
    reset()
    print(moved(code, mine, at, 24 // width), memory[:24] == read(twin, width))
    memory[:24] = bytes(range(0x40, 0x58))
    write(memory[:24], width)
    print(moved(code, at, mine, 24 // width), read(device, 8) == read(twin, 8))
reset()
print(moved("FDF348A5", mine + 16, at + 16, 3), memory[:24] == read(twin, 8))
print(moved("48A5", mine, at + 8, 7), memory[:8] == read(twin, 8)[8:16])
print(moved("F348A5", at + 8, at, 2), read(device, 8) == 3 * read(twin, 8, 8))
print(moved("F3A4", at, mine, 0), moved("F348A5", mine, at, 400), memory[:24] == read(device, 8))
reset()
ctypes.memmove(mine, at, 24)
print(memory[:24] == read(twin, 8))
"""
    assert said(MACHINE + COPIES + code) == [
        *["+24+24+0", "True"] * 8,
        *["-24-24+0", "True", "+8+8+7", "True", "+16+16+0", "True", "+0+0+0", "+3200+3200+0", "True", "True"],
    ]


def test_fills_go_element_by_element():
    code = """
for width, code in ((1, "F3AA"), (2, "F366AB"), (4, "F3AB"), (8, "F348AB")):
    reset()
    write(3 * b"87654321"[:width], width)
    fill = "48B83837363534333231" + code  # mov rax, ...
    print(moved(fill, at, 0, 3), read(device, 8) == read(twin, 8))
"""
    assert said(MACHINE + COPIES + code) == [word for width in (1, 2, 4, 8) for word in (f"+{3 * width}+0+0", "True")]


def test_a_copy_that_fails_on_its_way_has_done_what_came_before():
    code = """
pages = mmap.mmap(-1, 8192)
ctypes.CDLL(None).mprotect(ctypes.c_void_p(address(pages) + 4096), 4096, 0)
reset()
child = os.fork()
if not child:
    call("F348A5", address(pages) + 4080, at, 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pages[4080:4096] == read(twin, 8)[:16])
"""
    done = run(MACHINE + COPIES + code)
    assert done.stdout.split() == [str(-signal.SIGBUS), "True"]
    assert "bus error of python" in done.stderr


def test_an_access_that_reaches_out_of_the_bar_is_a_bus_error():
    # movdqu xmm0, [rdi]
    done = run(MACHINE + "bar = mapped(device)\ncall('F30F6F07', address(bar) + (1 << 20) - 8)")
    assert done.returncode == -signal.SIGBUS
    assert "the access crosses an end of the BAR" in done.stderr


def test_what_is_not_carried_out_is_a_bus_error_and_the_log_says_why():
    done = run(MACHINE + "bar = mapped(device)\ncall('F00FC107', address(bar))")  # lock xadd [rdi], eax
    assert done.returncode == -signal.SIGBUS
    assert "bus error of python" in done.stderr
    assert "is no access that is carried out on a device" in done.stderr
