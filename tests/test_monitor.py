"""The collapse monitor in real runs: said once, stopped or rolled back, and resumed to the bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from gspo_cli.console.words import describe, next_commands
from gspo_cli.diagnosis.history import lineage, valid_states
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import RESUMABLE
from gspo_cli.training.checkpoint import Checkpoints, TrainerState
from gspo_cli.training.metrics import repetition
from gspo_cli.training.monitor import Monitor
from gspo_cli.training.session import run_training
from gspo_cli.training.update import Updater
from gspo_cli.types import FinishReason, Problem, RewardResult, Trajectory
from tests.support.diagnosed_runs import line, run_of, settings
from tests.support.reporters import Silent

pytestmark = pytest.mark.long


class VariedReward(RewardFunction):
    """Pays for different tokens, of which a policy that large steps have broken has few."""

    def compute_reward(self, trajectory, turn, context):
        ids = [t for t, spoken in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if spoken]
        return RewardResult(len(set(ids)) / 8)


BROKEN = [  # falls from 0.96 to 0.34 in iteration 2, and further; the monitor knows in iteration 4
    "task=arithmetic",
    f"reward={__name__}.VariedReward",
    "algorithm.learning_rate=0.3",
    "evaluation.every=0",
    "checkpoint.every=2",
    "hardware.threads=1",
    "training.minibatch_by=answer",
]


def train(configure, folder, reporter, iterations: int, *overrides: str):
    """A run to `iterations`, begun or continued in `folder`."""
    config, yaml = configure(*BROKEN, f"training.num_outer_iterations={iterations}", *overrides)
    if not folder.config.exists():
        folder.create(yaml)
    return run_training(config, folder, reporter)


def without_clocks(folder: RunFolder) -> list[dict]:
    clocks = ("time/", "memory/", "tokens_per_second")
    lines = folder.read("metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in lines]


def weights(folder: RunFolder, checkpoint: str) -> dict[str, torch.Tensor]:
    return load_file(folder.checkpoints / checkpoint / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_collapse_is_warned_of_once_and_the_run_goes_on(configure, tmp_path, reporter):
    folder = RunFolder(tmp_path / "run")
    summary = train(configure, folder, reporter, 6)
    assert (summary["status"], summary["iterations"]) == ("completed", 6)
    told = [text for text in reporter.warnings if text.startswith("the reward fell from 0.9")]
    assert len(told) == 1
    assert "use algorithm.learning_rate=0.0001" in told[0]
    assert [line["rollbacks"] for line in folder.read("metrics.jsonl")] == [0] * 6


def test_a_collapse_stops_the_run_with_its_checkpoint(configure, tmp_path, reporter):
    folder = RunFolder(tmp_path / "run")
    summary = train(configure, folder, reporter, 9, "training.on_collapse=stop", "checkpoint.every=100")
    assert (summary["status"], summary["iterations"]) == ("collapsed", 4)
    assert reporter.events[-1] == ("end", "collapsed")
    assert folder.read("evals.jsonl")[-1]["iteration"] == 4, "what is lost is measured"
    assert (folder.checkpoints / "last").resolve().name == "iteration-000004"
    assert describe(summary)[0].startswith("Stopped after 4 of 9 iterations, because the policy collapsed: ")
    commands = [command for command, _ in next_commands(summary)]
    assert commands[0] == f"gspo-doctor {folder.path}"
    assert commands[-1] == f"gspo-train resume={folder.path} training.on_collapse=rollback"
    assert "training.on_collapse" in RESUMABLE


def test_a_rollback_returns_weights_and_optimizer_and_lowers_the_learning_rate(configure, tmp_path, reporter):
    folder = RunFolder(tmp_path / "run")
    gentle = ["training.on_collapse=rollback", "training.rollback_learning_rate=0.001"]
    summary = train(configure, folder, reporter, 6, *gentle, "checkpoint.every=3")
    assert summary["status"] == "completed"
    lines = folder.read("metrics.jsonl")
    assert [line.get("rolled_back_to") for line in lines] == [None, None, None, 0, None, None]
    assert [line["rollbacks"] for line in lines] == [0, 0, 0, 1, 1, 1]
    rates = [0.3] * 4 + [pytest.approx(3e-4)] * 2
    assert [line["learning_rate"] for line in lines] == rates
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # the problems drawn go on: 4 prompts an iteration
    problems = len(configure(*BROKEN)[0].task.train_problems())
    assert lines[-1]["epoch"] * problems == pytest.approx(24)
    initial = load_file(folder.initial_model / "model.safetensors")
    assert same(weights(folder, "iteration-000004"), initial)
    saved = torch.load(folder.checkpoints / "iteration-000004" / "trainer.pt", weights_only=True)
    assert saved["optimizer"]["state"] == {}
    assert (saved["steps"], saved["state"]["rollbacks"], saved["state"]["cursor"]) == (16, 1, 16)
    assert not same(weights(folder, "iteration-000006"), initial)
    assert lines[4]["reward"] > 0.9
    assert any(
        text.startswith("rolled back at iteration 4 to the weights of iteration 0")
        for text in reporter.warnings
    )


def test_after_as_many_rollbacks_as_may_be_a_collapse_stops_the_run(configure, tmp_path, reporter):
    folder = RunFolder(tmp_path / "run")
    stubborn = [
        "training.on_collapse=rollback",
        "training.rollback_learning_rate=1.0",
        "training.max_rollbacks=1",
    ]
    summary = train(configure, folder, reporter, 20, *stubborn)
    assert summary["status"] == "collapsed"
    lines = folder.read("metrics.jsonl")
    assert [line["rolled_back_to"] for line in lines if "rolled_back_to" in line] == [0]
    assert lines[-1]["rollbacks"] == 1
    assert (folder.checkpoints / "last").resolve().name == f"iteration-{len(lines):06d}"


ROLLBACK = ["training.on_collapse=rollback", "training.rollback_learning_rate=0.01"]


@pytest.fixture(scope="module")
def whole(configure, tmp_path_factory):
    """A run with a rollback at iteration 4, made in one go."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    train(configure, folder, Silent(), 7, *ROLLBACK)
    return folder


@pytest.mark.parametrize("stop", [3, 5], ids=["before the rollback", "after it"])
def test_a_run_resumed_around_a_rollback_is_the_whole_one_to_the_bit(
    configure, tmp_path, reporter, whole, stop
):
    parted = RunFolder(tmp_path / "parted")
    train(configure, parted, reporter, stop, *ROLLBACK)
    assert len(parted.read("metrics.jsonl")) == stop
    train(configure, parted, reporter, 7, *ROLLBACK)
    assert without_clocks(parted) == without_clocks(whole)
    assert [line.get("rolled_back_to") for line in whole.read("metrics.jsonl")][3] == 0
    assert same(weights(parted, "last"), weights(whole, "last"))


def test_a_run_that_a_collapse_stopped_goes_on_from_before_it(configure, tmp_path, reporter):
    folder = RunFolder(tmp_path / "run")
    assert train(configure, folder, reporter, 6, "training.on_collapse=stop")["status"] == "collapsed"
    gentle = ["training.on_collapse=rollback", "training.rollback_learning_rate=0.001"]
    assert train(configure, folder, reporter, 6, *gentle)["status"] == "completed"
    lines = folder.read("metrics.jsonl")
    assert [line.get("rolled_back_to") for line in lines] == [None] * 4 + [0, None]
    assert lines[-1]["reward"] > 0.9


@pytest.mark.parametrize("use_lora", [True, False])
def test_weights_and_moments_of_any_kind_are_put_back_in_place(load, configure, tmp_path, use_lora):
    config, _ = configure()
    updater = Updater(load("qwen3", use_lora=use_lora), config)
    checkpoints, state = Checkpoints(tmp_path, config.checkpoint), TrainerState()
    parameters = updater.policy.trainable()
    places = [parameter.data_ptr() for parameter in parameters]

    def step():
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        updater.strategy.step(0.1)

    step()
    checkpoints.save(updater, state)
    before = [parameter.detach().clone() for parameter in parameters]
    step()
    after = [parameter.detach().clone() for parameter in parameters]
    assert not all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    checkpoints.roll_back(0, updater)
    assert all(torch.equal(x, y) for x, y in zip(before, parameters, strict=True))
    assert [parameter.data_ptr() for parameter in parameters] == places
    step()  # the same moments and the same count of steps: the same weights
    assert all(torch.equal(x, y) for x, y in zip(after, parameters, strict=True))


def test_a_rollback_takes_back_what_came_after_its_checkpoint():
    lines = [{"iteration": i} for i in range(1, 13)]
    lines[5] |= {"rolled_back_to": 3}
    assert [record["iteration"] for record in lineage(lines)] == [1, 2, 3, 7, 8, 9, 10, 11, 12]
    assert valid_states(lines) == {0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12}
    lines[9] |= {"rolled_back_to": 2}  # behind the first one: the weights that it left in 6 are gone, too
    assert [record["iteration"] for record in lineage(lines)] == [1, 2, 11, 12]
    assert valid_states(lines) == {0, 1, 2, 10, 11, 12}


def test_the_checkpoint_to_return_to_is_the_newest_of_healthy_weights():
    monitor = Monitor(settings())
    monitor.metrics = [{"iteration": i} for i in range(1, 13)]
    # what iteration 7 sampled came of the weights of 6
    assert monitor.choose([0, 4, 5, 6, 8, 10], began=7) == 5
    assert monitor.choose([6, 8, 10], began=7) == 6
    monitor.metrics[5] |= {"rolled_back_to": 3}
    assert monitor.choose([0, 3, 4, 5, 10], began=9) == 3


def test_the_monitor_says_a_thing_once_and_again_when_it_gets_worse():
    monitor = Monitor(settings())
    said = []
    while_it_rises = run_of(20, 7, completions__repetition=0.8)
    without = run_of(26, 21, completions__repetition=0.8, reward=0.3, entropy=0.3)[20:]
    for record in while_it_rises + without:
        said += [(f.rule, f.severity.name) for f in monitor.look(record)]
    assert said == [("repetition", "warning"), ("repetition", "collapse")]


def test_the_monitor_leaves_notes_to_the_doctor():
    monitor = Monitor(settings("training.updates_per_rollout=1"))
    assert [f for record in run_of(8, 1, updates=1) for f in monitor.look(record)] == []


def test_eight_updates_in_a_row_without_a_finite_gradient_end_the_run():
    monitor = Monitor(settings())
    monitor.metrics = [line(1), line(2, updates_skipped=3), line(3, updates_skipped=4)]
    monitor.check_updates()
    monitor.metrics.append(line(4, updates_skipped=1))
    monitor.check_updates()
    monitor.metrics[-1:] = [line(4, updates_skipped=4)]
    with pytest.raises(UserError, match="11 updates in a row"):
        monitor.check_updates()
    monitor.rolled_back(1)
    monitor.check_updates()


def trajectory(ids: list[int], trained: list[bool]) -> Trajectory:
    return Trajectory(Problem("p", ()), ids, trained, [], [], [], FinishReason.stop)


def test_repetition_is_the_share_of_4_grams_seen_before():
    assert repetition(trajectory([1] * 4, [True] * 4)) == 0.0
    assert repetition(trajectory([1, 2, 3], [True] * 3)) == 0.0
    assert repetition(trajectory([], [])) == 0.0
    # eight equal tokens: five grams, one of them new
    assert repetition(trajectory([7] * 8, [True] * 8)) == pytest.approx(4 / 5)
    assert repetition(trajectory(list(range(30)), [True] * 30)) == 0.0
    # the prompt is no answer, and a gram does not reach over what a user said
    said = [1, 2, 3, 4, 8, 1, 2, 3, 4, 9, 1, 2, 3]
    mask = [True] * 4 + [False] + [True] * 4 + [False] + [True] * 3
    assert repetition(trajectory(said, mask)) == pytest.approx(1 / 2)
