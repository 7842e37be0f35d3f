"""Sizes of an iteration that fit each other, and lengths that fit the model's positions."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

NEAR = 2  # how many times as large as its preset a size may become to fit others
LENGTHS = {"max_prompt_length": "task.prompt_length", "max_completion_length": "task.answer_length"}
POSITIONS = ("max_position_embeddings", "n_positions")  # names in config.json


@dataclass(frozen=True)
class Sizes:
    """How many answers a prompt gets, an iteration has, and how many updates it makes."""

    num_generations: int
    generations_per_iteration: int
    updates_per_rollout: int

    def fit(self, processes: int) -> bool:
        """Whether every prompt gets all its answers, every update as many as the others, and every process a
        prompt."""
        total = self.generations_per_iteration
        whole = total % self.num_generations == 0 and total % self.updates_per_rollout == 0
        return whole and total // self.num_generations >= processes

    def nearest_total(self, processes: int) -> int:
        """The answers of an iteration that fit the two other sizes, nearest to the present ones."""
        step = math.lcm(self.num_generations, self.updates_per_rollout)
        least = math.ceil(processes * self.num_generations / step)
        # half of a step goes down: fewer answers take less time
        return step * max(1, least, math.ceil(self.generations_per_iteration / step - 0.5))


def fitted_sizes(given: Mapping[str, int], presets: Sizes, processes: int) -> Sizes:
    """`given` sizes, and the presets of the others, or what is nearest to them and fits; the presets where
    nothing near fits."""
    wanted = replace(presets, **given)
    if wanted.fit(processes):
        return wanted
    if "generations_per_iteration" not in given:
        return replace(wanted, generations_per_iteration=wanted.nearest_total(processes))
    total = wanted.generations_per_iteration
    found = wanted
    if "num_generations" not in given:
        most = total // processes
        found = replace(found, num_generations=_near_divisor(total, presets.num_generations, 2, most))
    if "updates_per_rollout" not in given:
        # an update of a single answer compares it with nothing
        most = max(1, total // 2)
        found = replace(found, updates_per_rollout=_near_divisor(total, presets.updates_per_rollout, 1, most))
    return found if found.fit(processes) else wanted


def _near_divisor(total: int, preset: int, least: int, most: int) -> int:
    """The divisor of `total` from `least` to `most` that is nearest to the preset; the preset itself where
    none is near."""
    found = [n for n in range(least, min(most, NEAR * preset) + 1) if total % n == 0]
    return min(found, key=lambda n: abs(math.log(n / preset)), default=preset)


def fitted_lengths(lengths: tuple[int, int], positions: int, given: Collection[str] = ()) -> tuple[int, int]:
    """Prompt and completion length as they are, or lowered to the model's positions: those in `given` are
    not. The shorter one keeps its length if it takes no more than half of the positions."""
    prompt, answer = lengths
    if prompt + answer <= positions:
        return lengths
    prompt_given, answer_given = (name in given for name in LENGTHS)
    if (prompt_given and answer_given) or max(prompt * prompt_given, answer * answer_given) >= positions:
        return lengths
    half = positions // 2
    if prompt_given or (prompt <= half and not answer_given):
        return prompt, positions - prompt
    if answer_given or answer <= half:
        return positions - answer, answer
    return positions - half, half


def known_positions(name: str, shape_positions: int) -> int | None:
    """Longest context of the model `name`, in tokens, as far as it is known without loading it: of an
    embedded model (`shape_positions`) and of a model folder. None if it is not known."""
    if name == "embedded":
        return shape_positions
    try:
        read = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    inner = read.get("text_config") if isinstance(read, dict) else None
    for values in (inner, read):
        if isinstance(values, dict):
            found = [values[key] for key in POSITIONS if isinstance(values.get(key), int)]
            if found:
                return found[0]
    return None
