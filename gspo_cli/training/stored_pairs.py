"""Training on a file of preference pairs: what stands where a rollout stands, with answers that are given."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gspo_cli.config.checks import require
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.tasks.pairs import KEY, Pair, PairFile
from gspo_cli.training.cold_start import encode_demonstration
from gspo_cli.training.collecting import Collected, ProblemOrder
from gspo_cli.training.metrics import Clock
from gspo_cli.types import Demonstration, Message, Problem, Trajectory


class StoredPairs:
    """The pairs of a file that a run trains on, by place: two finished conversations each, the preferred one
    first, without rewards."""

    def __init__(self, file: PairFile, places: Sequence[int], prompts: Prompts) -> None:
        self.file, self.places, self.prompts = file, places, prompts

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> list[Trajectory]:
        return encoded(self.file[self.places[place]], self.prompts)


class PairCollector:
    """Stands in the place of a `Collector`: draws the pairs of an iteration, each once per epoch, and samples
    nothing."""

    def __init__(self, config: RunConfig, pairs: StoredPairs) -> None:
        self.pairs, self.count = pairs, config.training.prompts_per_iteration
        self.order = ProblemOrder(range(len(pairs)), config.seed)

    def collect(self, iteration: int, cursor: int, clock: Clock) -> Collected:
        """The pairs from `cursor` on, as groups of two."""
        with clock.timing("rollout"):
            groups = [self.pairs[place] for place in self.order.take(cursor, self.count)]
        return Collected(groups, [t for group in groups for t in group], self.count, {})


def read_pairs(config: RunConfig) -> PairFile | None:
    """The file of pairs of a run, None where it samples. Raises UserError if it cannot be used, as far as
    this is known without the model."""
    if config.algorithm.pairs is None:
        return None
    file = PairFile(config.algorithm.pairs)
    _check_count(config, len(file))
    return file


def encoded(pair: Pair, prompts: Prompts) -> list[Trajectory]:
    """The two conversations of a pair, as the policy would have produced them with the same words. Raises
    UserError if the chat template cannot write them."""
    try:
        return [_finished(pair, answer, prompts) for answer in (pair.chosen, pair.rejected)]
    except UserError as error:
        raise UserError(f"{pair.where}: {error}") from error


def _finished(pair: Pair, answer: str, prompts: Prompts) -> Trajectory:
    given = Demonstration((*pair.messages, Message("assistant", answer)), len(pair.messages))
    problem = Problem(Path(pair.where).name, prompts.messages(pair.messages), pair.chosen)
    return replace(encode_demonstration(prompts, given), problem=problem, turn_rewards=[0.0])


def usable_pairs(
    config: RunConfig,
    file: PairFile,
    prompts: Prompts,
    heldout: Sequence[Problem],
    warn: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StoredPairs:
    """The pairs of `file` that fit the lengths of the run, have two answers, and do not ask what one of the
    problems `heldout` asks. Reports how many are left out, and why. Raises UserError if those that are left
    do not make an iteration."""
    held = set() if config.task.runs_agent else {prompts.messages(problem.messages) for problem in heldout}
    places, left_out = array("q"), dict[str, list[tuple[str, int]]]()
    for place in range(len(file)):
        pair = file[place]
        unfit = _unfit(encoded(pair, prompts), config, held)
        if unfit is None:
            places.append(place)
        else:
            left_out.setdefault(unfit[0], []).append((pair.where, unfit[1]))
        progress(place + 1, len(file))
    said = [
        f"{len(found)} of {len(file)} pairs are left out, the first in {found[0][0]}: {reason}"
        + (f" (the longest has {longest} tokens)" if (longest := max(size for _, size in found)) else "")
        for reason, found in left_out.items()
    ]
    require(
        len(places) > 0,
        f"{KEY}={config.algorithm.pairs}: no pair can be used ({'; '.join(said)}); give others",
    )
    _check_count(config, len(places), said)
    for note in said:
        warn(f"{KEY}: {note}")
    return StoredPairs(file, places, prompts)


def _unfit(
    group: Sequence[Trajectory], config: RunConfig, held: set[tuple[Message, ...]]
) -> tuple[str, int] | None:
    """Why a pair is left out, and the tokens of what is too long (0: nothing is); None if it is used."""
    rollout, (chosen, rejected) = config.rollout, group
    prompt = len(chosen.token_ids) - chosen.num_actions
    answer = max(chosen.num_actions, rejected.num_actions)
    if chosen.token_ids == rejected.token_ids:
        return "both answers are the same", 0
    if prompt > rollout.max_prompt_length:
        return f"the prompt is over rollout.max_prompt_length={rollout.max_prompt_length}", prompt
    if answer > rollout.max_completion_length:
        return f"an answer is over rollout.max_completion_length={rollout.max_completion_length}", answer
    return ("the prompt is held out", 0) if chosen.problem.messages in held else None


def _check_count(config: RunConfig, count: int, left_out: Sequence[str] = ()) -> None:
    """Raise UserError if `count` pairs are fewer than an iteration takes."""
    training, needed = config.training, config.training.prompts_per_iteration
    if count >= needed:
        return
    total = 2 * count - 2 * count % math.lcm(2, training.updates_per_rollout)
    fewer = f"training.generations_per_iteration={total}"
    if total < 2 * training.updates_per_rollout:
        fewer = f"training.generations_per_iteration={2 * count} training.updates_per_rollout=1"
    why = f" ({'; '.join(left_out)})" if left_out else ""
    raise UserError(
        f"{KEY}={config.algorithm.pairs}: has {count} pairs{why}, and an iteration takes {needed}; use "
        f"{fewer}, or more pairs"
    )
