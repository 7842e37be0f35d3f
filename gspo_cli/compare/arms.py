"""Arms: the runs of one algorithm and its settings, their names, and the commands that reproduce them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.compare.runs import StoredRun
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import composed
from gspo_cli.config.formulas import (
    advantage_formula,
    formula,
    mean_formula,
    ratio_formula,
    value_formula,
)
from gspo_cli.config.typed import HYDRA_PLAIN, is_typeable, override
from gspo_cli.console.words import number
from gspo_cli.errors import UserError
from gspo_cli.run.identity import WRITTEN, leaves

NOT_GIVEN = ("seed", "logging.run_name", *WRITTEN)


def arms_of(runs: Sequence[StoredRun], algorithms: Sequence[str]) -> dict[str, list[StoredRun]]:
    """Runs by the name of their arm, sorted by seed. Arms come in the order of `algorithms`, then by name."""
    groups: dict[str, list[StoredRun]] = {}
    for run in sorted(runs, key=lambda each: (each.seed, each.folder)):
        groups.setdefault(run.arm_key, []).append(run)
    names = _names([own[0] for own in groups.values()])
    options = [entry.split()[0] for entry in algorithms]

    def place(pair: tuple[str, list[StoredRun]]) -> tuple[int, int, str]:
        option = pair[1][0].algorithm["name"]
        return options.index(option) if option in options else len(options), len(pair[0].split()), pair[0]

    return dict(sorted(zip(names, groups.values(), strict=True), key=place))


def _names(firsts: Sequence[StoredRun]) -> list[str]:
    """One name per arm: its algorithm's, followed by the settings that are not the defaults where several
    arms share an algorithm."""
    found = []
    for run in firsts:
        alike = [other for other in firsts if other.algorithm["name"] == run.algorithm["name"]]
        settings = [arm_settings(other) for other in alike]
        differing = sorted(
            key
            for key in {key for each in settings for key in each}
            if len({json.dumps(each.get(key)) for each in settings}) > 1
        )
        found.append(_name(run, alike, differing))
    return found


def arm_settings(run: StoredRun) -> dict[str, Any]:
    """What makes the arm of a run: the settings of its algorithm, and others by their whole dotted keys."""
    return {**leaves(run.algorithm), **run.apart}


def _name(run: StoredRun, alike: Sequence[StoredRun], differing: Sequence[str]) -> str:
    short = [_with(other, [key for key in differing if not _usual(other, key)]) for other in alike]
    if len(set(short)) == len(alike):
        return short[alike.index(run)]
    return _with(run, differing)


def _with(run: StoredRun, keys: Sequence[str]) -> str:
    own = arm_settings(run)
    return " ".join([run.algorithm["name"], *(f"{key}={_short(own.get(key))}" for key in keys)])


def _usual(run: StoredRun, key: str) -> bool:
    """Whether a setting of the algorithm is that of its option; where this installation lacks the option,
    none is."""
    _, *groups = _groups(run)
    usual = _options(*groups) or {}
    name = key if key in run.apart else f"algorithm.{key}"
    return name in usual and usual[name] == arm_settings(run).get(key)


def _short(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def baseline_of(arms: Mapping[str, Sequence[StoredRun]], wanted: str | None) -> str:
    """The arm that the others are compared with: `wanted`, else grpo, else the first. Raises UserError if
    `wanted` is not exactly one of the arms."""
    if wanted is None:
        plain = [name for name, runs in arms.items() if runs[0].algorithm["name"] == "grpo"]
        return plain[0] if plain else next(iter(arms))
    name = wanted.replace("algorithm.", "")
    found = [arm for arm in arms if arm == name]
    found = found or [arm for arm, runs in arms.items() if runs[0].algorithm["name"] == name]
    if len(found) != 1:
        raise UserError(f"compare.baseline={wanted}: is not one of the arms; choose one of {'; '.join(arms)}")
    return found[0]


def objective(run: StoredRun) -> str:
    """The objective with its mean, ratio, advantage and learning rate, as the start card has them."""
    algorithm = run.settings.algorithm
    parts = [
        f"{formula(algorithm)}, {mean_formula(algorithm)}",
        ratio_formula(algorithm),
        advantage_formula(algorithm),
        value_formula(algorithm),
        f"learning rate {number(algorithm.learning_rate)}",
        "routing replay" if algorithm.routing_replay else "",
        f"range calibrated to clip {algorithm.clip_fraction:g} of tokens" if algorithm.is_calibrated else "",
    ]
    return "; ".join(part for part in parts if part)


def overrides(run: StoredRun) -> list[str] | None:
    """The arguments of gspo-train that reproduce the arm, apart from the seed: options, and the settings that
    differ from them, quoted for a shell. None if this installation lacks one of the options, or a key or a
    value cannot be typed."""
    groups = _groups(run)
    usual, own = _options(*groups), leaves(run.config)
    if usual is None or not all(map(HYDRA_PLAIN.fullmatch, own)):
        return None
    changed = [key for key, value in own.items() if usual.get(key, value) != value or key not in usual]
    presets = "model.presets."  # other settings interpolate them, and are listed themselves
    given = [key for key in changed if key not in NOT_GIVEN and not key.startswith(presets)]
    if not all(is_typeable(own[key]) for key in given):
        return None
    return [*groups, *(override(key if key in usual else f"+{key}", own[key]) for key in given)]


def _groups(run: StoredRun) -> tuple[str, str, str]:
    """The options of a run, as overrides."""
    task, label, _ = run.subject
    return override("task", task), override("model", label), override("algorithm", run.algorithm["name"])


@cache
def _options(*groups: str) -> Mapping[str, Any] | None:
    """All settings of these options by dotted key; None if this installation lacks one of them."""
    try:
        return leaves(resolved_settings(composed(groups)))
    except (UserError, OmegaConfBaseException):
        return None


def resolved_settings(node: DictConfig) -> dict[str, Any]:
    """A configuration as it is saved in config.yaml."""
    # to_container's type covers lists and scalars too; of a DictConfig it returns a dict
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True, enum_to_str=True))


def options(settings: CompareConfig) -> list[str]:
    """The settings of a report on given folders that are given, as they are typed."""
    found = [f"compare.baseline={settings.baseline}"] if settings.baseline else []
    for name in ("level", "smallest"):
        value = getattr(settings, name)
        found += [f"compare.{name}={value:g}"] if settings.is_given(name) else []
    found += [f"compare.threshold={settings.threshold:g}"] if settings.threshold is not None else []
    return [*found, *([f"compare.allow=[{','.join(settings.allow)}]"] if settings.allow else [])]


def reproduce(arms: Mapping[str, Sequence[StoredRun]], settings: CompareConfig) -> list[str]:
    """The commands that repeat the comparison and each arm. Where a run's options are not installed here,
    its saved config.yaml is used."""
    folders = sorted({run.folder for runs in arms.values() for run in runs})
    commands = [shlex.join(["gspo-compare", *folders, *options(settings)])]
    for runs in arms.values():
        seeds: dict[str, list[int]] = {}  # of each configuration of the arm
        for run in runs:
            given = overrides(run)
            if given is None:
                again, saved = (shlex.quote(f"{run.folder}{end}") for end in ("-again", "/config.yaml"))
                resume = override("resume", f"{run.folder}-again")
                commands.append(f"mkdir {again} && cp {saved} {again}/ && gspo-train {resume}")
            else:
                seeds.setdefault(" ".join(given), []).append(run.seed)
        for text, own in seeds.items():
            multirun = "-m " if len(own) > 1 else ""
            commands.append(f"gspo-train {multirun}{text} seed={','.join(map(str, sorted(own)))}")
    return commands
