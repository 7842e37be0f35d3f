"""Randomness derived from (run seed, purpose, place), so that no state has to be saved and the order of calls
does not matter."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *where: int) -> np.random.Generator:
    """Independent generator for one purpose and place, e.g. `generator(seed, "sample", iteration, row)`."""
    entropy = [seed, zlib.crc32(purpose.encode()), *where]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def derived_seed(seed: int, purpose: str, *where: int) -> int:
    """A 63-bit seed for one purpose at one place, for interfaces that take an integer."""
    return int(generator(seed, purpose, *where).integers(2**63))
