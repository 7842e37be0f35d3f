"""A run is known again by what it computes, and its folder says how far it is."""

from __future__ import annotations

import json

import pytest
from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.compose import composed, resolved_yaml
from gspo_cli.errors import UserError
from gspo_cli.run.identity import State, changed_settings, fingerprint, prepare, saved_settings, state_of

SMALL = ["task=arithmetic", "training.num_outer_iterations=2"]


def plain(node: DictConfig) -> dict:
    return OmegaConf.to_container(node, resolve=True, enum_to_str=True)


def test_a_fingerprint_is_of_what_is_computed():
    settings = plain(composed(SMALL))
    for changed in ("logging.run_name=x", "checkpoint.every=3", "hardware.threads=2", "resume=x"):
        other = plain(composed([*SMALL, changed]))
        assert fingerprint(other) == fingerprint(settings)
    for changed in (
        "seed=1",
        "training.num_outer_iterations=3",
        "evaluation.every=5",
        "rollout.batch_size=8",
    ):
        other = plain(composed([*SMALL, changed]))
        assert changed_settings(settings, other) == [changed.partition("=")[0]]
        assert fingerprint(other) != fingerprint(settings)


def test_the_two_spellings_of_penalize_are_one_run():
    one, other = (plain(composed([*SMALL, f"algorithm.truncated_completions=penali{c}e"])) for c in "sz")
    assert one["algorithm"]["truncated_completions"] == "penalise"
    assert fingerprint(one) == fingerprint(other)


def test_checkpoints_count_where_a_collapse_returns_to_one():
    rollback = [*SMALL, "training.on_collapse=rollback"]
    one = plain(composed(rollback))
    other = plain(composed([*rollback, "checkpoint.every=3"]))
    assert changed_settings(one, other) == ["checkpoint.every"]


def test_a_folder_is_prepared_once_and_known_again(tmp_path):
    folder, node = tmp_path / "run", composed([*SMALL, "algorithm.learning_rate=3e-5"])
    assert prepare(folder, resolved_yaml(node)) is State.new
    assert prepare(folder, resolved_yaml(node)) is State.started
    in_memory = plain(node)
    assert fingerprint(saved_settings(folder)) == fingerprint(in_memory)
    with pytest.raises(UserError, match=r"another configuration \(seed\)"):
        prepare(folder, resolved_yaml(composed([*SMALL, "algorithm.learning_rate=3e-5", "seed=4"])))


@pytest.mark.parametrize(
    ("status", "iterations", "state"),
    [
        ("completed", 2, State.complete),
        ("completed", 1, State.started),
        ("stopped_early", 1, State.complete),
        ("collapsed", 1, State.complete),
        ("interrupted", 1, State.started),
        ("failed", 2, State.started),
    ],
)
def test_the_state_of_a_folder_is_what_its_summary_says(tmp_path, status, iterations, state):
    assert state_of(tmp_path) is State.new
    prepare(tmp_path, resolved_yaml(composed(SMALL)))
    (tmp_path / "summary.json").write_text(json.dumps({"status": status, "iterations": iterations}))
    assert state_of(tmp_path) is state
