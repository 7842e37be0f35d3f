"""Lengths of prompts and answers against the positions of the model that was loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from gspo_cli.config.compose import literal, load_saved, resolved_yaml
from gspo_cli.config.dependent import LENGTHS, fitted_lengths, length_notes
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.run.files import write_atomically
from gspo_cli.run.folder import RunFolder
from gspo_cli.types import Problem


def fit_lengths(
    config: RunConfig, positions: int, folder: RunFolder | None, warn: Callable[[str], None]
) -> None:
    """Lower the default lengths of `config` to the positions of the loaded model, and in the config.yaml of
    `folder`. Where the positions were known before, this changes nothing. Raises UserError where given
    lengths do not fit."""
    rollout = config.rollout
    lengths = rollout.max_prompt_length, rollout.max_completion_length
    given = [name for name in LENGTHS if name not in rollout.default_lengths]
    fitted = fitted_lengths(lengths, positions, given)
    if fitted != lengths:
        notes = length_notes(lengths, fitted, positions)
        for note in notes:
            warn(note)
        config.rollout = replace(rollout, max_prompt_length=fitted[0], max_completion_length=fitted[1])
        config.notes = [*config.notes, *notes]
        if folder is not None:
            changed = {f"rollout.{name}": value for name, value in zip(LENGTHS, fitted, strict=True)}
            change_config(folder, {**changed, "notes": config.notes})
    config.check_lengths(positions)


def change_config(folder: RunFolder, values: Mapping[str, Any]) -> None:
    """Change settings of a run's config.yaml, by dotted key."""
    if not folder.writes:
        return
    node = load_saved(folder.config)
    for key, value in values.items():
        OmegaConf.update(node, key, literal(value), merge=False)
    write_atomically(folder.config, resolved_yaml(node))


def fitting(
    problems: Sequence[Problem],
    prompts: Prompts,
    config: RunConfig,
    positions: int,
    split: str,
    warn: Callable[[str], None],
) -> list[Problem]:
    """Problems whose prompt is within rollout.max_prompt_length. Reports how many are not; raises UserError
    if none is, with a length that the model's positions allow."""
    cap, answer = config.rollout.max_prompt_length, config.rollout.max_completion_length
    lengths = [len(prompts.ids(problem.messages)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= cap]
    if not problems:
        raise UserError(f"task: has no {split} problems; give a file that contains some")
    if not kept:
        room = positions - (1 if "max_completion_length" in config.rollout.default_lengths else answer)
        longest = max((length for length in lengths if length <= room), default=None)
        fix = "use a model with more" if longest is None else f"use rollout.max_prompt_length={longest}"
        raise UserError(
            f"rollout.max_prompt_length={cap}: all {len(problems)} {split} problems are longer, by "
            f"{min(lengths) - cap} tokens at least, and the model has {positions:,} positions; {fix}"
        )
    if len(kept) < len(problems):
        warn(
            f"{len(problems) - len(kept)} of {len(problems)} {split} problems are left out: their "
            "prompt is over "
            f"rollout.max_prompt_length={cap}"
        )
    return kept
