"""One agent trained by several algorithms, each from the same weights, under the guide's name for it.

An algorithm is an option of conf/algorithm, with overrides behind it where it needs some, as in
"grpo algorithm.learning_rate=1e-5". Every one trains the language model itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gspo_cli.api.agent import MultiTurnAgent
from gspo_cli.api.awaiting import bordered
from gspo_cli.api.config import GSPOConfig, get_config_for_task
from gspo_cli.api.environment import ConversationEnvironment
from gspo_cli.api.training import PreparedRun, Queries, asked, carry_out, prepared
from gspo_cli.compare.arms import arms_of, resolved_settings
from gspo_cli.compare.comparability import refuse_one_update
from gspo_cli.compare.comparison import compare as compare_runs
from gspo_cli.compare.report import write_report
from gspo_cli.compare.result import Comparison
from gspo_cli.compare.runs import StoredRun, find_runs
from gspo_cli.config.checks import folder_name, require
from gspo_cli.config.choices import RatioLevel
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import CONF_DIR, composed
from gspo_cli.config.old_logprobs import shared_by_runs
from gspo_cli.console.reporting import Reporter
from gspo_cli.console.words import fixed
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.files import make_folder
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import RunStatus
from gspo_cli.signals import Stopped

WIDTHS = ("clip_range_left", "clip_range_right")


@dataclass(frozen=True)
class AlgorithmRun:
    """What was measured of one algorithm with one seed. `scores` are the held-out scores by iteration, 0
    being before training, and `rewards` the mean training rewards of the iterations, in order. The trained
    agent is `MultiTurnAgent(AgentConfig(model_name=run_folder))`."""

    algorithm: str
    seed: int
    status: str
    run_folder: Path
    scores: Mapping[int, float | None]
    rewards: Sequence[float | None]
    num_tokens: int
    wall_seconds: float

    @property
    def final_score(self) -> float | None:
        """The last held-out score; None if none was measured."""
        return list(self.scores.values())[-1] if self.scores else None


@dataclass(frozen=True)
class AlgorithmComparison:
    """The runs of a comparison by seed, then in the order of the algorithms. `headline` is the verdict of
    `gspo-compare` in sentences, or the reason why there is none; `report` is what it rests on, and `folder`
    holds the report and the runs."""

    runs: Sequence[AlgorithmRun]
    headline: Sequence[str]
    folder: Path
    report: Comparison | None = None

    def of(self, algorithm: str) -> list[AlgorithmRun]:
        """The runs of `algorithm`, as it was given, by seed."""
        return [run for run in self.runs if run.algorithm == algorithm]

    def __str__(self) -> str:
        """A line for each run, then the headline."""
        lines = [
            f"{run.algorithm}, seed {run.seed}: held-out {' '.join(map(fixed, run.scores.values()))}, "
            f"reward {fixed(run.rewards[0])} to {fixed(run.rewards[-1])}, {run.run_folder}"
            for run in self.runs
            if run.rewards
        ]
        return "\n".join([*lines, *self.headline])


class AdvancedRLOrchestrator:
    """Trains `agent` by any algorithm of conf/algorithm."""

    def __init__(self, agent: MultiTurnAgent) -> None:
        self.agent = agent

    @property
    def algorithms(self) -> list[str]:
        """The options of conf/algorithm."""
        return sorted(path.stem for path in (CONF_DIR / "algorithm").glob("*.yaml"))

    @bordered
    async def train(
        self,
        algorithm: str,
        environment: ConversationEnvironment,
        reward_model: RewardFunction | None = None,
        num_iterations: int | None = None,
        config: GSPOConfig | None = None,
        train_queries: Queries | None = None,
        callbacks: Sequence[Any] = (),
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> MultiTurnAgent:
        """Train the agent with `algorithm`, beginning with the model that its config names, and return it.

        Settings are the presets of the task, the model and the algorithm; then those that were given in
        `config`; then `settings`, which are fields of a GSPOConfig, and `num_iterations`, which is its
        `num_outer_iterations`. The other arguments are those of `train_with_gspo`. Raises UserError on bad
        input."""
        given = self._settings(algorithm, environment, config, num_iterations, settings)
        environment = asked(environment, train_queries, reward_model)
        run = prepared(_option(algorithm), given, self.agent, environment)
        return await carry_out(run, self.agent, reward_model, reporter, callbacks)

    @bordered
    async def compare(
        self,
        algorithms: Sequence[str],
        environment: ConversationEnvironment,
        reward_model: RewardFunction | None = None,
        seeds: Sequence[int] = (0,),
        num_iterations: int | None = None,
        config: GSPOConfig | None = None,
        train_queries: Queries | None = None,
        callbacks: Sequence[Any] = (),
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> AlgorithmComparison:
        """Train each of `algorithms` with each of `seeds`, all from the same weights, and compare them as
        `gspo-compare` does; the agent itself is left as it is. All runs are checked before the first one
        trains. A verdict needs at least two seeds.

        Clip ranges belong to one algorithm: they stand behind its name, not among `settings`. A callback
        hears of all runs, and ends the one that it hears of. Raises UserError on bad input, and
        KeyboardInterrupt where Ctrl-C ended a run."""
        _check(algorithms, seeds, settings)
        environment = asked(environment, train_queries, reward_model)
        planned = [
            (name, seed, self._settings(name, environment, config, num_iterations, settings | {"seed": seed}))
            for seed in seeds
            for name in algorithms
        ]
        folder = Path(planned[0][2].output_dir) / "compare" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        runs = {
            (name, seed): prepared(
                _option(name), given, self.agent, environment, folder / "runs" / _place(name, seed), folder
            )
            for name, seed, given in planned
        }
        _decide_together(runs, algorithms)
        make_folder(folder, "GSPOConfig.output_dir")
        environment.write(folder)
        found = []
        for (name, seed), run in runs.items():
            agent = MultiTurnAgent(self.agent.config)
            await carry_out(run, agent, reward_model, reporter, callbacks)
            if agent.summary["status"] == RunStatus.interrupted:
                raise Stopped
            found.append(_measured(name, seed, run.folder, agent.summary))
        return _compared(found, algorithms, folder)

    def _settings(
        self,
        algorithm: str,
        environment: ConversationEnvironment,
        config: GSPOConfig | None,
        num_iterations: int | None,
        settings: Mapping[str, Any],
    ) -> GSPOConfig:
        """The settings of `algorithm`, see `train`."""
        model, option = str(self.agent.config.model_name), _option(algorithm)
        found = get_config_for_task(environment.name, model, option)
        if config is not None:
            _check_widths(config, option)
            found = GSPOConfig.from_training_config(
                found, **{name: getattr(config, name) for name in config.given}
            )
        found = GSPOConfig.from_training_config(found, **settings)
        own: dict[str, Any] = {"overrides": [*found.overrides, *shlex.split(algorithm)[1:]]}
        if num_iterations is not None:
            own["num_outer_iterations"] = num_iterations
        require(
            found.use_gspo_token is None,
            "GSPOConfig.use_gspo_token: the name chooses the algorithm here; give gspo_token",
        )
        return GSPOConfig.from_training_config(found, **own)


def create_advanced_rl_orchestrator(agent: MultiTurnAgent) -> AdvancedRLOrchestrator:
    """What trains `agent` by any algorithm: `await orchestrator.train("grpo", environment=...)`, and
    `await orchestrator.compare(["gspo", "grpo"], environment=...)`. Raises UserError on what is no agent."""
    require(isinstance(agent, MultiTurnAgent), f"agent: is a {type(agent).__name__}; give a MultiTurnAgent")
    return AdvancedRLOrchestrator(agent)


def _option(algorithm: str) -> str:
    words = shlex.split(algorithm) if isinstance(algorithm, str) else []
    require(words != [], f"algorithm={algorithm!r}: is not a name; give one such as gspo")
    return words[0]


def _place(algorithm: str, seed: int) -> str:
    return f"{folder_name(algorithm)}-s{seed}"


def _check(algorithms: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Any]) -> None:
    """Raise UserError unless there is something to compare, each thing once."""
    names = [algorithms] if isinstance(algorithms, str) else list(algorithms)
    require(len(names) > 1, f"compare: {names} has nothing to be compared with; give two algorithms or more")
    lists: dict[str, list[Any]] = {"algorithms": names, "seeds": list(seeds)}
    for what, given in lists.items():
        require(given != [], f"compare: {what} is empty; give one or more")
        twice = next((each for each in given if given.count(each) > 1), None)
        require(twice is None, f"compare: {what} has {twice} twice; leave one of them out")
    require("seed" not in settings, "compare: seed is one of seeds; give seeds=[0]")
    for name in WIDTHS:
        require(
            name not in settings,
            f"compare: {name} is not the same for all algorithms; write it behind the one it is for, as in "
            f'"gspo algorithm.{name}=3e-4"',
        )


def _check_widths(config: GSPOConfig, option: str) -> None:
    """Raise UserError if `config` has a clip range, which is that of GSPO, and `option` clips tokens."""
    given = next((name for name in WIDTHS if name in config.given), None)
    if given is not None and composed([f"algorithm={option}"]).algorithm.ratio_level is RatioLevel.token:
        raise UserError(
            f"GSPOConfig.{given}={getattr(config, given)}: is a width for sequence ratios, and {option} "
            f"clips token ratios; leave it out, or write it behind the name, as in "
            f'"{option} algorithm.{given}=0.2"'
        )


def _decide_together(runs: Mapping[tuple[str, int], PreparedRun], algorithms: Sequence[str]) -> None:
    """Write into the runs what they must have in common. Raises UserError if they cannot be compared."""
    stored = [StoredRun(name, resolved_settings(run.node), (), (), (), {}) for (name, _), run in runs.items()]
    refuse_one_update(stored)
    arms = arms_of(stored, [*algorithms])
    require(len(arms) == len(algorithms), "compare: two algorithms have the same settings; leave one out")
    common = shared_by_runs([run.config for run in runs.values()])
    for run in runs.values():
        for name, value in common.items():
            run.node.rollout[name] = value
            setattr(run.config.rollout, name, value)


def _measured(algorithm: str, seed: int, folder: RunFolder, summary: Mapping[str, Any]) -> AlgorithmRun:
    return AlgorithmRun(
        algorithm,
        seed,
        summary["status"],
        folder.path,
        {record["iteration"]: record["score"] for record in folder.read("evals.jsonl")},
        [record.get("reward") for record in folder.read("metrics.jsonl")],
        summary["num_tokens"],
        summary["wall_seconds"],
    )


def _compared(runs: Sequence[AlgorithmRun], algorithms: Sequence[str], folder: Path) -> AlgorithmComparison:
    """The verdict on `runs`, whose report is written."""
    seeds = sorted({run.seed for run in runs})
    try:
        stored, left_out = find_runs([run.run_folder for run in runs])
        report = compare_runs(stored, left_out, CompareConfig(algorithms=[*algorithms], seeds=seeds))
    except UserError as error:
        return AlgorithmComparison(runs, [str(error)], folder)
    write_report(report, folder)
    return AlgorithmComparison(runs, report.headline, folder, report)
