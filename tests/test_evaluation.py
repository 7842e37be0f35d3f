"""Held-out evaluation in a run: what became of each problem, how far the policy is from its beginning."""

from __future__ import annotations

from zlib import crc32

import pytest
import torch

from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.policy.loading import load_policy
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.files import write_atomically
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.evaluation import Evaluator
from gspo_cli.training.session import run_training
from gspo_cli.types import RewardResult
from tests.support.command_line import call


class EvenReward(RewardFunction):
    """Share of sampled ids that are even: differs inside every group."""

    def compute_reward(self, trajectory, turn, context):
        ids = [t for t, spoken in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if spoken]
        return RewardResult(
            sum(t % 2 == 0 for t in ids) / len(ids), solved=crc32(trajectory.problem.id.encode()) % 2 == 0
        )


MOVES = ("algorithm.learning_rate=0.01", "evaluation.every=1", f"reward={__name__}.EvenReward")


def run(configured, path, reporter) -> RunFolder:
    config, yaml = configured
    path.mkdir(parents=True)
    write_atomically(path / "config.yaml", yaml)
    folder = RunFolder(path)
    run_training(config, folder, reporter)
    return folder


@pytest.fixture
def evaluated(monkeypatch) -> list:
    """What the evaluations of a run really came to, in order."""
    found, evaluate = [], Evaluator.evaluate

    def remembered(*arguments):
        found.append(evaluate(*arguments))
        return found[-1]

    monkeypatch.setattr(Evaluator, "evaluate", remembered)
    return found


def test_heldout_tells_of_each_problem_what_the_record_sums_up(configure, tmp_path, reporter):
    folder = run(configure(*MOVES), tmp_path / "run", reporter)
    records, details = folder.read("evals.jsonl"), folder.read("heldout.jsonl")
    assert [line["iteration"] for line in details] == [line["iteration"] for line in records] == [0, 1, 2]
    for record, line in zip(records, details, strict=True):
        assert 0 <= record["score"] <= 1
        assert len(line["problems"]) == len(set(line["problems"])) == len(line["sampled"]) == 4
        assert sum(line["solved"]) / 4 == record["score"]
        assert sum(solved / of for solved, of in line["sampled"]) / 4 == pytest.approx(record["pass@1"])
        shown = line["conversations"]
        assert [talk["problem_id"] for talk in shown] == line["problems"][:3]
        assert {talk["iteration"] for talk in shown} == {line["iteration"]}
        assert {talk["turns"] for talk in shown} == {1}
        assert all(talk["messages"][-1]["role"] == "assistant" for talk in shown)
    assert details[0]["problems"] == details[2]["problems"]
    assert len({record["score"] for record in records} | {0.0, 1.0}) > 2, "some problems are solved, some not"


@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_kl_is_the_mean_log_ratio_to_the_model_before_training(
    configure, tmp_path, reporter, evaluated, use_lora
):
    folder = run(configure(*MOVES, f"model.use_lora={use_lora}"), tmp_path / "run", reporter)
    first, *later = [record["kl"] for record in folder.read("evals.jsonl")]
    assert first == 0
    assert all(later)

    model = ModelConfig("x", str(folder.initial_model), use_lora=False, gradient_checkpointing=False)
    config, _ = configure()
    initial = load_policy(str(folder.initial_model), model, config.hardware)
    last = folder.checkpoints / "last"
    if use_lora:
        lora = ModelConfig("x", str(folder.initial_model), use_lora=True, gradient_checkpointing=False)
        policy = load_policy(str(folder.initial_model), lora, config.hardware, adapter=last)
    else:
        policy = load_policy(str(last), model, config.hardware)
    by_answer = []
    for answer in (t for group in evaluated[-1].sampled for t in group):
        ids, mask = torch.tensor([answer.token_ids]), torch.tensor([answer.action_mask])
        with torch.no_grad():
            now, before = (p(ids, mask, config.rollout.temperature)[0] for p in (policy, initial))
        by_answer.append((now - before)[mask].mean().item())
    assert later[-1] == pytest.approx(sum(by_answer) / len(by_answer), abs=1e-5)


def test_kl_is_left_out_where_it_would_take_a_second_copy_of_large_weights(folders, configure, tmp_path):
    large = (f"model.name={folders['qwen3']}", "model.use_lora=false", "model.cold_start.steps=0")
    assert not configure(*large)[0].keeps_reference
    assert configure(*large, "evaluation.kl=true")[0].keeps_reference
    assert not configure("evaluation.kl=false")[0].measures_kl
    assert configure()[0].keeps_reference
    assert configure("model.use_lora=true")[0].measures_kl
    assert not configure("model.use_lora=true")[0].keeps_reference
    assert not configure("evaluation.samples=0")[0].measures_kl


def test_measuring_kl_changes_nothing_else(configure, tmp_path, reporter):
    logs = []
    for name in ("true", "false"):
        folder = run(configure(*MOVES, f"evaluation.kl={name}"), tmp_path / name, reporter)
        logs.append(
            [[line["reward"], line["loss"], line["grad_norm"]] for line in folder.read("metrics.jsonl")]
        )
        assert (folder.read("evals.jsonl")[-1]["kl"] is None) == (name == "false")
    assert logs[0] == logs[1]


def test_an_evaluation_without_samples_says_so(configure, tmp_path, reporter):
    folder = run(configure("evaluation.samples=0"), tmp_path / "run", reporter)
    assert [line["sampled"] for line in folder.read("heldout.jsonl")] == [None, None]
    assert [line["kl"] for line in folder.read("evals.jsonl")] == [None, None]


def test_a_negative_number_of_shown_answers_is_refused():
    done = call("gspo-eval", "tiny", "--samples", "-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gspo-eval: --samples -1: give 0 or more, such as --samples 3\n"
