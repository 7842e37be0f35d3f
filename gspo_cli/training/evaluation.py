"""Held-out evaluation: the same problems and random numbers for every seed and iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Any

from gspo_cli.config.schema import RunConfig
from gspo_cli.console.reporting import ShownSample
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.conversations import Start
from gspo_cli.rollout.engine import Sampling
from gspo_cli.training.collecting import ConversationRunner, Progress
from gspo_cli.training.metrics import mean
from gspo_cli.types import FinishReason, Problem, Trajectory

EVALUATION_SEED = 20250718  # used by evaluation only, so that runs of all seeds share the same draws


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """Probability that k of `samples` answers include a success, without replacement (2107.03374, Eq. 1)."""
    return 1.0 - comb(samples - successes, k) / comb(samples, k)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation: the record for evals.jsonl, the greedy answers in the order of the
    problems, and for each problem its sampled ones (none where `evaluation.samples` is 0)."""

    record: dict[str, Any]
    greedy: list[Trajectory]
    sampled: list[list[Trajectory]]

    def by_problem(self, shown: int, iteration: int) -> dict[str, Any]:
        """For heldout.jsonl, the evaluation of `iteration`: which problems were solved (None: excluded), of
        how many sampled answers how many solve it, and the greedy conversations of the first `shown`
        problems."""
        scored = [[t.solved for t in group if t.excluded is None] for group in self.sampled]
        return {
            "iteration": iteration,
            "problems": [t.problem.id for t in self.greedy],
            "solved": [t.solved if t.excluded is None else None for t in self.greedy],
            "sampled": [[sum(group), len(group)] for group in scored] if scored else None,
            "conversations": [vars(ShownSample.of(t, iteration)) for t in self.greedy[:shown]],
        }


@dataclass(frozen=True)
class Evaluator:
    """Everything an evaluation needs except the problems."""

    config: RunConfig
    runner: ConversationRunner

    def evaluate(
        self, problems: Sequence[Problem], progress: Progress = lambda done, total, note: None
    ) -> Evaluation:
        """One greedy answer per problem, and `evaluation.samples` sampled ones. `progress` is called
        with the number of finished conversations and of all.

        score: share of problems solved greedily; reward: their mean reward; pass@1 and pass@k from the
        samples. Excluded conversations do not count; None if all were excluded."""
        samples, count = self.config.evaluation.samples, len(problems)
        total = count * (1 + samples)
        greedy = self._answers(problems, self._greedy(), 1, _part(progress, 0, count, total))
        progress(count, total, "")
        record: dict[str, Any] = {
            "score": mean([t.solved for t in greedy if t.excluded is None]),
            "reward": mean([t.reward for t in greedy if t.reward is not None]),
            "mean_length": mean([t.num_actions for t in greedy]),
            "num_turns": mean([t.num_turns for t in greedy]),
            "clipped_ratio": mean([t.finish_reason is FinishReason.length for t in greedy]),
            "num_problems": len(problems),
            "excluded": sum(t.excluded is not None for t in greedy),
        }
        groups: list[list[Trajectory]] = []
        if samples:
            part = _part(progress, count, total - count, total)
            drawn = self._answers(problems, self._sampled(), samples, part)
            groups = [drawn[i : i + samples] for i in range(0, len(drawn), samples)]
            solved = [[t.solved for t in group if t.excluded is None] for group in groups]
            for k in sorted({1, samples}):
                chances = [pass_at_k(len(each), sum(each), k) for each in solved if len(each) >= k]
                record[f"pass@{k}"] = mean(chances)
        progress(total, total, "")
        return Evaluation(record, greedy, groups)

    def greedy_score(self, problems: Sequence[Problem], progress: Progress) -> float | None:
        """Share of `problems` solved greedily; None if all conversations were excluded."""
        answers = self._answers(problems, self._greedy(), 1, progress)
        return mean([t.solved for t in answers if t.excluded is None])

    def sampled_score(
        self, problems: Sequence[Problem], progress: Progress | None = None
    ) -> tuple[float, int]:
        """Share of `problems` solved by one sampled answer each, and how many tokens these answers have with
        their prompts."""
        answers = self._answers(problems, self._sampled(), 1, progress)
        tokens = sum(len(t.token_ids) for t in answers)
        return mean([t.solved for t in answers if t.excluded is None]) or 0.0, tokens

    def _greedy(self) -> Sampling:
        return Sampling(
            0.0, 1.0, 0, self.config.rollout.max_completion_length, self.runner.prompts.chat.stop_ids
        )

    def _sampled(self) -> Sampling:
        rollout = self.config.rollout
        return replace(
            self._greedy(), temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k
        )

    def _answers(
        self, problems: Sequence[Problem], sampling: Sampling, count: int, progress: Progress | None
    ) -> list[Trajectory]:
        starts = [
            [Start(problem, (i, g), derived_seed(EVALUATION_SEED, "environment", i)) for g in range(count)]
            for i, problem in enumerate(problems)
        ]
        return self.runner.run(starts, sampling, EVALUATION_SEED, progress=progress)[0]


def _part(progress: Progress, before: int, size: int, total: int) -> Progress:
    """The progress of `size` conversations that come after `before` others, of `total`. A rank runs a share
    of them; its progress stands for that of all."""

    def reported(done: int, of: int, note: str) -> None:
        progress(before + size * done // max(1, of), total, note)

    return reported
