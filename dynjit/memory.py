"""Address space that is reserved at once and filled by the operating system page by page.

Arrays made here never move and never need to grow: a page costs memory from its first write on.  `release` gives the
pages behind a mark back.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
from typing import Any

import numpy as np

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MADV_HUGEPAGE") else 0x40)
# each array starts this many bytes farther behind the start of its pages than the one before: where arrays were equally
# far behind addresses that a cache does not tell apart, equal indices of theirs would evict each other
SKEW, SKEWS = 17 * 64, 32
LEAST = 1 << 20  # bytes; a system that cannot reserve even this cannot run a model either


arrays = itertools.count()


def map_pages(nbytes: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    return mmap.mmap(-1, min(nbytes, 1 << 32))  # Windows counts reserved pages as used ones


def address_space() -> float:
    """Bytes of address space that the process may use."""
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 34
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def machine_memory() -> int:
    """Bytes of memory that the machine has; where it does not tell, more than any has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 62


def reserve(count: int, dtype: Any, huge: bool = False, share: int = 128) -> np.ndarray:
    """An array of up to `count` zeroed elements; fewer where the process may not reserve so much.

    huge: ask for 2 MiB pages (fewer faults and misses of the translation buffer; coarser use of memory).
    share: where address space is limited, the array takes at most 1 / share of it.
    Raises MemoryError if not even 1 MiB can be reserved.
    """
    itemsize, skew = np.dtype(dtype).itemsize, next(arrays) % SKEWS * SKEW
    nbytes = int(min(count * itemsize + skew, address_space() / share))
    while True:
        try:
            pages = map_pages(nbytes)
            break
        except (OSError, ValueError, OverflowError):
            nbytes //= 2
            if nbytes < LEAST:
                raise MemoryError(f"cannot reserve {count * itemsize} bytes of address space") from None
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, min(count, (len(pages) - skew) // itemsize), skew)


def release(array: np.ndarray, start: int, stop: int) -> None:
    """Gives the whole pages of array[start:stop] back to the system; their elements read as zero afterwards."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    owner: Any = array
    while not isinstance(owner, (mmap.mmap, memoryview)):
        owner = owner.base
    pages: Any = owner.obj if isinstance(owner, memoryview) else owner
    first = array.ctypes.data - np.frombuffer(pages, np.uint8).ctypes.data
    size = mmap.PAGESIZE
    begin = -(-(first + start * array.itemsize) // size) * size
    end = (first + stop * array.itemsize) // size * size
    if end > begin:
        pages.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def share(array: np.ndarray, count: int, used: int) -> None:
    """Maps the pages of array[:count] anew, shared with processes that are forked later; keeps array[:used].

    Raises OSError where the system cannot do that.
    """
    kept, skew = array[:used].copy(), array.ctypes.data % mmap.PAGESIZE  # nothing lies in front of the array
    first, nbytes = array.ctypes.data - skew, count * array.itemsize + skew
    if not hasattr(mmap, "MAP_SHARED"):
        raise OSError("parameters cannot be shared on this system")
    remap = ctypes.CDLL(None, use_errno=True).mmap
    remap.restype = ctypes.c_void_p
    remap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fixed = 0x10  # MAP_FIXED of Linux and macOS
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | fixed | NORESERVE
    if remap(first, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != first:
        raise OSError(ctypes.get_errno(), "parameters cannot be shared")
    array[:used] = kept
