"""Training an agent that exists already, from Python: the same run as `gspo-train task=agent`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gspo_cli.api.agent import AgentConfig, MultiTurnAgent
from gspo_cli.api.awaiting import bordered
from gspo_cli.api.config import GSPOConfig, get_config_for_task, model_overrides, write_setting
from gspo_cli.api.training import check_reward, execute, run_place
from gspo_cli.config.auto_hardware import use_one_process
from gspo_cli.config.checks import override_key, require
from gspo_cli.config.compose import OBJECT, build_config, composed
from gspo_cli.console.reporting import Reporter
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.files import write_atomically
from gspo_cli.run.folder import RunFolder
from gspo_cli.sources import settled

HELD_OUT = 5  # of a list of problems, every fifth is held out, at most 200


@bordered
def train_agent(
    run: Callable[..., Any],
    problems: Sequence[Mapping[str, Any]] | str | Path,
    config: GSPOConfig | None = None,
    model: str | Path = "smollm2",
    algorithm: str = "gspo",
    reward: RewardFunction | None = None,
    reporter: Reporter | None = None,
) -> MultiTurnAgent:
    """Train `model` behind the agent `run(problem, endpoint)`, plain or async, which returns its reward: a
    number, a RewardResult, or nothing where `reward` scores.

    `problems` are rows, whose columns `run` finds in `problem.metadata`, or what `task.path` takes. `model`
    is smollm2 (after `make smollm2`), a hub id, or the folder of a model, an adapter or a run. `config` None
    takes the presets of the model; `reporter` None shows progress in the terminal. The run folder is made
    under `config.output_dir`. Blocks until the run is over, and returns the trained model, its `summary` and
    its `run_folder`. Raises UserError on bad input."""
    require(callable(run), f"run: is a {type(run).__name__}; give a function run(problem, endpoint)")
    check_reward(reward)
    config = config or get_config_for_task("agent", str(model), algorithm)
    algorithm = "gspo_token" if config.use_gspo_token and algorithm == "gspo" else algorithm
    node = composed(["task=agent", *model_overrides(model), f"algorithm={algorithm}", *config.overrides])
    config.apply(node)
    settled(node, [*config.overrides])
    use_one_process(node)  # that of the script
    folder = RunFolder(run_place(node, config))
    rows = None if isinstance(problems, str | Path) else _lines(problems)
    path = str(problems) if rows is None else str(folder.path.resolve() / "problems.jsonl")
    write_setting(node, "task.path", path)
    if rows is not None and not any(
        override_key(text).startswith("task.heldout") for text in config.overrides
    ):
        write_setting(node, "task.heldout", min(200, max(1, len(rows) // HELD_OUT)))
    write_setting(node, "task.agent", _name(run))
    config.apply_sizes(node)
    checked = build_config(node)
    checked.task.use(run)

    def write(place: Path) -> None:
        if rows is not None:
            write_atomically(place / "problems.jsonl", "".join(rows))

    agent = MultiTurnAgent(AgentConfig(str(model)))
    return execute(agent, node, checked, folder, write, reward, reporter)


def _lines(problems: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for place, row in enumerate(problems):
        require(
            isinstance(row, Mapping), f"problems[{place}]: is a {type(row).__name__}; give a dict of columns"
        )
        try:
            found.append(f"{json.dumps(dict(row), ensure_ascii=False)}\n")
        except (TypeError, ValueError) as error:
            raise UserError(
                f"problems[{place}]: cannot be written as JSON ({error}); use plain values"
            ) from error
    require(len(found) > 1, f"problems: has {len(found)}; give at least two, one of which is held out")
    return found


def _name(run: Callable[..., Any]) -> str:
    """How a command finds the function again; where it cannot, what it says of it."""
    name = f"{getattr(run, '__module__', '')}.{getattr(run, '__qualname__', type(run).__qualname__)}"
    lost = "<" in name or name.startswith("__main__.")
    return f"{OBJECT} {name}" if lost else name
