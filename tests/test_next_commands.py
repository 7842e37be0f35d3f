"""The comparison that a finished run proposes works as it is printed, and contains the run itself."""

from __future__ import annotations

import json
import shlex

import pytest

from gspo_cli.commands.compare import compare_settings
from gspo_cli.compare.missing_runs import SharedSettings, runs_to_compare
from gspo_cli.config.compose import resolved_yaml
from gspo_cli.console.words import next_commands
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import computed, saved_settings
from gspo_cli.training.session import run_training
from tests.test_words import summary

pytestmark = pytest.mark.long


def proposed(summary):
    """What gspo-compare gets of the last command."""
    program, *arguments = shlex.split(next_commands(summary)[-1][0])
    assert program == "gspo-compare"
    return arguments


def test_model_task_and_settings_are_carried_over_and_the_algorithms_own_stay_with_it():
    own = ["task=jsonl", "model=small", "algorithm=gspo", "model.name=some/model", "task.path=rows.jsonl"]
    own += ["algorithm.learning_rate=0.0004"]
    assert proposed(summary(overrides=own)) == [
        *("task=jsonl", "model=small", "model.name=some/model", "task.path=rows.jsonl"),
        'compare.algorithms=["gspo algorithm.learning_rate=0.0004",grpo]',
    ]
    assert next_commands(summary(overrides=own))[-1][1] == "compare it with grpo over 3 seeds each"


def test_where_the_settings_cannot_be_expressed_the_command_says_what_to_add():
    assert next_commands(summary(overrides=None))[-1][1].endswith("; add your other settings")


def test_no_comparison_is_proposed_that_gspo_compare_refuses():
    own = ["task=arithmetic", "model=tiny", "training.updates_per_rollout=1"]
    assert "compare" not in " ".join(command for command, _ in next_commands(summary(overrides=own)))


@pytest.mark.parametrize(
    ("algorithm", "settings", "arms"),
    [
        # the advantages of a value head and pairs differ from a ratio's with one update, too
        ("a2c", ["training.updates_per_rollout=1"], "[a2c,ppo]"),
        ("ppo", ["training.updates_per_rollout=1"], "[ppo,a2c]"),
        ("dpo", ["training.updates_per_rollout=1"], "[dpo,ppo]"),
        ("a2c", ["training.num_generations=1"], "[a2c,ppo]"),
        ("a2c", [], "[a2c,grpo]"),
        ("sapo", ["training.updates_per_rollout=1", "training.passes=2"], "[sapo,grpo]"),
        ("sapo", ["training.updates_per_rollout=1"], None),
    ],
)
def test_the_partner_is_one_that_gspo_compare_takes(algorithm, settings, arms):
    own = ["task=arithmetic", "model=tiny", f"algorithm={algorithm}", *settings]
    found = [command for command, _ in next_commands(summary(algorithm=algorithm, overrides=own))]
    compared = [shlex.split(command)[1:] for command in found if command.startswith("gspo-compare")]
    assert [given[-1] for given in compared] == ([f"compare.algorithms={arms}"] if arms else [])
    for given in compared:
        chosen = [text for text in given if text.startswith("compare.")]
        shared = SharedSettings([text for text in given if text not in chosen])
        assert len(runs_to_compare(shared, compare_settings(chosen))) == 6


@pytest.mark.parametrize("algorithm", ["gspo", "grpo"])
def test_the_proposed_comparison_contains_the_run(
    configure, folders, tmp_path, reporter, monkeypatch, algorithm
):
    rows = tmp_path / "my rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{n} + 1 =", "answer": str(n + 1)}) + "\n" for n in range(9))
    )
    config, yaml = configure(
        *("task=jsonl", f"model.name={folders['qwen3']}", f"algorithm={algorithm}"),
        *(f"task.path='{rows}'", "task.heldout=2", "evaluation.problems=2", "algorithm.learning_rate=3e-4"),
        *("training.num_outer_iterations=1", "model.cold_start.steps=0"),
    )
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    arguments = proposed(run_training(config, folder, reporter))
    monkeypatch.chdir(tmp_path)
    ours = [text for text in arguments if text.startswith("compare.")]
    runs = runs_to_compare(
        SharedSettings([text for text in arguments if text not in ours]), compare_settings(ours)
    )
    same = next(run for run in runs if run.config.algorithm.name == algorithm and run.seed == config.seed)
    assert len(runs) == 6
    same.folder.mkdir(parents=True)
    (same.folder / "config.yaml").write_text(resolved_yaml(same.node))
    assert computed(saved_settings(same.folder)) == computed(saved_settings(folder.path))
