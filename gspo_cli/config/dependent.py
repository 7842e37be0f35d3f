"""Settings that depend on each other: sizes of an iteration, and lengths against the model's positions.

A default that does not fit what was given follows it. conf/ writes such defaults as `${fitted_size:name}` and
`${fitted_length:name}`, resolvers that are here, and `notes` reports what followed. Given values that
contradict each other stay as they are: `RunConfig` refuses them, with values that fit."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.auto_hardware import written
from gspo_cli.config.choices import MinibatchBy
from gspo_cli.config.rollout_schema import RolloutConfig
from gspo_cli.config.sizes import LENGTHS, Sizes, fitted_lengths, fitted_sizes, known_positions

FITTED = (
    "${fitted_size:",
    "${fitted_length:",
    "${fitted_minibatch:",
)  # how a default that follows other settings is written


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
    of_pairs = {"num_generations": 2} if _reads_pairs(node) else {}
    return wanted, fitted_sizes(of_pairs | given, presets, _given_processes(node))


def _reads_pairs(node: DictConfig) -> bool:
    """Whether answers come from a file of pairs."""
    return OmegaConf.select(node, "algorithm.pairs") is not None


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
    fixed += ["algorithm.pairs"] if _reads_pairs(_root_) else []
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
