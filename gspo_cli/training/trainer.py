"""The training loop: sample, judge, compare within groups, update; evaluate and save on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_cli.config.choices import ClipMode
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.policy import Policy
from gspo_cli.randomness import generator
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rollout.engine import RolloutEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.reporting import Reporter
from gspo_cli.run.reporting import Sample as ShownSample
from gspo_cli.tasks.base import Task
from gspo_cli.training.batch import Sample
from gspo_cli.training.checkpoint import Checkpoints, TrainerState
from gspo_cli.training.clock import Clock
from gspo_cli.training.conversing import Conversations
from gspo_cli.training.evaluation import Evaluator
from gspo_cli.training.metrics import peak_memory_gb, rollout_metrics, update_metrics
from gspo_cli.training.problem_order import ProblemOrder
from gspo_cli.training.sampler import GroupSampler
from gspo_cli.training.strategy import Strategy
from gspo_cli.training.update import Updater
from gspo_cli.types import Problem

NOISE_SHARE = 1 / 3  # of the band's narrower side: with more noise than this the clip acts at random
MAX_SKIPPED = 8  # updates in a row with a gradient that is not finite, after which going on is pointless


@dataclass
class Parts:
    """What a run is built of."""

    policy: Policy
    strategy: Strategy
    task: Task
    reward: RewardFunction
    engine: RolloutEngine
    train_problems: Sequence[Problem]
    heldout_problems: Sequence[Problem]


class Trainer:
    """Runs `config` over `parts`, writing to `folder` and telling `reporter` and `track`."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        folder: RunFolder,
        reporter: Reporter,
        track: Callable[[dict[str, Any], int], None] = lambda values, step: None,
    ) -> None:
        self.config, self.parts, self.folder = config, parts, folder
        self.reporter, self.track = reporter, track
        self.world = parts.strategy.world
        self.updater = Updater(parts.policy, config, parts.strategy)
        conversations = Conversations(
            config,
            parts.task,
            parts.reward,
            parts.engine,
            parts.policy.chat,
            self.world,
            parts.strategy.generating,
        )
        self.sampler = GroupSampler(config, conversations, ProblemOrder(parts.train_problems, config.seed))
        self.evaluator = Evaluator(config, conversations)
        self.checkpoints = Checkpoints(folder.checkpoints, config.checkpoint)
        self.state = TrainerState()
        self.stop_requested = False
        self._skipped_in_a_row = 0
        self._earlier_seconds, self._session_start = 0.0, time.perf_counter()

    def resume(self) -> None:
        """Continue from the last whole checkpoint, from which the policy was loaded; drop later log lines."""
        last = self.checkpoints.last
        if last is not None:
            self.state = self.checkpoints.restore(last, self.updater)
            self._earlier_seconds = self.state.wall_seconds
        self.folder.rewind(self.state.iteration if last is not None else -1)

    def train(self) -> str:
        """Train to the end, a stop request, or `evaluation.stop_at_score`. Returns the status of the run."""
        total = self.config.training.num_outer_iterations
        if self.state.initial_eval is None:
            self._evaluate(Clock())
            self._save()
        while self.state.iteration < total:
            if self._good_enough():
                return self._finish("stopped_early")
            if self.world.any(self.stop_requested):
                return self._finish("interrupted")
            self._iterate()
        return self._finish("completed")

    def _iterate(self) -> None:
        clock = Clock()
        iteration = self.state.iteration
        sampled = self.sampler.sample(iteration, self.state.cursor, clock)
        if all(t.reward is None for t in sampled.everything):
            raise UserError(
                f"training: every conversation was left out, the first because "
                f"{sampled.everything[0].excluded}; mend that, then continue with resume={self.folder.path}"
            )
        samples = self.sampler.samples(sampled.groups, self.updater)
        report = self.updater.run(samples, generator(self.config.seed, "minibatches", iteration), clock)
        self.state.iteration += 1
        self.state.cursor += sampled.problems_drawn
        self.state.num_tokens += sum(t.num_actions for t in sampled.everything)
        metrics = rollout_metrics(sampled.everything, self.config.training.num_generations)
        metrics |= sampled.metrics | update_metrics(report)
        self._record(metrics, sum(t.num_actions for t in sampled.everything), clock)
        self._show_samples(samples)
        self._check_health(metrics)
        self._evaluate_and_save()

    def _record(self, metrics: dict[str, Any], tokens: int, clock: Clock) -> None:
        state = self.state
        if state.first_reward is None:
            state.first_reward = metrics["reward"]
        state.last_reward = metrics["reward"]
        record = {
            "iteration": state.iteration,
            **metrics,
            "epoch": state.cursor / len(self.parts.train_problems),
            "num_tokens": state.num_tokens,
            "tokens_per_second": tokens / clock.total,
            **{f"time/{stage}": seconds for stage, seconds in clock.seconds.items()},
            "time/iteration": clock.total,
            "memory/peak_gb": max(self.world.gather([peak_memory_gb()])),
        }
        self.folder.append("metrics.jsonl", record)
        self.track(record, state.iteration)
        self.reporter.iteration(record)

    def _evaluate_and_save(self) -> None:
        iteration = self.state.iteration
        last = iteration == self.config.training.num_outer_iterations
        every = self.config.evaluation.every
        improved = False
        if last or (every and iteration % every == 0):
            improved = self._evaluate(Clock())
        if last or improved or iteration % self.config.checkpoint.every == 0:
            self._save()

    def _evaluate(self, clock: Clock) -> bool:
        """Evaluate, record, and say whether this is the best so far."""
        state = self.state
        with clock.timing("eval"):
            record, _ = self.evaluator.evaluate(
                self.parts.heldout_problems,
                lambda done, total: self.reporter.stage("evaluation", done, total),
            )
        record = {
            "iteration": state.iteration,
            **record,
            "num_tokens": state.num_tokens,
            "time/eval": clock.total,
        }
        self.folder.append("evals.jsonl", record)
        self.track({f"eval/{name}": value for name, value in record.items()}, state.iteration)
        self.reporter.evaluation(record)
        state.initial_eval = state.initial_eval or record
        state.last_eval = record
        improved = record["score"] is not None and (
            state.best_eval is None or _merit(record) > _merit(state.best_eval)
        )
        if improved:
            state.best_eval = record
        return improved

    def _finish(self, status: str) -> str:
        """Make sure that the last iteration is saved."""
        last = self.checkpoints.last
        if last is None or self.checkpoints.iteration(last) != self.state.iteration:
            self._save()
        return status

    def _save(self) -> None:
        self.state.wall_seconds = self.wall_seconds
        self.checkpoints.save(self.updater, self.state)

    @property
    def wall_seconds(self) -> float:
        """Seconds spent training, earlier sessions of a resumed run included."""
        return self._earlier_seconds + time.perf_counter() - self._session_start

    def _good_enough(self) -> bool:
        goal, last = self.config.evaluation.stop_at_score, self.state.last_eval
        return goal is not None and last is not None and (last["score"] or 0.0) >= goal

    def _show_samples(self, samples: Sequence[Sample]) -> None:
        count = self.config.logging.samples_per_iteration
        chosen = generator(self.config.seed, "shown", self.state.iteration).permutation(len(samples))[:count]
        shown = [
            ShownSample.of(s.trajectory, self.state.iteration, s.mean_advantage)
            for s in (samples[i] for i in chosen)
        ]
        for sample in shown:
            self.folder.append("samples.jsonl", vars(sample))
        if shown:
            self.reporter.samples(shown)

    def _check_health(self, metrics: dict[str, Any]) -> None:
        """Warn of noise as wide as the clip band and of dropped updates; give up when no update is finite."""
        error, algorithm = metrics["ratio/first_step_abs_err"], self.config.algorithm
        widths = [w for w in (algorithm.clip_range_left, algorithm.clip_range_right) if w is not None]
        if (
            error
            and widths
            and algorithm.clip_mode is not ClipMode.none
            and error > NOISE_SHARE * min(widths)
        ):
            self.reporter.warn(
                f"numerical noise of the ratio is {error:.1e}, over a third of the clip width "
                f"{min(widths):.1e}: "
                "answers are clipped at random; use hardware.precision=fp32 or a wider algorithm.clip_range"
            )
        if metrics["excluded"]:
            self.reporter.warn(
                "some answers were left out of training: see `excluded` in samples.jsonl and metrics"
            )
        skipped = metrics["updates_skipped"]
        self._skipped_in_a_row = (
            self._skipped_in_a_row + skipped if skipped == metrics["updates"] else skipped
        )
        if skipped:
            self.reporter.warn("a gradient was not finite: the update was dropped and the weights kept")
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise UserError(
                f"training: {self._skipped_in_a_row} updates in a row had a gradient that is not "
                "finite; lower "
                "algorithm.learning_rate or use hardware.precision=fp32, then resume from the last checkpoint"
            )


def _merit(record: dict[str, Any]) -> tuple[float, float]:
    """What makes one evaluation better than another."""
    return record["score"], record["reward"]
