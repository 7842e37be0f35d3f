"""Settings that depend on each other: sizes of an iteration, and lengths against the model's positions.

A default that does not fit what was given follows it. conf/ writes such defaults as `${fitted_size:name}` and
`${fitted_length:name}`, resolvers that are here, and `notes` reports what followed. Given values that
contradict each other stay as they are: `RunConfig` refuses them, with values that fit."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.auto_hardware import written
from gspo_cli.config.choices import MinibatchBy
from gspo_cli.config.rollout_schema import RolloutConfig

FITTED = (
    "${fitted_size:",
    "${fitted_length:",
    "${fitted_minibatch:",
)  # how a default that follows other settings is written
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


def given_in(node: DictConfig, group: str) -> dict[str, Any]:
    """The settings of a group that do not follow others, by name, as they are written."""
    return {key: text for key, text in written(node, group).items() if not str(text).startswith(FITTED)}


def sizes_of(node: DictConfig) -> tuple[Sizes, Sizes]:
    """The presets of a composed node with the sizes that were given, and what fits of them."""
    preset = node.model.presets
    presets = Sizes(preset.num_generations, preset.generations_per_iteration, preset.updates_per_rollout)
    given = {key: value for key, value in given_in(node, "training").items() if key in asdict(presets)}
    wanted = replace(presets, **{key: value for key, value in given.items() if _counts(value)})
    if any(not _counts(value) for value in (*given.values(), *asdict(presets).values())):
        return wanted, wanted  # a reference or not a size, which the schema checks
    return wanted, fitted_sizes(given, presets, _given_processes(node))


def _given_processes(node: DictConfig) -> int:
    """Processes on all nodes where they are given; 1 where the visible GPUs decide."""
    hardware = written(node, "hardware")
    given: list[Any] = [hardware.get(key) for key in ("processes", "nodes")]
    return math.prod([value for value in given if _counts(value)])


def _counts(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def lengths_of(node: DictConfig) -> tuple[tuple[int, int], tuple[int, int], int | None]:
    """Prompt and completion length of a composed node before they follow others, what fits of them, and the
    model's positions, None where they are not known yet."""
    given = given_in(node, "rollout")
    default = RolloutConfig()
    wanted = tuple(
        node.rollout[name] if name in given else OmegaConf.select(node, key, default=getattr(default, name))
        for name, key in LENGTHS.items()
    )
    positions = known_positions(node.model.base or node.model.name, node.model.shape.positions)
    if positions is None or not all(map(_counts, wanted)):
        return wanted, wanted, positions
    return wanted, fitted_lengths(wanted, positions, given), positions


def fitted_size(name: str, *, _root_: DictConfig) -> int:
    """training.`name` where it is not given: the resolver `fitted_size`."""
    value: int = getattr(sizes_of(_root_)[1], name)
    return value


def fitted_minibatch(*, _root_: DictConfig) -> str:
    """training.minibatch_by where it is not given: the resolver `fitted_minibatch`."""
    training = _root_.training
    total, group, updates = (
        training[name] for name in ("generations_per_iteration", "num_generations", "updates_per_rollout")
    )
    whole = all(map(_counts, (total, group, updates))) and total // group % updates == 0
    return (MinibatchBy.group if whole else MinibatchBy.answer).value


def fitted_length(name: str, *, _root_: DictConfig) -> int:
    """rollout.`name` where it is not given: the resolver `fitted_length`."""
    return lengths_of(_root_)[1][list(LENGTHS).index(name)]


def default_lengths(*, _root_: DictConfig) -> list[str]:
    """The lengths that were not given: the resolver `default_lengths`."""
    given = given_in(_root_, "rollout")
    return [name for name in LENGTHS if name not in given]


def notes(*, _root_: DictConfig) -> list[str]:
    """What followed other settings, in sentences: the resolver `notes`."""
    before, after = (asdict(sizes) for sizes in sizes_of(_root_))
    changed = {key: value for key, value in after.items() if value != before[key]}
    fixed = [f"training.{key}={value}" for key, value in after.items() if key not in changed]
    processes = _given_processes(_root_)
    fixed += [f"{processes} processes"] if processes > 1 else []
    found = [
        f"training.{key}={value}: in place of the default {before[key]}, to fit {' and '.join(fixed)}"
        for key, value in changed.items()
    ]
    return [*found, *length_notes(*lengths_of(_root_))]


def length_notes(lengths: tuple[int, int], fitting: tuple[int, int], positions: int | None) -> list[str]:
    """What became of default lengths that do not fit the model's positions; nothing where these are not
    known."""
    room = f"to fit the model's {positions or 0:,} positions"
    return [
        f"rollout.{name}={after}: in place of the default {before}, {room}"
        for name, before, after in zip(LENGTHS, lengths, fitting, strict=True)
        if before != after
    ]
