"""Lengths of prompts and answers against the positions of the model that was loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from gspo_cli.config.compose import literal, load_saved, resolved_yaml
from gspo_cli.config.dependent import length_notes
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.sizes import LENGTHS, fitted_lengths
from gspo_cli.errors import UserError
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.run.folder import RunFolder
from gspo_cli.tasks.problem_index import Problems
from gspo_cli.types import Problem

CHECKED = 1000  # of problems that are built when they are drawn, how many are measured before training


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
        changed = dict(zip(LENGTHS, fitted, strict=True))
        change_settings(config, folder, changed, length_notes(lengths, fitted, positions), warn)
    config.check_lengths(positions)


def make_room_for_tools(
    config: RunConfig,
    prompts: Prompts,
    problems: Sequence[Problem],
    positions: int,
    folder: RunFolder | None,
    warn: Callable[[str], None],
) -> None:
    """Raise rollout.max_prompt_length where it holds the prompts of a task but not, on top of them, the tools
    that the task announces, so that no problem would be left: the GSPO guide's 256 is meant for the former.
    Does nothing where the model's positions do not allow it."""
    cap, answer = config.rollout.max_prompt_length, config.rollout.max_completion_length
    announced = prompts.system.announced and prompts.system.tools
    if not announced or any(len(prompts.ids(problem.messages)) <= cap for problem in problems):
        return
    bare = Prompts(prompts.chat, replace(prompts.system, announced=False))
    held = [problem for problem in problems if len(bare.ids(problem.messages)) <= cap]
    longest = max((len(prompts.ids(problem.messages)) for problem in held), default=positions)
    if longest + answer > positions:
        return
    note = f"in place of {cap}, which holds the prompts but not the tools that the task announces"
    known = {*config.rollout.default_lengths, "max_prompt_length"}
    changed = {"max_prompt_length": longest, "default_lengths": sorted(known)}
    change_settings(config, folder, changed, [f"rollout.max_prompt_length={longest}: {note}"], warn)


def change_settings(
    config: RunConfig,
    folder: RunFolder | None,
    changed: Mapping[str, Any],
    notes: Sequence[str],
    warn: Callable[[str], None],
    group: str = "rollout",
) -> None:
    """Change settings of a group in `config`, and in the config.yaml of `folder`, and say so."""
    for note in notes:
        warn(note)
    setattr(config, group, replace(getattr(config, group), **changed))
    config.notes = [*config.notes, *notes]
    if folder is None or not folder.writes:
        return
    node = load_saved(folder.config)
    values = {**{f"{group}.{name}": value for name, value in changed.items()}, "notes": config.notes}
    for key, value in values.items():
        OmegaConf.update(node, key, literal(value), merge=False)
    folder.write_config(resolved_yaml(node))


def considered(problems: Sequence[Problem], count: int | None = None) -> Sequence[Problem]:
    """The problems that are looked at before training: all of a list, and of those that are built when they
    are drawn the first CHECKED, or `count` if that is more."""
    if not isinstance(problems, Problems):
        return problems
    return list(problems[: max(CHECKED, count or 0)])


def fitting(
    problems: Sequence[Problem],
    prompts: Prompts,
    config: RunConfig,
    positions: int,
    split: str,
    warn: Callable[[str], None],
) -> Sequence[Problem]:
    """Problems whose prompt is within rollout.max_prompt_length. Reports how many are not; raises UserError
    if none is, with a length that the model's positions allow. Of problems that are built when they are
    drawn, only those `considered` are measured; the others are when they are drawn. What an agent of the
    user's makes of a problem is not known before."""
    if isinstance(problems, Problems):
        first = considered(problems)
        fit = set(map(id, fitting(first, prompts, config, positions, f"first {split}", warn)))
        return problems.without(place for place, problem in enumerate(first) if id(problem) not in fit)
    if not problems:
        raise UserError(f"task: has no {split} problems; give a file that contains some")
    if config.task.runs_agent:
        return problems
    cap, answer = config.rollout.max_prompt_length, config.rollout.max_completion_length
    lengths = [len(prompts.ids(problem.messages)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= cap]
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
