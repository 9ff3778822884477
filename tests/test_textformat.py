"""The text model format: byte for byte DyNet's, both ways, and safe against files of any kind."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from dynjit.errors import ModelFileError
from dynjit.textformat import LOOKUP_PARAMETER, PARAMETER, Block, find_block, read_blocks, write_blocks

# written by DyNet 2.1: W = arange(6).reshape(2, 3) / 7 with a gradient of ones, vectors, no numbers at all, a table
DYNET_FILE = b"""\
#Parameter# /W {2,3} 194 FULL_GRAD
+0.00000000e+00 +4.28571433e-01 +1.42857149e-01 +5.71428597e-01 +2.85714298e-01 +7.14285731e-01 \n\
+1.00000000e+00 +1.00000000e+00 +1.00000000e+00 +1.00000000e+00 +1.00000000e+00 +1.00000000e+00 \n\
#Parameter# /_0 {2} 33 ZERO_GRAD
-1.50000000e+00 -1.50000000e+00 \n\
#Parameter# /sub/q {1} 17 ZERO_GRAD
+1.00000002e+30 \n\
#Parameter# /_1 {0,3} 1 ZERO_GRAD

#LookupParameter# /E {2,3} 97 ZERO_GRAD
+1.51853502e-01 +8.60903680e-01 -1.37890399e-01 +8.68234694e-01 -1.05437028e+00 -8.20301473e-01 \n"""


def block(name="/W", dims=(2, 3), gradient=None, kind=PARAMETER, seed=1):
    values = np.random.default_rng(seed).standard_normal(int(np.prod(dims))).astype(np.float32)
    return Block(kind, name, dims, values, gradient)


def dynet_blocks():
    ones = np.ones(6, np.float32)
    table = [1.51853502e-01, 8.60903680e-01, -1.37890399e-01, 8.68234694e-01, -1.05437028e00, -8.20301473e-01]
    return [
        Block(PARAMETER, "/W", (2, 3), (np.arange(6).reshape(2, 3) / 7).astype(np.float32).ravel(order="F"), ones),
        Block(PARAMETER, "/_0", (2,), np.full(2, -1.5, np.float32)),
        Block(PARAMETER, "/sub/q", (1,), np.array([1e30], np.float32)),
        Block(PARAMETER, "/_1", (0, 3), np.zeros(0, np.float32)),
        Block(LOOKUP_PARAMETER, "/E", (2, 3), np.array(table, np.float32)),
    ]


def assert_same(first, second):
    assert (first.kind, first.name, first.dims) == (second.kind, second.name, second.dims)
    assert first.values.dtype == np.float32
    np.testing.assert_array_equal(first.values, second.values)
    assert (first.gradient is None) == (second.gradient is None)
    if first.gradient is not None:
        np.testing.assert_array_equal(first.gradient, second.gradient)


# ---- round trips ---------------------------------------------------------------------


def test_writes_the_bytes_of_dynet(tmp_path):
    write_blocks(tmp_path / "model", dynet_blocks())
    assert (tmp_path / "model").read_bytes() == DYNET_FILE


def test_reads_what_dynet_wrote(tmp_path):
    (tmp_path / "model").write_bytes(DYNET_FILE)
    blocks = list(read_blocks(tmp_path / "model"))
    assert len(blocks) == 5
    for got, expected in zip(blocks, dynet_blocks(), strict=True):
        assert_same(got, expected)
        assert_same(find_block(tmp_path / "model", expected.name), expected)


def test_every_float32_survives(tmp_path):
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)  # normal, denormal, infinite and not a number
    write_blocks(tmp_path / "model", [Block(PARAMETER, "/W", (len(values),), values), block("/after")])
    got, after = read_blocks(tmp_path / "model")
    np.testing.assert_array_equal(got.values, values)
    assert_same(after, block("/after"))


def test_nan_and_infinity_keep_the_width(tmp_path):
    write_blocks(tmp_path / "model", [Block(PARAMETER, "/W", (3,), np.array([np.nan, np.inf, -np.inf], np.float32))])
    header, numbers = (tmp_path / "model").read_bytes().splitlines(keepends=True)
    assert header.split()[3] == b"49"
    assert numbers == b"+nan            +inf            -inf            \n"


def test_nan_of_dynet_is_passed_over(tmp_path):
    (tmp_path / "model").write_bytes(b"#Parameter# /n {3} 49 ZERO_GRAD\n+nan -nan -inf \n" + DYNET_FILE)
    np.testing.assert_array_equal(next(read_blocks(tmp_path / "model")).values, [np.nan, np.nan, -np.inf])
    assert find_block(tmp_path / "model", "/_0").dims == (2,)


@pytest.mark.parametrize("word", [b"", b" "])
def test_old_headers_without_the_last_word(tmp_path, word):
    text = DYNET_FILE.replace(b" FULL_GRAD", word).replace(b" ZERO_GRAD", word)
    (tmp_path / "model").write_bytes(text)
    for got, expected in zip(read_blocks(tmp_path / "model"), dynet_blocks(), strict=True):
        assert_same(got, expected)
    assert_same(find_block(tmp_path / "model", "/E"), dynet_blocks()[-1])


def test_windows_line_ends(tmp_path):
    (tmp_path / "model").write_bytes(DYNET_FILE.replace(b"\n", b"\r\n"))
    for got, expected in zip(read_blocks(tmp_path / "model"), dynet_blocks(), strict=True):
        assert_same(got, expected)


def test_unicode_names_and_first_of_two(tmp_path):
    write_blocks(tmp_path / "model", [block("/größe", seed=1), block("/größe", seed=2)])
    assert_same(find_block(tmp_path / "model", "/größe"), block("/größe", seed=1))


def test_large_table_in_good_time(tmp_path):
    table = block("/E", (100, 10_000), kind=LOOKUP_PARAMETER)
    start = time.perf_counter()
    write_blocks(tmp_path / "model", [table])
    assert time.perf_counter() - start < 2
    start = time.perf_counter()
    assert_same(find_block(tmp_path / "model", "/E"), table)
    assert time.perf_counter() - start < 2


# ---- writing is all or nothing ---------------------------------------------------------


def test_append(tmp_path):
    path = tmp_path / "model"
    write_blocks(path, [block("/a")], append=True)
    write_blocks(path, [block("/b")], append=True)
    assert [read.name for read in read_blocks(path)] == ["/a", "/b"]
    write_blocks(path, [block("/c")])
    assert [read.name for read in read_blocks(path)] == ["/c"]


def test_append_to_a_truncated_file(tmp_path):
    (tmp_path / "model").write_bytes(DYNET_FILE[:-1])
    with pytest.raises(ModelFileError, match=r"model: cannot append, the file ends in the middle of a line"):
        write_blocks(tmp_path / "model", [block()], append=True)
    assert (tmp_path / "model").read_bytes() == DYNET_FILE[:-1]


@pytest.mark.parametrize("append", [False, True])
def test_failure_in_the_middle_leaves_the_old_file(tmp_path, append):
    def blocks():
        yield block("/new", (1000,))
        raise KeyboardInterrupt

    path = tmp_path / "model"
    path.write_bytes(DYNET_FILE)
    with pytest.raises(KeyboardInterrupt):
        write_blocks(path, blocks(), append=append)
    assert path.read_bytes() == DYNET_FILE
    assert os.listdir(tmp_path) == ["model"]


def test_killed_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(DYNET_FILE)
    program = f"""
import os, signal
import numpy as np
from dynjit.textformat import Block, write_blocks
def blocks():
    yield Block("Parameter", "/new", (100_000,), np.zeros(100_000, np.float32))
    os.kill(os.getpid(), signal.SIGKILL)
write_blocks({str(path)!r}, blocks())
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == DYNET_FILE
    write_blocks(path, [block()])
    assert_same(find_block(path, "/W"), block())


def test_full_disk_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "model"
    path.write_bytes(DYNET_FILE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write over the limit fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="model") as failure:
            write_blocks(path, [block("/new", (100_000,))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert failure.value.errno == errno.EFBIG
    assert failure.value.filename == str(path)
    assert path.read_bytes() == DYNET_FILE
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_devices_are_written_and_never_replaced():
    with pytest.raises(OSError, match="No space left"):
        write_blocks("/dev/full", [block("/new", (100_000,))])
    assert not os.path.isfile("/dev/full")


def test_missing_folder_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/model'$"):
        write_blocks(tmp_path / "nowhere" / "model", [block()])


def test_folders_and_protected_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError):
        write_blocks(tmp_path, [block()])
    (tmp_path / "model").write_bytes(DYNET_FILE)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    with pytest.raises(PermissionError, match=r"Permission denied: .*model"):
        write_blocks(tmp_path / "model", [block()])
    assert (tmp_path / "model").read_bytes() == DYNET_FILE
    assert os.listdir(tmp_path) == ["model"]


def test_mode_and_link_are_kept(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    write_blocks(tmp_path / "link", dynet_blocks())
    assert (tmp_path / "link").is_symlink()
    assert path.read_bytes() == DYNET_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (block(name="two words"), r"cannot write '#Parameter# two words"),
        (block(name="/a#b"), r"a header is `#Parameter# NAME"),
        (block(name=""), r"a header is `#Parameter# NAME"),
        (block(kind="Weight"), r"cannot write '#Weight# "),
        (block(dims=()), r"cannot write '#Parameter# /W \{\}"),
        (Block(PARAMETER, "/W", (2, 3), np.zeros(5, np.float32)), r"/W: needs values \(6,\) for \(2, 3\), got \(5,\)"),
        (Block(PARAMETER, "/W", (2, 3), np.zeros((2, 3), np.float32)), r"/W: needs values \(6,\).* got \(2, 3\)"),
        (block(gradient=np.zeros(5, np.float32)), r"/W: needs gradient \(6,\) for \(2, 3\), got \(5,\)"),
    ],
)
def test_blocks_that_do_not_fit_the_format(tmp_path, bad, message):
    (tmp_path / "model").write_bytes(DYNET_FILE)
    with pytest.raises(ValueError, match=message):
        write_blocks(tmp_path / "model", [block("/good"), bad])
    assert (tmp_path / "model").read_bytes() == DYNET_FILE


# ---- files that are not as they should be ----------------------------------------------


def replaced(old, new):
    assert old in DYNET_FILE
    return DYNET_FILE.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"hello\n", r"line 1: a header is .* this is b'hello"),
        (b"\x80\x04\x95\n", r"line 1: a header is UTF-8 text"),
        (b"\0" * 1_000_000, r"line 1: a header ends after 65536 bytes at most, this line goes on"),
        (replaced(b"#Parameter# /_0", b"#Parameter /_0"), r"line 4: a header is .* this is b'#Parameter /_0"),
        (replaced(b"/_0", b"/\x1b_0"), r"line 4: a header is "),
        (replaced(b"{2}", b"{}"), r"line 4: a header is "),
        (replaced(b"{2}", b"{-2}"), r"line 4: a header is "),
        (replaced(b"{2,3}", b"{2,3,1,1,1,1,1,1,1}"), r"line 1: a header is "),
        (replaced(b"33 ZERO_GRAD", b"33 HALF_GRAD"), r"line 4: a header is "),
        (replaced(b"{2} 33", b"{2} 34"), r"line 4: the header of /_0 says 34 bytes, its lines have 33"),
        (replaced(b"{2}", b"{3}"), r"line 5: the values of /_0 are 3 numbers, this line has 2"),
        (replaced(b"{2}", b"{1}"), r"line 5: the values of /_0 are 1 numbers, this line has 2"),
        (replaced(b"{2}", b"{999999999999,999999999999}"), r"line 4: /_0 .* has 9\d+ numbers, the file only \d+ more"),
        (replaced(b"-1.5", b"-1,5"), r"line 5: the values of /_0 are numbers with a blank between them, .* b','"),
        (replaced(b"-1.5", b"\r1.5"), r"line 5: the values of /_0 are numbers with a blank between them, .* b'\\r'"),
        (replaced(b"-1.5", b"1_15"), r"line 5: the values of /_0 are numbers with a blank between them, .* b'_'"),
        (replaced(b"-1.5", b"-1e5"), r"line 5: the values of /_0 are numbers: could not convert"),
        (replaced(b"e+30", b"e+39"), r"line 7: the values of /sub/q are float32 numbers, 1.\d+e\+39 is too large"),
        (replaced(b"+1.00000000e+00 \n", b"\n"), r"line 3: the gradient of /W are 6 numbers, this line has 5"),
        (replaced(b"FULL_GRAD", b"ZERO_GRAD"), r"line 1: the header of /W says 194 bytes, its lines have 97"),
        (
            DYNET_FILE[:-1],
            r"line 11: the file ends in the middle of the values of /E; every line ends with a line feed",
        ),
        (DYNET_FILE[:40], r"line 2: the file ends|line 1: /W"),
        (b"#Parameter# /W {0} 1 ZERO_GRAD\n", r"line 2: the values of /W are missing, the file ends"),
        (b"#Parameter# /W {2} 33 ZERO_GRAD\n" + b" " * 500 + b"\n", r"line 2: .* ends after 130 bytes at most"),
    ],
)
def test_what_is_wrong_and_where(tmp_path, text, message):
    (tmp_path / "model").write_bytes(text)
    with pytest.raises(ModelFileError, match=r"model, " + message):
        list(read_blocks(tmp_path / "model"))


def test_missing_files_and_names(tmp_path):
    (tmp_path / "model").write_bytes(DYNET_FILE)
    with pytest.raises(ModelFileError, match=r"model: Could not find key /X in the model file"):
        find_block(tmp_path / "model", "/X")
    with pytest.raises(ModelFileError, match=r"Could not read model from .*nothing: No such file"):
        list(read_blocks(tmp_path / "nothing"))
    with pytest.raises(ModelFileError, match=r"Could not read model from .*: Is a directory"):
        find_block(tmp_path, "/X")


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "model"
    starts = [i for i in range(len(DYNET_FILE) + 1) if DYNET_FILE[i : i + 1] in (b"#", b"")]
    block_starts = [i for i in starts if i == len(DYNET_FILE) or DYNET_FILE[i - 1 : i] in (b"\n", b"")]
    for length in range(len(DYNET_FILE)):
        path.write_bytes(DYNET_FILE[:length])
        if length in block_starts:  # whole blocks are missing: a reader of blocks cannot know
            assert len(list(read_blocks(path))) == block_starts.index(length)
        else:
            with pytest.raises(ModelFileError, match=r"model, line \d+: "):
                list(read_blocks(path))


def test_flipped_bits_are_noticed_or_harmless(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "model"
    noticed = 0
    for position in range(len(DYNET_FILE)):
        for bit in rng.sample(range(8), 2):
            text = bytearray(DYNET_FILE)
            text[position] ^= 1 << bit
            path.write_bytes(text)
            try:
                blocks = list(read_blocks(path))
            except ModelFileError as error:
                assert "model, line " in str(error)
                noticed += 1
                continue
            # what goes unnoticed is one other digit, letter of a name, or sign: the structure is the same
            shapes = [(block.values.shape, block.gradient is None) for block in blocks]
            assert shapes == [(block.values.shape, block.gradient is None) for block in dynet_blocks()]
            changed = [
                np.sum(got.values != old.values)
                + (0 if old.gradient is None else np.sum(got.gradient != old.gradient))
                + (got.name != old.name)
                + (got.kind != old.kind)
                for got, old in zip(blocks, dynet_blocks(), strict=True)
            ]
            assert sum(changed) <= 1
    assert noticed > 0.6 * 2 * len(DYNET_FILE)


def test_random_damage_never_does_more_than_fail(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "model"
    pieces = [b"#Parameter# ", b"/x ", b"{9}", b"\n", b" ", b"-", b"e", b"nan", b"1" * 30, b"\xff", b"\0", b"ZERO_GRAD"]
    for _ in range(500):
        text = bytearray(DYNET_FILE)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text))
            end = min(len(text), start + rng.choice((0, 1, 5, 40)))
            text[start:end] = rng.choice((b"", rng.choice(pieces), text[end : end + 20], rng.randbytes(3)))
        path.write_bytes(text)
        try:
            blocks = list(read_blocks(path))
            find_block(path, "/E")
        except ModelFileError:
            continue
        for got in blocks:
            assert got.values.shape == (int(np.prod(got.dims)),)


def test_oversized_headers_take_no_memory(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "model"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for dims in ("1000000000", "99999999,99999999", "999999999999999999,999999999999999999,9"):
        path.write_text(f"#Parameter# /W {{{dims}}} 17 ZERO_GRAD\n+1.00000000e+00 \n")
        with pytest.raises(ModelFileError, match=r"line 1: /W \(.* numbers, the file only 17 more bytes"):
            list(read_blocks(path))
        with pytest.raises(ModelFileError, match="Could not find key /X"):
            find_block(path, "/X")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
