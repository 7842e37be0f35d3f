"""Two stages in a row: a run, then another one that continues its best checkpoint; and commands on either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gspo_cli.commands.model_source import resolve
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import load_policy
from gspo_cli.run.folder import RunFolder
from gspo_cli.sources import find_source
from tests.support.batches import ragged
from tests.support.command_line import call, gspo_train
from tests.support.whole_runs import SMALL, assert_same_run

pytestmark = pytest.mark.long

LORA = ["model.use_lora=true", "algorithm.learning_rate=0.01"]


def scores(policy):
    ids, mask = ragged(policy)
    with torch.no_grad():
        return policy(ids, mask, 1.0)[0]


def loaded(name, **settings):
    defaults = {"label": "x", "name": str(name), "gradient_checkpointing": False}
    return load_policy(str(name), ModelConfig(**(defaults | settings)), HardwareConfig())


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A first stage: a cold start, then four iterations of LoRA."""
    folder = tmp_path_factory.mktemp("first") / "run"
    done = gspo_train(*SMALL, *LORA, "training.num_outer_iterations=4", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def second(first, folder, iterations, *overrides):
    """A second stage that starts from the first one, with a KL penalty to its beginning."""
    name = [f"model.name={first.name}", "algorithm.beta=0.1", f"hydra.run.dir={folder}"]
    given = [*SMALL, *LORA, *name, f"training.num_outer_iterations={iterations}", *overrides]
    given.remove("model.cold_start.steps=3")
    return gspo_train(*given, cwd=first.parent)


@pytest.fixture(scope="module")
def uninterrupted(first, tmp_path_factory) -> Path:
    """The second stage without a stop, started from the folder that the first one is in."""
    folder = tmp_path_factory.mktemp("second") / "run"
    done = second(first, folder, 4, "checkpoint.every=1")
    assert done.returncode == 0, done.stderr
    assert "training continues the adapter" in done.stdout
    assert "peft" not in done.stdout + done.stderr
    return folder


def test_a_second_stage_begins_where_the_first_one_was_best(first, uninterrupted):
    best = RunFolder(first).checkpoint_model("best", ModelConfig(label="x", name="embedded"))
    assert RunFolder(uninterrupted).checkpoint_model("initial", ModelConfig("x", str(best.adapter))) == best
    begun, ended = (RunFolder(folder).read("evals.jsonl") for folder in (uninterrupted, first))
    [reached] = [line for line in ended if line["iteration"] == int(best.adapter.name[-6:])]
    assert [begun[0][key] for key in ("score", "reward", "pass@1")] == [
        reached[key] for key in ("score", "reward", "pass@1")
    ]
    assert begun[0]["kl"] == 0  # to the adapter as it was
    assert begun[-1]["kl"] != 0
    card = json.loads((uninterrupted / "card.json").read_text())
    assert card["objective"]["reference"] == "adapter as it was"
    assert card["sizes"]["parameters"] == json.loads((first / "card.json").read_text())["sizes"]["parameters"]


def test_a_resumed_second_stage_equals_the_uninterrupted_one_to_the_bit(first, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    assert second(first, folder, 2, "checkpoint.every=1", "evaluation.every=4").returncode == 0
    done = gspo_train(
        f"resume={folder}", "training.num_outer_iterations=4", "evaluation.every=2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, uninterrupted)


def test_all_weights_can_be_trained_on_from_an_adapter(first, tmp_path):
    folder = tmp_path / "run"
    done = second(
        first, folder, 1, "model.use_lora=false", "algorithm.learning_rate=1e-3", "evaluation.kl=true"
    )
    assert done.returncode == 0, done.stderr
    assert "all weights are trained" in done.stdout
    last = find_source(str(folder / "checkpoints" / "last"))
    assert last.adapter is None
    assert RunFolder(folder).read("evals.jsonl")[0]["kl"] == 0
    whole = find_source(str(first)).adapter
    assert find_source(str(first)) == RunFolder(folder).checkpoint_model(
        "initial", ModelConfig("x", str(whole))
    )


def test_a_cold_start_from_an_adapter_begins_with_it(first, tmp_path):
    done = second(
        first, tmp_path / "run", 1, "model.cold_start.steps=2", "model.cold_start.learning_rate=1e-9"
    )
    assert done.returncode == 0, done.stderr
    policy, cold = loaded(first), loaded(tmp_path / "run" / "initial_model", use_lora=False)
    torch.testing.assert_close(scores(cold), scores(policy), rtol=0, atol=1e-5)


def test_a_contradicting_rank_is_refused_and_nothing_is_written(first, tmp_path):
    done = second(first, tmp_path / "run", 1, "model.lora_r=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gspo-train: model.lora_r=3: training continues the adapter in ")
    assert not (tmp_path / "run").exists()


def record(*arguments):
    done = call("gspo-eval", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return {k: v for k, v in json.loads(done.stdout).items() if not k.startswith("time/")}


def test_eval_takes_runs_checkpoints_adapters_and_models_alike(first, tmp_path):
    expected = record(str(first))
    best = (first / "checkpoints" / "best").resolve()
    assert record(str(best)) == expected
    assert record(str(first), "--checkpoint", str(int(best.name[-6:]))) == expected
    shutil.copytree(best, tmp_path / "adapter")
    task = ["task=arithmetic", "task.digits=1", "task.heldout=20", "evaluation.problems=4"]
    same = ["model.turn_length=8", "rollout.max_completion_length=8", "hardware.threads=1"]
    reward = "reward=tests.support.whole_runs.EvenReward"
    assert record(str(tmp_path / "adapter"), *task, *same, reward, "model=tiny") == expected
    loaded(tmp_path / "adapter", use_lora=False).save(tmp_path / "plain")
    assert record(str(tmp_path / "plain"), *task, *same, reward, "model=tiny")["score"] == expected["score"]


def test_chat_talks_to_an_adapter(first, tmp_path):
    shutil.copytree(first / "checkpoints" / "best", tmp_path / "adapter")
    arguments = ["--free", "task=arithmetic", "model.instructions=false"]
    done = call("gspo-chat", str(tmp_path / "adapter"), *arguments, typed="1+2=\n")
    assert done.returncode == 0, done.stderr
    assert "agent:" in done.stdout


def test_code_of_a_model_is_trusted_only_where_that_is_typed(first, tmp_path):
    shutil.copytree(first, tmp_path / "run", symlinks=True)
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(saved.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    with pytest.raises(UserError, match=r"type model\.trust_remote_code=true to allow it"):
        resolve(str(tmp_path / "run"), "best", [])
    assert resolve(str(tmp_path / "run"), "best", ["model.trust_remote_code=true"])[0].model.trust_remote_code


def test_a_run_without_a_checkpoint_is_no_model(first, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(first / "config.yaml", tmp_path / "run")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        find_source(str(tmp_path / "run"))
