"""Which problems are trained on and which are held out: a fixed split, by a hash of the problem."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gspo_cli.config.checks import require
from gspo_cli.types import Problem


@dataclass(frozen=True)
class Split:
    """Training and held-out problems; `dropped` counts those left out of `train` because they are held out
    too, `notes` say what else is left out, and `stamp` is a hash of what was read. Problems with the same
    `key` are the same to a model, and next to each other in `train`."""

    train: Sequence[Problem]
    heldout: Sequence[Problem]
    dropped: int
    key: Callable[[Problem], str]
    notes: Sequence[str] = ()
    stamp: str = ""


def split(
    problems: Sequence[Problem],
    heldout: int | Sequence[Problem],
    key: Callable[[Problem], str],
) -> Split:
    """Hold out the given problems, or the first `heldout` in the order of a hash of `key`.

    Problems with equal keys are never on both sides, and the split does not depend on a seed. Raises
    UserError where train is empty."""
    ordered = sorted(problems, key=lambda problem: hashlib.sha256(key(problem).encode()).digest())
    if isinstance(heldout, int):
        setting, held, rest = f"task.heldout={heldout}", ordered[:heldout], ordered[heldout:]
    else:
        setting, held, rest = "task.heldout_path", list(heldout), ordered
    keys = {key(problem) for problem in held}
    train = [problem for problem in rest if key(problem) not in keys]
    require(train != [], f"{setting}: leaves none of {len(problems)} problems to train on; hold out fewer")
    return Split(tuple(train), tuple(held), len(rest) - len(train), key)
