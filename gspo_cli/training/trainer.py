"""The training loop: collect and score conversations, assign credit, update; evaluate and save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gspo_cli.config.choices import OnCollapse
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.typed import override
from gspo_cli.console.reporting import Reporter, ShownSample
from gspo_cli.diagnosis.history import Finding
from gspo_cli.errors import UserError
from gspo_cli.policy.policy import Policy
from gspo_cli.randomness import generator
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.rollout.engine import RolloutEngine
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import ENDED, RunStatus
from gspo_cli.tasks.levels import Level
from gspo_cli.training.batch import Sample
from gspo_cli.training.checkpoint import Checkpoints, TrainerState
from gspo_cli.training.collecting import Collector, ConversationRunner
from gspo_cli.training.credit import Group, compared, overlong, trainable, with_advantages
from gspo_cli.training.critic import value_metrics, with_value_advantages
from gspo_cli.training.curriculum import Curriculum
from gspo_cli.training.evaluation import Evaluation, Evaluator
from gspo_cli.training.metrics import Clock, mean, peak_memory_gb, update_metrics
from gspo_cli.training.monitor import Monitor
from gspo_cli.training.sharing import ALONE, Sharing
from gspo_cli.training.stored_pairs import PairCollector, StoredPairs
from gspo_cli.training.strategy import Strategy
from gspo_cli.training.update import Updater
from gspo_cli.training.watch import StopRequest
from gspo_cli.types import Problem

if TYPE_CHECKING:  # its libraries are an extra
    from gspo_cli.agents.host import AgentHost

SHOWN = 3  # held-out conversations stored with each evaluation, the same ones in every run


@dataclass
class Parts:
    """The parts of a run."""

    policy: Policy
    strategy: Strategy
    reward: RewardFunction
    engine: RolloutEngine
    prompts: Prompts
    levels: Sequence[Level]
    sharing: Sharing = ALONE
    agents: AgentHost | None = None
    pairs: StoredPairs | None = None

    @property
    def drawn(self) -> int:
        """How many problems, or pairs, an epoch has."""
        return len(self.train_problems if self.pairs is None else self.pairs)

    @property
    def train_problems(self) -> Sequence[Problem]:
        """Those of the task itself, without the lower levels of a curriculum."""
        return self.levels[-1].train

    @property
    def heldout_problems(self) -> Sequence[Problem]:
        """Those of the task itself."""
        return self.levels[-1].heldout

    def close(self) -> None:
        """Free what serves others than this process."""
        if self.agents is not None:
            self.agents.close()


class Trainer:
    """Runs `config` over `parts`, writing to `folder` and reporting to `reporter` and `track`. `stop` may
    end it after an iteration."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        folder: RunFolder,
        reporter: Reporter,
        track: Callable[[dict[str, Any], int], None] = lambda values, step: None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config, self.parts, self.folder = config, parts, folder
        self.reporter, self.track = reporter, track
        self.stop = stop or StopRequest()
        self.ranks = parts.strategy.ranks
        self.updater = Updater(parts.policy, config, parts.strategy, parts.sharing)
        asked = parts.reward, parts.engine, parts.prompts, self.ranks, parts.strategy.generating
        runner = ConversationRunner(config, *asked, parts.agents)
        self.curriculum = Curriculum(config, parts.levels)
        self.collector: Collector | PairCollector
        if parts.pairs is not None:
            self.collector = PairCollector(config, parts.pairs)
        else:
            said = partial(reporter.stage, "rollout")
            self.collector = Collector(config, runner, self.curriculum, said)
        self.evaluator = Evaluator(config, runner)
        self.checkpoints = Checkpoints(folder.checkpoints, config.checkpoint)
        self.state = TrainerState()
        self.monitor = Monitor(config)
        self.stop_requested, self._lost = False, False
        self._earlier_seconds, self._session_start = 0.0, time.perf_counter()

    def resume(self) -> None:
        """Continue from the last complete checkpoint, whose policy is loaded; drop later log lines."""
        last = self.checkpoints.last
        if last is not None:
            self.state = self.checkpoints.restore(last, self.updater)
            self._earlier_seconds = self.state.wall_seconds
            self.curriculum.state = self.state.curriculum
        self.updater.rate_factor = self._rate_factor
        reached = self.state.iteration if last is not None else -1
        self.folder.rewind(reached)
        self.monitor.metrics += [r for r in self.folder.read("metrics.jsonl") if r["iteration"] <= reached]
        self.monitor.evals += [r for r in self.folder.read("evals.jsonl") if r["iteration"] <= reached]

    def train(self) -> RunStatus:
        """Train to the end, a request to stop, or `evaluation.stop_at_score`. Returns the status of the
        run."""
        total = self.config.training.num_outer_iterations
        if self.state.initial_eval is None:
            self._evaluate(Clock())
            self._save()
        while self.state.iteration < total:
            if self._good_enough():
                return self._finish(RunStatus.stopped_early)
            if self.ranks.any(self.stop_requested):
                return self._finish(RunStatus.interrupted)
            if self.stop.status is not None:
                return self._finish(self.stop.status)
            self._iterate()
            if self._lost:
                return self._finish(RunStatus.collapsed)
        return self._finish(RunStatus.completed)

    def _iterate(self) -> None:
        clock, iteration = Clock(), self.state.iteration
        collected = self.collector.collect(iteration, self.state.cursor, clock)
        trajectories = collected.trajectories
        if self.parts.pairs is None and all(t.reward is None for t in trajectories):
            raise UserError(
                f"training: every conversation was excluded, the first because {trajectories[0].excluded}; "
                f"fix that, then continue with {override('resume', self.folder.path)}"
            )
        with clock.timing("score"):
            samples = self._credited(collected.groups)
        penalized = overlong(collected.groups, self.config.algorithm, self._limit)
        report = self.updater.run(samples, generator(self.config.seed, "minibatches", iteration), clock)
        with clock.timing("rollout"):
            pushed = self.parts.engine.refresh()
        tokens = sum(t.num_actions for t in trajectories)
        self.state.iteration += 1
        self.state.cursor += collected.problems_drawn
        self.state.num_tokens += tokens
        metrics = self.curriculum.metrics() | collected.metrics | update_metrics(report) | pushed
        if self.updater.critic is not None:
            metrics |= value_metrics(samples)
        if self.config.algorithm.overlong_buffer:
            metrics["completions/overlong"] = penalized.mean().item()
        record = self._line(metrics, tokens, clock)
        news = self.monitor.look(record)
        back = self._answer_collapse(self.monitor.collapse)
        refresh = self.config.algorithm.reference_refresh
        if refresh is not None and not back and self.state.iteration % refresh == 0:
            self.parts.policy.refresh_reference()
        self._record(record | {"rollbacks": self.state.rollbacks} | back)
        self._show_samples(samples)
        self._report(news, back)
        self.monitor.check_updates()
        self._evaluate_and_save(rolled_back=bool(back))

    def _credited(self, groups: Sequence[Group]) -> list[Sample]:
        """Samples of all answers with their advantages; the KL term of the reward needs scoring first."""
        algorithm = self.config.algorithm
        if self.parts.pairs is not None:
            return compared(groups)
        samples = trainable(groups, algorithm)
        if algorithm.has_critic:
            return with_value_advantages(samples, groups, algorithm, self.updater.values(samples))
        kl = self.updater.reward_kl(samples) if algorithm.kl_in_reward else None
        return with_advantages(samples, groups, algorithm, self._limit, kl)

    @property
    def _limit(self) -> int:
        """Length limit of a turn in this iteration, in tokens."""
        return self.config.max_completion_length(self.state.iteration)

    def _line(self, metrics: dict[str, Any], tokens: int, clock: Clock) -> dict[str, Any]:
        """This iteration's line of metrics.jsonl."""
        state, pairs = self.state, self.parts.pairs
        reward, accuracy = metrics.get("reward"), metrics.get("preference/accuracy")
        state.first_reward = reward if state.first_reward is None else state.first_reward
        state.first_accuracy = accuracy if state.first_accuracy is None else state.first_accuracy
        state.last_reward, state.last_accuracy = reward, accuracy
        return {
            "iteration": state.iteration,
            **metrics,
            "epoch": self.curriculum.epoch(state.cursor) if pairs is None else state.cursor / len(pairs),
            "num_tokens": state.num_tokens,
            "tokens_per_second": tokens / clock.total,
            **{f"time/{stage}": seconds for stage, seconds in clock.seconds.items()},
            "time/iteration": clock.total,
            "memory/peak_gb": max(self.ranks.gather([peak_memory_gb()])),
        }

    def _record(self, record: dict[str, Any]) -> None:
        self.folder.append("metrics.jsonl", record)
        self.track(record, self.state.iteration)
        self.reporter.iteration(record)

    def _answer_collapse(self, collapse: Finding | None) -> dict[str, int]:
        """Act on a collapse by `training.on_collapse`. Returns what metrics.jsonl records of a rollback."""
        training = self.config.training
        if collapse is None or training.on_collapse is OnCollapse.warn:
            return {}
        if training.on_collapse is OnCollapse.stop or self.state.rollbacks >= training.max_rollbacks:
            self._lost = True
            return {}
        kept = [self.checkpoints.iteration(checkpoint) for checkpoint in self.checkpoints.all]
        target = self.ranks.agreed(self.monitor.choose(kept, collapse.since))
        self.curriculum.state = self.checkpoints.roll_back(target, self.updater).curriculum
        self.parts.engine.refresh()
        self.state.rollbacks += 1
        self.updater.rate_factor = self._rate_factor
        self.monitor.rolled_back(target)
        return {"rolled_back_to": target}

    @property
    def _rate_factor(self) -> float:
        return self.config.training.rollback_learning_rate**self.state.rollbacks

    def _report(self, news: Sequence[Finding], back: dict[str, int]) -> None:
        """Warn about the monitor's findings and a rollback."""
        for finding in news:
            self.reporter.warn(f"{finding.what}; {finding.fix}")
        if back:
            self.reporter.warn(
                f"rolled back at iteration {self.state.iteration} to the weights of iteration "
                f"{back['rolled_back_to']}; the learning rate is now {self.updater.rate_factor:g} of the "
                "schedule's"
            )

    def _evaluate_and_save(self, rolled_back: bool) -> None:
        iteration = self.state.iteration
        stopped = self._lost or self.stop.status is RunStatus.stopped_early
        last = stopped or iteration == self.config.training.num_outer_iterations
        every = self.config.evaluation.every
        improved = False
        if last or (every and iteration % every == 0):
            improved = self._evaluate(Clock())
        if last or improved or rolled_back or iteration % self.config.checkpoint.every == 0:
            self._save()

    def _evaluate(self, clock: Clock) -> bool:
        """Evaluate and record. Returns whether this is the best evaluation so far."""
        state = self.state
        with clock.timing("eval"):
            found = self.evaluator.evaluate(
                self.parts.heldout_problems,
                partial(self.reporter.stage, "evaluation"),
            )
            kl = self._kl_to_initial(found)
            level = self.curriculum.evaluated(found.record["score"], self._level_score)
        record = {
            "iteration": state.iteration,
            **found.record,
            "kl": kl,
            **level,
            "num_tokens": state.num_tokens,
            "time/eval": clock.total,
        }
        self.folder.append("evals.jsonl", record)
        self.folder.append("heldout.jsonl", found.by_problem(SHOWN, state.iteration))
        self.monitor.evals.append(record)
        self.track({f"eval/{name}": value for name, value in record.items()}, state.iteration)
        self.reporter.evaluation(record)
        if self.curriculum.rise(level.get("curriculum/score"), state.iteration, state.cursor):
            self.reporter.warn(self.curriculum.raised)
        state.initial_eval = state.initial_eval or record
        state.last_eval = record
        improved = record["score"] is not None and (
            state.best_eval is None or _merit(record) > _merit(state.best_eval)
        )
        if improved:
            state.best_eval = record
        return improved

    def _level_score(self) -> float | None:
        """Share of the held-out problems of the present level that are solved greedily."""
        progress = partial(self.reporter.stage, "evaluation")
        return self.evaluator.greedy_score(self.curriculum.level.heldout, progress)

    def _kl_to_initial(self, found: Evaluation) -> float | None:
        """KL(policy || model before training) in nats per token: mean log ratio of the tokens of each sampled
        held-out answer, averaged over answers. None if it is not measured."""
        answers = [t for group in found.sampled for t in group if t.num_actions and t.excluded is None]
        if not answers or not self.config.measures_kl:
            return None
        return mean(self.updater.reward_kl([Sample.of(answer) for answer in answers]))

    def _finish(self, status: RunStatus) -> RunStatus:
        """Make sure that the last iteration is saved, and evaluated where the run has ended: one that is
        resumed may end before its next evaluation."""
        last, measured = self.checkpoints.last, [record["iteration"] for record in self.monitor.evals[-1:]]
        if status in ENDED and self.ranks.agreed(measured != [self.state.iteration]):
            self._evaluate(Clock())
        if self.ranks.agreed(last is None or self.checkpoints.iteration(last) != self.state.iteration):
            self._save()
        return status

    def _save(self) -> None:
        self.state.wall_seconds = self.wall_seconds
        self.state.curriculum = self.curriculum.state
        self.state.clip_range = self.updater.algorithm.clip_range
        self.state.bonus = asdict(self.updater.bonus)
        self.state.budget = (self.config.hardware.tokens_per_microbatch, self.updater.collator.budget)
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


def _merit(record: dict[str, Any]) -> tuple[float, float]:
    """What makes one evaluation better than another."""
    return record["score"], record["reward"]
