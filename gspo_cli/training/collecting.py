"""Collecting: run conversations under a run's settings and score them, distributed over its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from gspo_cli.config.schema import RunConfig
from gspo_cli.console.words import quantity
from gspo_cli.errors import UserError
from gspo_cli.randomness import derived_seed, generator
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rewards.scoring import score_all
from gspo_cli.rollout.conversations import Limits, Start, roll_out
from gspo_cli.rollout.engine import RolloutEngine, Sampling
from gspo_cli.rollout.progress import RolloutProgress
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.training.credit import hardly_differ, informative, outlier_groups
from gspo_cli.training.metrics import Clock, rollout_metrics
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.types import Problem, Trajectory

if TYPE_CHECKING:  # its libraries are an extra
    from gspo_cli.agents.host import AgentHost

Item = TypeVar("Item")

# finished conversations, all conversations, and a note with the sampled tokens per second
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ConversationRunner:
    """Runs and scores conversations. Each of `ranks` runs its share of the groups; `generating` is the
    context in which generation is allowed, with gathered weights. `agents` runs the task's own agent, where
    it has one."""

    config: RunConfig
    reward: RewardFunction
    engine: RolloutEngine
    prompts: Prompts
    ranks: ProcessGroup = field(default_factory=ProcessGroup)
    generating: Callable[[], AbstractContextManager[None]] = nullcontext
    agents: AgentHost | None = None

    def run(
        self,
        groups: Sequence[Sequence[Start]],
        sampling: Sampling,
        seed: int,
        clock: Clock | None = None,
        progress: Progress | None = None,
    ) -> tuple[list[Trajectory], float]:
        """Run and score the conversations of all `groups`, none of which is split across ranks. `progress`
        hears of this rank's, where they take longer than a few seconds.

        -> all trajectories in the order of their starts, on every rank, and the mean probability mass that
        top_p and top_k left out."""
        clock = clock or Clock()
        starts = [start for group in self.ranks.share(groups) for start in group]
        with clock.timing("rollout"), self.generating():
            limits = Limits.of(self.config.rollout, self.engine)
            asked = (
                sampling,
                limits,
                seed,
                None if progress is None else RolloutProgress(_with_rate(progress)),
            )
            if self.agents is not None:
                trajectories, mass = self.agents.roll_out(starts, *asked)
            else:
                environment = self.config.task.environment
                trajectories, mass = roll_out(self.engine, self.prompts, environment, starts, *asked)
        with clock.timing("reward"):
            self.score(trajectories)
        notes = self._notes(trajectories)
        with clock.timing("rollout"):  # includes waiting for the slowest rank
            parts = self.ranks.gather([(trajectories, mass, notes)])
        if self.agents is not None:
            for _, _, noted in parts:
                self.agents.tell(noted)
        turns = [sum(t.num_turns for t in part) for part, _, _ in parts]
        total = sum(mass * count for (_, mass, _), count in zip(parts, turns, strict=True))
        return [t for part, _, _ in parts for t in part], total / max(1, sum(turns))

    def _notes(self, trajectories: Sequence[Trajectory]) -> dict[str, str]:
        """What to say of the agent's conversations, the reason of the first that failed included."""
        if self.agents is None:
            return {}
        failed = next((t for t in trajectories if t.excluded is not None), None)
        if failed is None:
            return self.agents.notes
        said = f"on problem {failed.problem.id} a conversation is left out: {failed.excluded}"
        return {**self.agents.notes, "failed": f"task.agent: {said}"}

    def score(self, trajectories: Sequence[Trajectory]) -> None:
        """Score `trajectories` by the run's reward under its limits."""
        training = self.config.training
        score_all(
            self.reward,
            trajectories,
            training.reward_errors,
            limit=training.reward_concurrency,
            timeout=training.reward_timeout,
        )


def _with_rate(progress: Progress) -> Callable[[int, int, float], None]:
    return lambda done, total, rate: progress(done, total, f"{quantity(rate)} tokens/s")


class Order(Protocol):
    """Which problems come next, of `problems`."""

    @property
    def problems(self) -> Sequence[Problem]: ...

    def take(self, cursor: int, count: int) -> list[Problem]:
        """Problems `cursor` to `cursor + count`."""


class ProblemOrder(Generic[Item]):
    """An endless iteration over `problems`, each once per epoch and reshuffled by seed and epoch. The
    position `cursor` alone determines what comes next."""

    def __init__(self, problems: Sequence[Item], seed: int) -> None:
        self.problems, self.seed = problems, seed
        self._epoch = -1
        self._order: np.ndarray = np.empty(0, dtype=int)

    def take(self, cursor: int, count: int) -> list[Item]:
        """Problems `cursor` to `cursor + count` of the iteration."""
        return [self._at(position) for position in range(cursor, cursor + count)]

    def _at(self, position: int) -> Item:
        epoch, place = divmod(position, len(self.problems))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self.seed, "order", epoch).permutation(len(self.problems))
        return self.problems[int(self._order[place])]


@dataclass(frozen=True)
class Collected:
    """`groups` to train on, all `trajectories` that were collected, the number of problems that were drawn
    for them, those skipped included, and metrics of sampling and scoring."""

    groups: list[list[Trajectory]]
    trajectories: list[Trajectory]
    problems_drawn: int
    metrics: dict[str, Any]


class Collector:
    """Collects `prompts_per_iteration` groups of `num_generations` answers by the current policy."""

    def __init__(
        self,
        config: RunConfig,
        runner: ConversationRunner,
        order: Order,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.runner, self.order, self.progress = config, runner, order, progress

    def collect(self, iteration: int, cursor: int, clock: Clock) -> Collected:
        """Draw problems from `cursor` on. With dynamic sampling, draw more until enough groups are
        informative or the rounds are used up; zero-variance groups then fill the rest, so that the step keeps
        its size."""
        algorithm, wanted = self.config.algorithm, self.config.training.prompts_per_iteration
        rounds = algorithm.dynamic_sampling_max_rounds if algorithm.dynamic_sampling else 1
        useful: list[list[Trajectory]] = []
        flat: list[list[Trajectory]] = []
        masses: list[float] = []
        position = cursor
        while len(masses) < rounds and len(useful) < wanted:
            drawn = len(useful) + len(flat)
            problems, position = self._draw(position, wanted - len(useful))
            groups, mass = self._round(iteration, problems, drawn, clock)
            for group, differs in zip(groups, informative(groups, algorithm), strict=True):
                (useful if differs else flat).append(group)
            masses.append(mass)
        everything = useful + flat
        trajectories = [trajectory for group in everything for trajectory in group]
        of_groups = {
            "frac_reward_zero_std": len(flat) / len(everything),
            "frac_reward_small_std": sum(hardly_differ(everything, algorithm)) / len(everything),
            "frac_reward_outlier": sum(outlier_groups(everything, algorithm)) / len(everything),
        }
        metrics = {
            **rollout_metrics(trajectories, self.config.training.num_generations),
            **(of_groups if algorithm.within_groups else {}),
            "sampling/rounds": len(masses),
            "sampling/skipped_problems": position - cursor - len(everything),
            "sampling/truncated_mass": sum(masses) / len(masses),
        }
        return Collected(everything[:wanted], trajectories, position - cursor, metrics)

    def _draw(self, position: int, count: int) -> tuple[list[Problem], int]:
        """The next `count` problems from `position` on whose prompt is not too long, and the position after
        them: of many problems, only the first ones are measured before training. Raises UserError where a
        whole epoch is too long."""
        cap, start = self.config.rollout.max_prompt_length, position
        found: list[Problem] = []
        while len(found) < count:
            (problem,) = self.order.take(position, 1)
            position += 1
            if self.config.task.runs_agent or len(self.runner.prompts.ids(problem.messages)) <= cap:
                found.append(problem)
            elif position - start - len(found) > len(self.order.problems):
                raise UserError(f"rollout.max_prompt_length={cap}: all problems are longer; use a higher one")
        return found, position

    def _round(
        self, iteration: int, problems: Sequence[Problem], drawn: int, clock: Clock
    ) -> tuple[list[list[Trajectory]], float]:
        """Groups of `problems`, which come after `drawn` others of this iteration."""
        config, size = self.config, self.config.training.num_generations
        seeds = [derived_seed(config.seed, "environment", iteration, drawn + i) for i in range(len(problems))]
        starts = [
            [Start(problem, (iteration, drawn + i, g), seed) for g in range(size)]
            for i, (problem, seed) in enumerate(zip(problems, seeds, strict=True))
        ]
        rollout = config.rollout
        sampling = Sampling(
            rollout.temperature,
            rollout.top_p,
            rollout.top_k,
            config.max_completion_length(iteration),
            self.runner.prompts.chat.stop_ids,
        )
        trajectories, mass = self.runner.run(starts, sampling, config.seed, clock, self.progress)
        return [trajectories[i : i + size] for i in range(0, len(trajectories), size)], mass
