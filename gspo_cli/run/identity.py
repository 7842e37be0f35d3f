"""Which run a folder contains: a fingerprint of what it computes, and its progress. Free of torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.choices import OldLogprobs, OnCollapse
from gspo_cli.config.compose import literal, load_saved, plain_values
from gspo_cli.config.stored import read_stored
from gspo_cli.errors import UserError
from gspo_cli.run.files import make_folder
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import RunStatus, known_summary

RESUMABLE = (  # settings that may change when a run is resumed: those that do not affect the results
    "training.num_outer_iterations",
    "training.on_collapse",
    "training.isolate_reward",
    "evaluation.",
    "checkpoint.",
    "logging.",
    "hardware.device",
    "hardware.precision",
    "hardware.threads",
    "hardware.tokens_per_microbatch",
    "hardware.processes",
    "hardware.zero_stage",
    "hardware.offload",
    "hardware.nodes",
    "rollout.batch_size",
    "rollout.cache_gb",
    "rollout.vllm_memory",
)
# exceptions, because they affect a comparison of runs: when a run ends, what is evaluated, rounding
MEASURED = (
    "training.num_outer_iterations",
    "training.on_collapse",
    "evaluation.",
    "hardware.device",
    "hardware.precision",
    "hardware.tokens_per_microbatch",
    "rollout.batch_size",
)
WRITTEN = (
    "resume",
    "notes",
    "hardware.chosen",
    "hardware.resized",
    "rollout.default_lengths",
    "rollout.old_logprobs_chosen",
    "rollout.old_logprobs_band",
)  # by the program


class State(Enum):
    """How much of a run a folder contains: nothing, a part of it (perhaps only the configuration), or all."""

    new = "new"
    started = "started"
    complete = "complete"


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether `key` is one of `patterns`, or below one that ends with a dot."""
    return any(key == each or (each.endswith(".") and key.startswith(each)) for each in patterns)


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key. Lists and empty sections are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved configuration that identify a run, by dotted key: all except where it runs,
    what it shows and what it saves."""
    ignored = tuple(key for key in RESUMABLE if key not in MEASURED)
    values = leaves(config)
    # rollbacks depend on which checkpoints exist
    if values.get("training.on_collapse") == OnCollapse.rollback.value:
        ignored = tuple(key for key in ignored if key != "checkpoint.")
    return {key: value for key, value in values.items() if not matches(key, (*WRITTEN, *ignored))}


def following(config: Mapping[str, Any]) -> set[str]:
    """Settings that follow the task, the model and the machine, by dotted key. They do not identify a run:
    they are known only once it starts."""
    rollout = config["rollout"]
    names = list(rollout.get("default_lengths", []))
    if rollout.get("old_logprobs") == OldLogprobs.auto.value or rollout.get("old_logprobs_chosen"):
        names.append("old_logprobs")
    found = {f"rollout.{name}" for name in names}
    return found | {"hardware.tokens_per_microbatch"} if config["hardware"].get("resized") else found


def fingerprint(config: Mapping[str, Any]) -> str:
    """Equal for two runs that compute and measure the same: sha256 of `computed`, as canonical JSON,
    without lengths that follow others."""
    values = {key: value for key, value in computed(config).items() if key not in following(config)}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def changed_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys of `computed` in which two resolved configurations differ, sorted, without lengths that follow
    others in one of them."""
    absent = object()
    first, second = computed(one), computed(other)
    keys = (first.keys() | second.keys()) - following(one) - following(other)
    return sorted(
        key
        for key in keys
        # what presets come to is in other keys
        if not key.startswith("model.presets.") and first.get(key, absent) != second.get(key, absent)
    )


def saved_settings(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder. Raises UserError if there is none."""
    return plain_values(load_saved(RunFolder(folder).config))


def state_of(folder: Path) -> State:
    """The progress of the run in `folder`. A run that stopped early or collapsed is complete. Raises
    UserError where its files cannot be read."""
    run = RunFolder(folder)
    if not run.config.exists():
        return State.new
    summary = known_summary(folder)
    if summary is None:
        return State.started
    if summary["status"] in (RunStatus.stopped_early, RunStatus.collapsed):
        return State.complete
    total = read_stored(run.config).training.num_outer_iterations
    over = summary["status"] == RunStatus.completed and summary["iterations"] >= total
    return State.complete if over else State.started


def _as_begun(wanted: DictConfig, began: Mapping[str, Any], config_yaml: str) -> str:
    """The configuration of a run that goes on, with what the program chose when it `began`."""
    rollout, hardware = began["rollout"], began["hardware"]
    chosen: list[str] = []
    automatic = OldLogprobs.auto.value
    if wanted.rollout.old_logprobs == automatic and rollout["old_logprobs"] != automatic:
        chosen += ["rollout.old_logprobs", "rollout.old_logprobs_chosen"]
    if wanted.rollout.get("cache_gb") is None:
        chosen += ["rollout.cache_gb"]
    if hardware["resized"]:
        chosen += ["hardware.tokens_per_microbatch", "hardware.resized"]
    for key in chosen:
        group, _, name = key.partition(".")
        OmegaConf.update(wanted, key, literal(began[group][name]))
    return OmegaConf.to_yaml(wanted) if chosen else config_yaml


def prepare(folder: Path, config_yaml: str) -> State:
    """Make `folder` ready for the run of a resolved configuration, so that `gspo-train resume=<folder>`
    starts or continues it. Returns the state it was found in; what is complete is left as it is.

    Raises UserError if it holds another run, another process trains in it, or it cannot be written."""
    run = RunFolder(folder)
    make_folder(folder, "hydra.run.dir")
    with run.locked():
        return _prepared(run, config_yaml)


def _prepared(run: RunFolder, config_yaml: str) -> State:
    folder, state = run.path, state_of(run.path)
    if state is State.new:
        run.create(config_yaml)
        return state
    wanted = OmegaConf.create(config_yaml)
    assert isinstance(wanted, DictConfig)
    saved = dict(read_stored(run.config).plain)  # with the defaults of settings that are newer than the run
    other = changed_settings(saved, plain_values(wanted))
    if other:
        its = computed(saved)
        given = " ".join(f"{key}={json.dumps(its[key])}" for key in other[:3] if key in its)
        more = ", ..." if other[3:] else ""
        fix = f", or give its settings: {given}{more}" if given else ""
        raise UserError(
            f"{folder}: contains a run with another configuration ({', '.join(other[:3])}{more}); choose "
            f"another folder{fix}"
        )
    if state is State.started:
        run.write_config(_as_begun(wanted, saved, config_yaml))
    return state
