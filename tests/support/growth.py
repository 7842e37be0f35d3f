"""How the time of a computation grows with its input, on machines that are busy with other things, too."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

TIMES = 8  # the larger input by the smaller one
SHORTEST = 0.002  # seconds below which fixed costs and the clock decide


def grows_linearly(compute: Callable[[int], object], size: int) -> bool:
    """Whether `compute(TIMES * size)` takes nearer to TIMES as long as `compute(size)` than to TIMES**2."""
    gc.collect()
    gc.disable()  # a collection belongs to what the session holds, not to this
    try:
        small, large = (_seconds(compute, each) for each in (size, TIMES * size))
    finally:
        gc.enable()
    return large < TIMES**1.5 * max(small, SHORTEST)


def _seconds(compute: Callable[[int], object], size: int) -> float:
    """Of this process alone, the shorter of two times."""
    found = []
    for _ in range(2):
        start = time.process_time()
        compute(size)
        found.append(time.process_time() - start)
    return min(found)
