"""Random numbers: dropout, noise, and random tensors.

Random numbers are counted, not drawn one after the other: number i of a mini-batch item is a hash of the seed, of the
item's stream (each item of each node has its own) and of i.  So values do not depend on grouping, on the order of
execution, on the number type or on the device, and the backward pass meets the same numbers again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynjit import errors
from dynjit.errors import ShapeError
from dynjit.jit import kernel, scalar
from dynjit.op import Case, define
from dynjit.scalars import HALF, ONE, TWO, ZERO, log
from dynjit.shape import Result, Shape, dims_of

# ---- the numbers -----------------------------------------------------------------------------------------------------

GOLDEN, MIX1, MIX2 = (np.int64(n - (1 << 64)) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@scalar
def stream_key(seed, stream):  # type: ignore[no-untyped-def]
    """64 random bits for a stream: two rounds of SplitMix64 (Steele, Lea and Flood 2014), one for the seed."""
    z = seed
    for addend in (GOLDEN, stream):
        z += addend * GOLDEN
        z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * MIX1
        z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * MIX2
        z ^= (z >> 31) & 0x1FFFFFFFF
    return z


@scalar
def random_bits(key, i):  # type: ignore[no-untyped-def]
    """24 random bits: number i of the stream with a key.

    Source: Wellons 2018, hash-prospector, `triple32` (bias 0.0208, that of a random permutation), with half of the key
    before and half of it behind its first round.
    """
    x = np.uint32(np.uint32(i) + np.uint32(key))
    x = np.uint32((x ^ (x >> np.uint32(17))) * np.uint32(0xED5AD4BB))
    x = np.uint32((x ^ (x >> np.uint32(11))) + np.uint32(key >> 32))
    x = np.uint32(x * np.uint32(0xAC4C1B51))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x31848BAB))
    x = x ^ (x >> np.uint32(14))
    return np.int32(x >> np.uint32(8))
