"""DyNet's text model format: one block of lines for each parameter, read and written as DyNet does.

A block is a header, a line of values and, when the parameter holds a gradient, a line with that:

    #Parameter# /W {2,3} 97 ZERO_GRAD
    +0.00000000e+00 +4.28571433e-01 +1.42857149e-01 +5.71428597e-01 +2.85714298e-01 +7.14285731e-01

Each number takes 16 bytes with the space behind it, first axis fastest; 97 is the length of what follows the header.
Nine digits hold a float32 exactly, so a model survives a round trip unchanged.  The format has no checksum: a digit
that was changed into another digit cannot be noticed, everything else is an error that names the line.

Two differences from DyNet, for the better: NaN and infinity are padded to 16 bytes (DyNet writes 5, and then cannot
find the blocks behind them), and denormal numbers keep their value (DyNet writes 0).
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from dynjit.errors import ModelFileError

PARAMETER = "Parameter"
LOOKUP_PARAMETER = "LookupParameter"

NUMBER_NBYTES = 16
NUMBERS_PER_CHUNK = 1 << 16  # formatted at once: 1 MiB of text
MAX_HEADER_NBYTES = 1 << 16
MAX_NUMBER_NBYTES = 64  # of a number written by someone else, with its space

HEADER = re.compile(
    r"#(?P<kind>Parameter|LookupParameter)# (?P<name>[^\s#]+) \{(?P<dims>\d{1,18}(?:,\d{1,18}){0,7})\} "
    r"(?P<nbytes>\d{1,18})(?P<gradient> ZERO_GRAD| FULL_GRAD| ?)"
)
HEADER_RULE = "a header is `#Parameter# NAME {D0,D1,...} NBYTES ZERO_GRAD`, or #LookupParameter#, or FULL_GRAD"
NUMBER_CHARACTERS = b"0123456789+-.eE naifNAIF"


@dataclass
class Block:
    """One parameter as it stands in a model file.

    kind: PARAMETER or LOOKUP_PARAMETER; name: such as /lstm/W, without blanks and #.
    dims: as in the file; a table of n rows of shape (a, b) has (a, b, n).
    values, gradient: float32, flat, first axis fastest; the gradient is None where the file has none.
    """

    kind: str
    name: str
    dims: tuple[int, ...]
    values: np.ndarray
    gradient: np.ndarray | None = None


# ---- writing -----------------------------------------------------------------------


def write_blocks(path: str | os.PathLike[str], blocks: Iterable[Block], append: bool = False) -> None:
    """Write blocks to a model file, which is replaced as a whole, or not touched at all.

    append: keep what the file holds, and add the blocks behind it.
    Raises ValueError for a block that does not fit the format, ModelFileError when appending to a file that ends in
    the middle of a line, OSError when the folder is not writable or the disk is full.  The file is then as before.
    """
    path = os.path.realpath(os.fsdecode(path))
    with atomic_writer(path) as file:
        if append and os.path.isfile(path):
            copy_lines(path, file)
        for block in blocks:
            write_block(file, block)


@contextlib.contextmanager
def atomic_writer(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all is written, and vanishes when something fails."""
    if os.path.exists(path) and not os.path.isfile(path):  # /dev/stdout, a pipe: never replaced; a folder: an error
        with open(path, "wb") as file:
            yield file
        return
    if os.path.exists(path) and not os.access(path, os.W_OK):  # replacing would get around the protection
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    folder, base = os.path.split(path)
    temporary = os.path.join(folder, f".{base[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, path) from error  # the name that the user knows
        raise


def sync_folder(folder: str) -> None:
    # the new name survives a power failure only when its folder is on the disk too; not every system can do this
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_lines(path: str, file: IO[bytes]) -> None:
    with open(path, "rb") as old:
        if old.seek(0, io.SEEK_END):
            old.seek(-1, io.SEEK_END)
            if old.read(1) != b"\n":
                raise ModelFileError(f"{path}: cannot append, the file ends in the middle of a line")
        old.seek(0)
        shutil.copyfileobj(old, file, 1 << 20)


def write_block(file: IO[bytes], block: Block) -> None:
    values = checked_numbers(block, block.values, "values")
    gradient = None if block.gradient is None else checked_numbers(block, block.gradient, "gradient")
    dims = ",".join(map(str, block.dims))
    nbytes = NUMBER_NBYTES * len(values) + 1
    word = "ZERO_GRAD"
    if gradient is not None:
        nbytes, word = 2 * nbytes, "FULL_GRAD"
    header = f"#{block.kind}# {block.name} {{{dims}}} {nbytes} {word}"
    if not HEADER.fullmatch(header):
        raise ValueError(f"cannot write {header!r}: {HEADER_RULE}")
    file.write(header.encode() + b"\n")
    write_numbers(file, values)
    if gradient is not None:
        write_numbers(file, gradient)


def checked_numbers(block: Block, numbers: np.ndarray, what: str) -> np.ndarray:
    numbers = np.asarray(numbers, np.float32)
    if numbers.shape != (math.prod(block.dims),):
        raise ValueError(f"{block.name}: needs {what} ({math.prod(block.dims)},) for {block.dims}, got {numbers.shape}")
    return numbers


def write_numbers(file: IO[bytes], numbers: np.ndarray) -> None:
    for start in range(0, len(numbers), NUMBERS_PER_CHUNK):
        chunk = numbers[start : start + NUMBERS_PER_CHUNK]
        # one template for all numbers: 0.25 µs each, a third of formatting them one by one
        number_format = "%+.8e " if np.isfinite(chunk).all() else "%-+15.8e "
        file.write((number_format * len(chunk) % tuple(chunk.tolist())).encode())
    file.write(b"\n")


# ---- reading -----------------------------------------------------------------------


def read_blocks(path: str | os.PathLike[str]) -> Iterator[Block]:
    """The blocks of a model file in their order, each read when it is asked for.

    Raises ModelFileError, with file, line and rule, where the file is not as DyNet writes it.
    """
    with open_to_read(path) as file:
        reader = BlockReader(file, os.fspath(path))
        while header := reader.header():
            yield reader.block(header)


def find_block(path: str | os.PathLike[str], name: str) -> Block:
    """The first block called `name`; the blocks before it are passed over, whatever their numbers are.

    Raises ModelFileError where the file has no such block, or is not as DyNet writes it.
    """
    with open_to_read(path) as file:
        reader = BlockReader(file, os.fspath(path))
        while header := reader.header():
            if header["name"] == name:
                return reader.block(header)
            reader.skip(header)
    raise ModelFileError(f"{os.fspath(path)}: Could not find key {name} in the model file")


def open_to_read(path: str | os.PathLike[str]) -> io.BufferedReader:
    name = os.fspath(path)  # open() would also take the number of an open file, and close it
    try:
        return open(name, "rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"Could not read model from {name!s}: {reason}") from error


def dims_of(header: re.Match[str]) -> tuple[int, ...]:
    return tuple(map(int, header["dims"].split(",")))


class BlockReader:
    """Goes through an open model file line by line.

    By lines, and not by the byte counts of the headers: these are wrong where DyNet wrote NaN or infinity.
    """

    def __init__(self, file: io.BufferedReader, path: str) -> None:
        self.file = file
        self.path = path
        self.line_number = 0
        self.nbytes_left = os.fstat(file.fileno()).st_size

    def error(self, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.path}, line {self.line_number}: {problem}")

    def line(self, max_nbytes: int, what: str) -> bytes:
        """The next line without its end; empty at the end of the file."""
        line = self.file.readline(min(max_nbytes, self.nbytes_left + 1))
        self.line_number += 1
        self.nbytes_left -= len(line)
        if line and not line.endswith(b"\n"):
            if self.nbytes_left:
                raise self.error(f"{what} ends after {max_nbytes} bytes at most, this line goes on")
            raise self.error(f"the file ends in the middle of {what}; every line ends with a line feed")
        return line

    def header(self) -> re.Match[str] | None:
        """The header that stands next, None at the end of the file."""
        line = self.line(MAX_HEADER_NBYTES, "a header")
        if not line:
            return None
        try:
            header = HEADER.fullmatch(line.decode().rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise self.error("a header is UTF-8 text") from error
        if not header or not header["name"].isprintable():
            raise self.error(f"{HEADER_RULE}; this is {line[:100]!r}")
        return header

    def block(self, header: re.Match[str]) -> Block:
        name, dims = header["name"], dims_of(header)
        count = math.prod(dims)
        # nothing is reserved for a header's promise: a number takes a digit and a blank at least
        if 2 * count > self.nbytes_left:
            raise self.error(f"{name} {dims} has {count} numbers, the file only {self.nbytes_left} more bytes")
        header_line, before = self.line_number, self.nbytes_left
        values = self.numbers(count, f"the values of {name}")
        gradient = self.numbers(count, f"the gradient of {name}") if self.has_gradient(header) else None
        nbytes = before - self.nbytes_left
        promised = (NUMBER_NBYTES * count + 1) * (1 if gradient is None else 2)  # also where NaN is shorter
        if int(header["nbytes"]) not in (nbytes, promised):
            self.line_number = header_line
            raise self.error(f"the header of {name} says {header['nbytes']} bytes, its lines have {nbytes}")
        return Block(header["kind"], name, dims, values, gradient)

    def skip(self, header: re.Match[str]) -> None:
        max_nbytes = MAX_NUMBER_NBYTES * math.prod(dims_of(header)) + 2
        self.line(max_nbytes, f"the values of {header['name']}")
        if self.has_gradient(header):
            self.line(max_nbytes, f"the gradient of {header['name']}")

    def has_gradient(self, header: re.Match[str]) -> bool:
        """Whether a gradient follows the values that were just read."""
        if word := header["gradient"].strip():
            return word == "FULL_GRAD"
        return self.file.peek(1)[:1] not in (b"#", b"")  # old versions do not say it in the header

    def numbers(self, count: int, what: str) -> np.ndarray:
        line = self.line(MAX_NUMBER_NBYTES * count + 2, what)
        if not line:
            raise self.error(f"{what} are missing, the file ends")
        line = line.rstrip(b"\r\n")
        # float() takes more than we do: underscores, tabs, a carriage return where a sign has been
        if strange := line.translate(None, NUMBER_CHARACTERS):
            raise self.error(f"{what} are numbers with a blank between them, and have no {strange[:1]!r}")
        words = line.split()
        if len(words) != count:
            raise self.error(f"{what} are {count} numbers, this line has {len(words)}")
        try:
            numbers = np.array(list(map(float, words)))
        except ValueError as error:
            raise self.error(f"{what} are numbers: {error}") from error
        with np.errstate(over="ignore", under="ignore"):
            narrow = numbers.astype(np.float32)
        too_large = np.isinf(narrow) & np.isfinite(numbers)
        if too_large.any():
            raise self.error(f"{what} are float32 numbers, {numbers[too_large][0]} is too large")
        return narrow
