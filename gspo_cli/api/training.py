"""Training from Python: the same configuration, session and run folder as `gspo-train`.

A callback is any object with some of these methods, plain or coroutines, each of which takes one dict:
`on_start` (title, run_folder, iteration, total_iterations, card), `on_iteration` (a line of metrics.jsonl),
`on_evaluation` (a line of evals.jsonl) and `on_end` (summary.json). One that returns False ends the run
early: after the current iteration, with an evaluation, a checkpoint and the status stopped_early. What one
raises ends the run with a checkpoint and the status failed, and is raised once `agent` has the trained
weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gspo_cli.api.agent import MultiTurnAgent
from gspo_cli.api.awaiting import bordered, train_in_thread
from gspo_cli.api.config import GSPOConfig, model_overrides, write_setting
from gspo_cli.api.environment import ConversationEnvironment
from gspo_cli.api.scenarios import has_goals
from gspo_cli.config.auto_hardware import use_one_process
from gspo_cli.config.checks import require
from gspo_cli.config.compose import OBJECT, build_config, composed, plain_values, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import trust_own
from gspo_cli.console.reporting import Reporter
from gspo_cli.launching.start import require_device
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.sources import EMBEDDED, settled
from gspo_cli.training.job import train_here
from gspo_cli.training.process_group import gpu_count
from gspo_cli.training.session import load_trained
from gspo_cli.training.watch import Watch

Queries = Sequence[str | Mapping[str, Any]]


@bordered
async def train_with_gspo(
    config: GSPOConfig,
    agent: MultiTurnAgent,
    environment: ConversationEnvironment,
    reward_model: RewardFunction | None = None,
    reporter: Reporter | None = None,
    callbacks: Sequence[Any] = (),
    train_queries: Queries | None = None,
) -> MultiTurnAgent:
    """Train `agent` with GSPO (arXiv 2507.18071, Eq. 5); returns it with the trained weights, its `summary`
    and its `run_folder`.

    Training begins with the model that `agent.config` names. With `reward_model` None the environment's own
    reward is used; `reporter` None shows progress in the terminal; `callbacks` are as described above.
    `train_queries` are trained on in place of the environment's problems: texts that a user says, whose
    answer ends the conversation, or scenarios as dicts; they need a `reward_model`, unless all have goals.
    The run folder is made under `config.output_dir`. Other tasks of the event loop run meanwhile. Ctrl-C, or
    cancelling the task, ends the run after the current iteration with a checkpoint; Ctrl-C returns the agent
    with the status interrupted. Raises UserError on bad input, and what a callback raised.
    """
    algorithm = "gspo_token" if config.use_gspo_token else "gspo"
    given = environment, reward_model, reporter, callbacks, train_queries
    return await train(algorithm, config, agent, *given)


@bordered
async def train_with_gspo_token(
    config: GSPOConfig,
    agent: MultiTurnAgent,
    environment: ConversationEnvironment,
    reward_model: RewardFunction | None = None,
    reporter: Reporter | None = None,
    callbacks: Sequence[Any] = (),
    train_queries: Queries | None = None,
) -> MultiTurnAgent:
    """`train_with_gspo` with the token variant (Eq. 13-14), which takes `credit="turn"`, too."""
    require(
        config.use_gspo_token is not False,
        "GSPOConfig.use_gspo_token=False: train_with_gspo_token trains the token variant; call "
        "train_with_gspo, or leave it out",
    )
    given = environment, reward_model, reporter, callbacks, train_queries
    return await train("gspo_token", config, agent, *given)


async def train(
    algorithm: str,
    settings: GSPOConfig,
    agent: MultiTurnAgent,
    environment: ConversationEnvironment,
    reward: RewardFunction | None = None,
    reporter: Reporter | None = None,
    callbacks: Sequence[Any] = (),
    queries: Queries | None = None,
) -> MultiTurnAgent:
    """`train_with_gspo` with any option of conf/algorithm. Raises UserError on one that is not there."""
    environment = asked(environment, queries, reward)
    run = prepared(algorithm, settings, agent, environment)
    return await carry_out(run, agent, reward, reporter, callbacks)


def asked(
    environment: ConversationEnvironment, queries: Queries | None, reward: RewardFunction | None
) -> ConversationEnvironment:
    """`environment` with `queries` in place of its problems, where there are some. Raises UserError if
    nothing scores them, and on a `reward` that is none."""
    check_reward(reward)
    if queries is None:
        return environment
    environment = environment.asking(queries)
    require(
        reward is not None or all(map(has_goals, environment.scenarios)),
        "train_queries: have no goals that could be scored; give a reward_model",
    )
    return environment


def check_reward(reward: Any) -> None:
    """Raise UserError on a reward that is none."""
    require(
        reward is None or isinstance(reward, RewardFunction),
        f"reward_model: is a {type(reward).__name__}; give an instance of a RewardFunction subclass",
    )


@dataclass(frozen=True)
class PreparedRun:
    """A run that is composed and checked; `write` puts its data where its configuration names it."""

    node: DictConfig
    config: RunConfig
    folder: RunFolder
    write: Callable[[Path], None]


def prepared(
    algorithm: str,
    settings: GSPOConfig,
    agent: MultiTurnAgent,
    environment: ConversationEnvironment,
    place: Path | None = None,
    data: Path | None = None,
) -> PreparedRun:
    """The run of `algorithm`, in the folder `place`, None for one that is named as `gspo-train` names it.
    Scenarios are read from the folder `data`, None for that of the run, into which they are then written.
    Raises UserError on settings that cannot run."""
    node = run_node(algorithm, settings, agent, environment)
    use_one_process(node)  # that of the script
    folder = RunFolder(place or run_place(node, settings))
    environment.apply(node, data or folder.path)
    settings.apply_sizes(node)
    write = environment.write if data is None else _nothing
    return PreparedRun(node, build_config(node), folder, write)


def _nothing(folder: Path) -> None:
    """Writes no data: it is there."""


async def carry_out(
    run: PreparedRun,
    agent: MultiTurnAgent,
    reward: RewardFunction | None,
    reporter: Reporter | None,
    callbacks: Sequence[Any],
) -> MultiTurnAgent:
    """Train `run` in a thread; returns `agent` with the trained weights."""
    watch = Watch(run.folder.path, callbacks, asyncio.get_running_loop())

    def work() -> MultiTurnAgent:
        return execute(agent, run.node, run.config, run.folder, run.write, reward, reporter, watch)

    return await train_in_thread(work, watch)


def execute(
    agent: MultiTurnAgent,
    node: DictConfig,
    config: RunConfig,
    folder: RunFolder,
    write: Callable[[Path], None],
    reward: RewardFunction | None,
    reporter: Reporter | None,
    watch: Watch | None = None,
) -> MultiTurnAgent:
    """Train `config`, which was built of `node`, in a new `folder`, in which `write` puts the data. Returns
    `agent` with the trained weights. Raises the error that `watch` keeps of a callback."""
    if reward is not None:
        # the saved configuration is the one that ran; a command cannot rebuild the object and reports that
        # on resume
        node.reward = f"{OBJECT} {type(reward).__module__}.{type(reward).__qualname__}"
    require_device(config.hardware, gpu_count)
    trust_own(plain_values(node), RunConfig)
    folder.create(resolved_yaml(node))
    write(folder.path)
    agent.policy = None  # do not keep a second copy of the model in memory while it trains
    agent.summary = train_here(config, node, folder, reporter=reporter, reward=reward, watch=watch)
    agent.policy = load_trained(config, *folder.checkpoint_model("last", config.model))
    agent.system, agent.run_folder = config.task.system_prompt_and_tools(), folder.path
    if watch is not None and watch.error is not None:
        raise watch.error
    return agent


def run_node(
    algorithm: str, settings: GSPOConfig, agent: MultiTurnAgent, environment: ConversationEnvironment
) -> DictConfig:
    """The configuration of a run except for its environment's settings, as `gspo-train` would compose it.
    Raises UserError on unknown names."""
    groups = [f"task={environment.name}", *model_overrides(agent.config.model_name), f"algorithm={algorithm}"]
    node = composed([*groups, *settings.overrides])
    settings.apply(node)
    if node.model.name != EMBEDDED:
        write_setting(node, "model.name", str(agent.config.model_name))
    if agent.config.system_prompt:
        write_setting(node, "task.system_prompt", agent.config.system_prompt)
    if agent.config.device != "auto":
        write_setting(node, "hardware.device", agent.config.device)
    settled(node, settings.typed)
    return node


def run_place(node: DictConfig, settings: GSPOConfig) -> Path:
    """Where a run's folder is made, as `gspo-train` would make it under `outputs`."""
    name = f"{node.task.name}-{node.model.label}-{node.algorithm.name}"
    return Path(settings.output_dir) / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-s{node.seed}"
