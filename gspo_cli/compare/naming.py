"""Arms: runs of one algorithm section, their names, and the overrides that make them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.compare.runs import StoredRun, arm_key
from gspo_cli.config.compose import composed
from gspo_cli.config.schema import AlgorithmConfig
from gspo_cli.console.words import number, override
from gspo_cli.errors import UserError
from gspo_cli.run.identity import leaves

RATIOS = {"token": "w_t", "sequence": "s", "sequence_token": "s_t"}
NOT_GIVEN = ("seed", "resume", "logging.run_name")


def arms_of(runs: Sequence[StoredRun], algorithms: Sequence[str]) -> dict[str, list[StoredRun]]:
    """Runs by the name of their arm, by seed within it. Arms come in the order of `algorithms`, then by
    name."""
    groups: dict[str, list[StoredRun]] = {}
    for run in sorted(runs, key=lambda each: (each.seed, each.folder)):
        groups.setdefault(arm_key(run), []).append(run)
    names = _names([own[0] for own in groups.values()])
    options = [entry.split()[0] for entry in algorithms]

    def place(pair: tuple[str, list[StoredRun]]) -> tuple[int, int, str]:
        option = pair[1][0].algorithm["name"]
        return options.index(option) if option in options else len(options), len(pair[0].split()), pair[0]

    return dict(sorted(zip(names, groups.values(), strict=True), key=place))


def _names(firsts: Sequence[StoredRun]) -> list[str]:
    """One name for each arm: its algorithm's, with what is not usual of it where several share that."""
    found = []
    for run in firsts:
        alike = [other for other in firsts if other.algorithm["name"] == run.algorithm["name"]]
        differing = sorted(
            key
            for key in {key for other in alike for key in other.algorithm}
            if len({json.dumps(other.algorithm.get(key)) for other in alike}) > 1
        )
        found.append(_name(run, alike, differing))
    return found


def _name(run: StoredRun, alike: Sequence[StoredRun], differing: Sequence[str]) -> str:
    short = [_with(other, [key for key in differing if not _usual(other, key)]) for other in alike]
    if len(set(short)) == len(alike):
        return short[alike.index(run)]
    return _with(run, differing)


def _with(run: StoredRun, keys: Sequence[str]) -> str:
    return " ".join([run.algorithm["name"], *(f"{key}={_plain(run.algorithm.get(key))}" for key in keys)])


def _usual(run: StoredRun, key: str) -> bool:
    """Whether a setting of the algorithm is the schema's default, or the preset of the model."""
    value = run.algorithm.get(key)
    level = "token" if run.algorithm["ratio_level"] == "token" else "sequence"
    preset = run.config["model"]["presets"][level]
    if key in preset:
        return value == preset[key]
    default = next((field.default for field in fields(AlgorithmConfig) if field.name == key), MISSING)
    return value == (default.value if isinstance(default, Enum) else default)


def _plain(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def baseline_of(arms: Mapping[str, Sequence[StoredRun]], wanted: str | None) -> str:
    """The arm that the others are held against: `wanted`, else grpo, else the first. Raises UserError where
    `wanted` is none or several."""
    if wanted is None:
        plain = [name for name, runs in arms.items() if runs[0].algorithm["name"] == "grpo"]
        return plain[0] if plain else next(iter(arms))
    name = wanted.replace("algorithm.", "")
    found = [arm for arm in arms if arm == name]
    found = found or [arm for arm, runs in arms.items() if runs[0].algorithm["name"] == name]
    if len(found) != 1:
        raise UserError(f"compare.baseline={wanted}: must be one of the arms {'; '.join(arms)}; name one")
    return found[0]


def objective(run: StoredRun) -> str:
    """The objective in one line, with its clip band and learning rate."""
    algorithm = run.algorithm
    ratio, widths = (
        RATIOS[algorithm["ratio_level"]],
        (algorithm["clip_range_left"], algorithm["clip_range_right"]),
    )
    left, right = ("unbounded" if width is None else number(width) for width in widths)
    terms = {
        "min": f"min({ratio} A, clip({ratio}) A), clip range {left} / {right}",
        "stop_gradient": f"sg[clip({ratio})] A log pi(y_t), clip range {left} / {right}",
        "none": f"{ratio} A, nothing clipped",
    }
    parts = [
        terms[algorithm["clip_mode"]],
        algorithm["aggregation"],
        f"rate {number(algorithm['learning_rate'])}",
    ]
    if algorithm["beta"]:
        parts.append(f"beta {number(algorithm['beta'])}")
    if algorithm["routing_replay"]:
        parts.append("routing replay")
    if algorithm["clip_calibration"] != "none":
        parts.append(f"band calibrated to clip {algorithm['clip_fraction']:g} of tokens")
    return ", ".join(parts)


def overrides(run: StoredRun) -> list[str] | None:
    """What gspo-train is given to make the arm again, seed aside: options, and settings that are not theirs.
    None where this installation does not have the options."""
    task, label, _ = run.subject
    groups = (f"task={task}", f"model={label}", f"algorithm={run.algorithm['name']}")
    usual = _options(*groups)
    if usual is None:
        return None
    own = leaves(run.config)
    changed = [key for key, value in own.items() if usual.get(key, value) != value or key not in usual]
    presets = "model.presets."  # read by interpolation: what they decide is listed itself
    given = [key for key in changed if key not in NOT_GIVEN and not key.startswith(presets)]
    return [*groups, *(("" if key in usual else "+") + _override(key, own[key]) for key in given)]


@cache
def _options(*groups: str) -> Mapping[str, Any] | None:
    """All settings of these options, by dotted key; None where this installation lacks one."""
    try:
        return leaves(OmegaConf.to_container(composed(groups), resolve=True, enum_to_str=True))
    except (UserError, OmegaConfBaseException):
        return None


def _override(key: str, value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return f"{key}={_plain(value)}"
    return override(key, value) if isinstance(value, str) else f"'{key}={json.dumps(value)}'"
