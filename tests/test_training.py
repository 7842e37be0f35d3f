"""Whole runs, small: every kind of model trains, and everything a user gets wrong is said or counted."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardError, RewardFunction
from gspo_cli.rewards.scoring import score, validate
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import RunStatus
from gspo_cli.training.credit import trainable, with_advantages
from gspo_cli.training.session import run_training
from gspo_cli.training.watch import StopRequest
from gspo_cli.types import FinishReason, Problem, RewardResult, Trajectory
from gspo_cli.user_cache import cache_folder, one_at_a_time
from tests.support.whole_runs import EvenReward, dotted, run

pytestmark = pytest.mark.long

METRICS = """reward reward_std rewards/even/mean frac_reward_zero_std completions/mean_length
completions/min_length completions/max_length completions/clipped_ratio num_turns entropy clip_ratio/low_mean
clip_ratio/high_mean clip_ratio/region_mean clip_ratio/token clip_ratio/sequence ratio/mean ratio/min
ratio/max ratio/std ratio/first_step_abs_err grad_norm learning_rate sampling/logp_difference/mean
sampling/logp_difference/max num_tokens tokens_per_second time/rollout time/reward time/score time/update
memory/peak_gb"""


class SometimesBroken(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        if context["problem"].id.startswith("1"):
            raise ValueError("grader is down")
        return RewardResult(float("nan") if trajectory.token_ids[-1] % 3 == 0 else 1.0)


class AlwaysZero(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(0.0)


@pytest.mark.parametrize("use_lora", ["true", "false"])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
def test_any_local_folder_trains(folders, configure, tmp_path, reporter, name, use_lora):
    configured = configure(
        f"model.name={folders[name]}", f"model.use_lora={use_lora}", "model.cold_start.steps=0",
        "model.gradient_checkpointing=true", dotted(EvenReward), "algorithm.beta=0.1",
    )  # fmt: skip
    summary, folder = run(configured, tmp_path, reporter)
    assert summary["status"] == "completed"
    lines = folder.read("metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    assert lines[0]["ratio/first_step_abs_err"] < 1e-5
    assert (
        folder.checkpoints / "last" / ("adapter_config.json" if use_lora == "true" else "config.json")
    ).exists()
    assert not folder.initial_model.exists()


@pytest.mark.parametrize("model", ["tiny", "tiny_moe"])
def test_embedded_models_train_and_the_folder_keeps_its_contract(configure, tmp_path, reporter, model):
    summary, folder = run(configure(f"model={model}", dotted(EvenReward)), tmp_path, reporter)
    logs = ("metrics.jsonl", "evals.jsonl", "samples.jsonl")
    for name in ("config.yaml", "card.txt", "card.json", *logs, "summary.json"):
        assert (folder.path / name).stat().st_size > 0
    assert json.loads((folder.path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for key in (
        "status",
        "algorithm",
        "model",
        "task",
        "seed",
        "iterations",
        "num_tokens",
        "wall_seconds",
        "versions",
        "machine",
    ):
        assert summary[key] is not None
    assert [e["iteration"] for e in folder.read("evals.jsonl")] == [0, 2]
    assert summary["initial_eval"]["score"] == folder.read("evals.jsonl")[0]["score"]
    names = set(METRICS.split())
    assert names <= set(folder.read("metrics.jsonl")[0])
    sample = folder.read("samples.jsonl")[0]
    assert {"iteration", "messages", "expected", "reward", "components", "advantage"} <= set(sample)


def test_the_policy_learns_what_is_rewarded(configure, tmp_path, reporter):
    configured = configure(
        dotted(EvenReward),
        "training.num_outer_iterations=24",
        "algorithm.learning_rate=0.003",
        "training.generations_per_iteration=64",
        "evaluation.every=0",
    )
    _, folder = run(configured, tmp_path, reporter)
    rewards = [line["reward"] for line in folder.read("metrics.jsonl")]
    assert rewards[-1] > rewards[0] + 0.1


def test_the_same_seed_gives_the_same_run_and_another_seed_another(configure, tmp_path, reporter):
    logs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _, folder = run(configure(dotted(EvenReward), f"seed={seed}"), tmp_path / name, reporter)
        logs.append([line["reward"] for line in folder.read("metrics.jsonl")])
    assert logs[0] == logs[1] != logs[2]


def test_evaluation_does_not_touch_the_training_randomness(configure, tmp_path, reporter):
    logs = []
    for name, every in (("a", 0), ("b", 1)):
        configured = configure(
            dotted(EvenReward), f"evaluation.every={every}", "training.num_outer_iterations=3"
        )
        _, folder = run(configured, tmp_path / name, reporter)
        logs.append([(line["reward"], line["loss"]) for line in folder.read("metrics.jsonl")])
    assert logs[0] == logs[1]


def test_a_reward_that_fails_ends_the_run_with_its_reason(configure, tmp_path, reporter):
    with pytest.raises(UserError, match=r"reward: SometimesBroken .*training\.reward_errors=exclude"):
        run(configure(dotted(SometimesBroken)), tmp_path, reporter)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"


class Odd(RewardFunction):
    """Numbers of numpy and torch are plain numbers here."""

    def compute_reward(self, trajectory, turn, context):
        return RewardResult(torch.tensor(0.5), {"part": np.float32(0.25)})


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (RewardResult(None), "not a number"),
        (RewardResult(float("inf")), "total_reward that is not finite"),
        (RewardResult(1.0, {"a": float("nan")}), "a that is not finite"),
        (0.5, "returned float, not RewardResult"),
    ],
)
def test_what_is_no_finite_number_is_a_reward_error(result, reason):
    class Returns(RewardFunction):
        def compute_reward(self, trajectory, turn, context):
            return result

    trajectory = Trajectory(Problem("p", ()), [1], [True], [0.0], [0], [], FinishReason.stop)
    with pytest.raises(RewardError, match=reason):
        validate(Returns(), trajectory, *score(Returns(), [trajectory]))
    plain = validate(Odd(), trajectory, *score(Odd(), [trajectory]))
    assert (plain.total_reward, plain.component_rewards) == (0.5, {"part": 0.25})


def test_kl_is_logged_where_it_is_trained_on(configure, tmp_path, reporter):
    configured = configure("algorithm.beta=0.1", "algorithm.learning_rate=0.01", dotted(EvenReward))
    _, folder = run(configured, tmp_path, reporter)
    assert folder.read("metrics.jsonl")[1]["kl"] > 0
    _, folder = run(configure(dotted(EvenReward)), tmp_path / "b", reporter)
    assert "kl" not in folder.read("metrics.jsonl")[0]


def test_any_text_survives_in_the_logs(tmp_path):
    folder = RunFolder(tmp_path)
    texts = ["a\u2028b", "c\u0085d\x1c", "e\nf", "\u2029"]
    for iteration, text in enumerate(texts):
        folder.append("samples.jsonl", {"iteration": iteration, "text": text})
    folder.rewind(2)
    assert [line["text"] for line in folder.read("samples.jsonl")] == texts[:3]


def test_a_cold_start_that_diverges_saves_and_caches_nothing(configure, tmp_path, reporter):
    configured = configure("model.cold_start.steps=20")
    configured[0].model.cold_start.learning_rate = 1e12  # no configuration allows it
    with pytest.raises(UserError, match=r"model\.cold_start\.learning_rate=1e\+12"):
        run(configured, tmp_path, reporter)
    assert not (tmp_path / "run" / "initial_model").exists()


def test_a_cache_that_cannot_be_written_does_not_end_the_run(configure, tmp_path, reporter, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    summary, _ = run(configure("model.cold_start.seed=77"), tmp_path, reporter)
    assert summary["status"] == "completed"


def test_or_leaves_the_sample_out_counted_and_never_as_zero(configure, tmp_path, reporter):
    configured = configure(
        dotted(SometimesBroken), "training.reward_errors=exclude", "training.generations_per_iteration=64"
    )
    summary, folder = run(configured, tmp_path, reporter)
    lines = folder.read("metrics.jsonl")
    assert summary["status"] == "completed"
    assert sum(line["excluded"] for line in lines) > 0
    assert all(line["reward"] is None or line["reward"] > 0 for line in lines)
    assert any("left out" in text for text in reporter.warnings)


def test_equal_rewards_are_counted_and_change_no_weight(configure, tmp_path, reporter):
    _, folder = run(configure(dotted(AlwaysZero)), tmp_path, reporter)
    line = folder.read("metrics.jsonl")[0]
    assert (line["frac_reward_zero_std"], line["loss"], line["grad_norm"]) == (1.0, 0.0, 0.0)
    from safetensors.torch import load_file

    before = load_file(folder.initial_model / "model.safetensors")
    after = load_file(folder.checkpoints / "last" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_dynamic_sampling_draws_again_up_to_its_cap(configure, tmp_path, reporter):
    configured = configure(
        "algorithm=dapo", "algorithm.dynamic_sampling_max_rounds=3", dotted(AlwaysZero), "checkpoint.every=1"
    )
    _, folder = run(configured, tmp_path, reporter)
    line = folder.read("metrics.jsonl")[0]
    assert line["sampling/rounds"] == 3
    problems = len(configured[0].task.train_problems())
    assert line["epoch"] * problems == pytest.approx(12)  # three rounds of four prompts
    _, folder = run(configure("algorithm=dapo", dotted(EvenReward)), tmp_path / "b", reporter)
    assert folder.read("metrics.jsonl")[0]["sampling/rounds"] <= 2


@pytest.mark.parametrize("setting", ["keep", "mask", "penalise"])
def test_answers_cut_by_the_cap_are_kept_masked_or_penalised(configure, tmp_path, reporter, setting):
    configured = configure(
        f"algorithm.truncated_completions={setting}",
        "rollout.max_completion_length=1",
        "training.num_outer_iterations=1",
        dotted(EvenReward),
    )
    summary, folder = run(configured, tmp_path, reporter)
    line = folder.read("metrics.jsonl")[0]
    assert summary["status"] == "completed"
    assert line["completions/clipped_ratio"] == 1  # of one random token, none is the end token
    if setting == "mask":  # nothing is left to train on: no gradient, weights as they were
        assert (line["grad_norm"], line["loss"]) == (0.0, 0.0)
    else:  # a penalty on every answer of a group cancels in its baseline
        assert line["grad_norm"] > 0


def test_the_penalty_lowers_cut_answers_against_their_group(configure, load):
    config, _ = configure("algorithm.truncated_completions=penalise", "algorithm.truncation_penalty=0.5")
    group = [
        Trajectory(Problem("p", ()), [1, 2], [False, True], [0.0] * 2, [-1, 0], [], reason, reward=1.0)
        for reason in (FinishReason.stop, FinishReason.length)
    ]
    samples = trainable([group], config.algorithm)
    one, other = with_advantages(samples, [group], config.algorithm, limit=32)
    assert one.advantages == [pytest.approx(0.5**0.5)]
    assert other.advantages == [pytest.approx(-(0.5**0.5))]


def test_the_length_curriculum_caps_answers(configure, tmp_path, reporter):
    configured = configure(
        "training.length_curriculum_start=1", "training.length_curriculum_iterations=2", dotted(EvenReward)
    )
    _, folder = run(configured, tmp_path, reporter)
    longest = [line["completions/max_length"] for line in folder.read("metrics.jsonl")]
    assert longest[0] == 1
    assert longest[1] <= 4


def test_prompts_over_the_cap_are_left_out_with_a_count_or_refused(configure, tmp_path, reporter):
    two_digits = configure("task=arithmetic", "rollout.max_prompt_length=7")
    run(two_digits, tmp_path, reporter)
    assert any("training problems are left out" in text for text in reporter.warnings)
    with pytest.raises(UserError, match=r"rollout\.max_prompt_length=2: all"):
        run(configure("rollout.max_prompt_length=2"), tmp_path / "b", reporter)


def test_a_context_too_short_for_prompt_and_answer_is_refused(folders, configure):
    configured = configure(
        f"model.name={folders['gpt2']}", "model.cold_start.steps=0", "rollout.max_completion_length=400"
    )
    assert configured[0].rollout.max_prompt_length == 112  # of 512 positions
    given = [f"model.name={folders['gpt2']}", "rollout.max_completion_length=400"]
    with pytest.raises(UserError, match=r"=200 rollout.max_completion_length=312$"):
        configure(*given, "rollout.max_prompt_length=200")


def test_training_stops_early_at_the_wanted_score(configure, tmp_path, reporter):
    summary, _ = run(configure("evaluation.stop_at_score=0.0"), tmp_path, reporter)
    assert (summary["status"], summary["iterations"]) == ("stopped_early", 0)


@pytest.mark.parametrize(
    ("setting", "status"),
    [("evaluation.stop_at_score=0.0", "stopped_early"), ("training.num_outer_iterations=1", "completed")],
)
def test_a_resumed_run_that_ends_at_once_is_evaluated_where_it_ends(
    configure, tmp_path, reporter, setting, status
):
    def interrupted(values, step):
        stop.status = RunStatus.interrupted if step else None

    rare, stop = ["evaluation.every=0", dotted(EvenReward)], StopRequest()
    (config, yaml), folder = configure(*rare), RunFolder(tmp_path / "run")
    folder.create(yaml)
    assert run_training(config, folder, reporter, interrupted, stop=stop)["status"] == "interrupted"
    assert [record["iteration"] for record in folder.read("evals.jsonl")] == [0]
    summary = run_training(configure(*rare, setting)[0], folder, reporter)
    assert (summary["status"], summary["iterations"]) == (status, 1)
    for log in ("evals.jsonl", "heldout.jsonl"):
        assert [record["iteration"] for record in folder.read(log)] == [0, 1]


def test_truncated_sampling_is_reported_as_the_bias_it_is(configure, tmp_path, reporter):
    _, folder = run(configure("rollout.top_p=0.5", dotted(EvenReward)), tmp_path, reporter)
    assert 0.2 < folder.read("metrics.jsonl")[0]["sampling/truncated_mass"] <= 0.5
    assert "rollout.top_p" in (folder.path / "card.txt").read_text()


def test_a_run_does_not_land_on_another(configure, tmp_path, reporter):
    configured = configure()
    run(configured, tmp_path, reporter)
    with pytest.raises(UserError, match="already contains a run"):
        run(configured, tmp_path, reporter)


def test_the_cold_start_is_cached_by_content(configure, tmp_path, reporter):
    steps = []
    for name, override in (("a", "seed=0"), ("b", "seed=1"), ("c", "model.cold_start.seed=5")):
        reporter.events.clear()
        run(configure(override, "model.cold_start.learning_rate=0.0011"), tmp_path / name, reporter)
        steps.append([done for stage, done in reporter.events if stage == "cold start"])
    assert steps == [[1, 2, 3], [3], [1, 2, 3]]
    models = [
        (tmp_path / name / "run" / "initial_model" / "model.safetensors").read_bytes() for name in "abc"
    ]
    assert models[0] == models[1] != models[2]


def test_a_cold_start_that_another_run_trains_is_waited_for(configure, tmp_path, reporter, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = (configure("model.cold_start.learning_rate=0.0013") for _ in range(2))
    run(first, tmp_path / "first", reporter)
    (cached,) = [path for path in cache_folder("cold_start").iterdir() if path.is_dir()]
    hidden = cached.rename(tmp_path / "hidden")
    reporter.events.clear()
    with ThreadPoolExecutor() as pool:
        with one_at_a_time(cached, pytest.fail):
            waiting = pool.submit(run, second, tmp_path / "second", reporter)
            while not reporter.events:
                time.sleep(0.01)
            hidden.rename(cached)
        waiting.result()
    assert [done for stage, done in reporter.events if stage == "cold start"] == [0, 3]


def test_a_cold_start_from_a_file_works_for_any_model(folders, configure, tmp_path, reporter):
    path = tmp_path / "demonstrations.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n' * 4)
    for use_lora in ("true", "false"):
        configured = configure(
            f"model.name={folders['gpt2']}", f"model.use_lora={use_lora}", dotted(EvenReward),
            f"model.cold_start.demonstrations={path}", "model.cold_start.steps=40",
            "model.cold_start.learning_rate=0.01", "rollout.max_completion_length=4",
        )  # fmt: skip
        summary, folder = run(configured, tmp_path / use_lora, reporter)
        assert (folder.initial_model / "config.json").exists()  # adapter merged: an ordinary model folder
        assert summary["status"] == "completed"


def test_a_task_without_demonstrations_says_what_to_give(configure, tmp_path, reporter):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f'{{"prompt": "say {i}", "answer": "{i}"}}\n' for i in range(9)))
    configured = configure("task=jsonl", f"task.path={path}", "task.heldout=2")
    with pytest.raises(
        UserError, match=r"model\.cold_start\.demonstrations, or set model\.cold_start\.steps=0"
    ):
        run(configured, tmp_path, reporter)
    summary, _ = run(
        configure("task=jsonl", f"task.path={path}", "task.heldout=2", "model.cold_start.steps=0"),
        tmp_path / "b", reporter,
    )  # fmt: skip
    assert summary["status"] == "completed"
