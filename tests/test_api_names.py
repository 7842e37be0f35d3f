"""A GSPOConfig under the names of TRL and the guide: each sets what it says, or is refused with a reason."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli import GSPOConfig, UserError, get_config_for_task, train_with_gspo, train_with_gspo_token
from gspo_cli.api.carried_over import CARRIED, FIXED, REFUSED
from gspo_cli.api.config import KEYS
from gspo_cli.api.training import run_node
from gspo_cli.config.checks import override_key
from gspo_cli.config.compose import build_config
from gspo_cli.config.hints import ELSEWHERE
from tests.support.api_runs import arithmetic, quick_config, tiny_agent
from tests.support.whole_runs import EvenReward


def node_of(config):
    node = run_node("gspo", config, tiny_agent(), arithmetic())
    config.apply_sizes(node)
    build_config(node)
    return node


@pytest.mark.parametrize(
    ("name", "value", "key", "becomes"),
    [
        ("num_iterations", 2, "training.passes", 2),
        ("save_steps", 5, "checkpoint.every", 5),
        ("save_total_limit", 3, "checkpoint.keep", 3),
        ("eval_steps", 7, "evaluation.every", 7),
        ("warmup_steps", 4, "training.warmup_iterations", 4),
        ("lr_scheduler_type", "cosine", "training.schedule", "cosine"),
        ("max_grad_norm", 0.5, "training.max_grad_norm", 0.5),
        ("weight_decay", 0.01, "training.weight_decay", 0.01),
        ("top_k", 50, "rollout.top_k", 50),
        ("bf16", True, "hardware.precision", "bf16"),
        ("bf16", False, "hardware.precision", "fp32"),
        ("lora_target_modules", ["q_proj", "v_proj"], "model.lora_target_modules", ["q_proj", "v_proj"]),
        ("lora_target_modules", "all-linear", "model.lora_target_modules", ["all-linear"]),
        ("per_device_train_batch_size", 2, "hardware.tokens_per_microbatch", 2 * (100 + 28)),
    ],
)
def test_a_name_of_trl_sets_what_it_means_here(name, value, key, becomes):
    lengths = {"max_prompt_length": 100, "max_completion_length": 28}
    node = node_of(GSPOConfig(**{name: value}, **lengths))
    found = OmegaConf.select(node, key)
    assert getattr(found, "value", found) == becomes
    other = "hardware.tokens_per_microbatch" if name != "per_device_train_batch_size" else "checkpoint.every"
    assert OmegaConf.select(node, other) == OmegaConf.select(node_of(GSPOConfig(**lengths)), other)


def test_every_carried_name_is_among_them():
    [marks] = [m for m in test_a_name_of_trl_sets_what_it_means_here.pytestmark if m.name == "parametrize"]
    assert {row[0] for row in marks.args[1]} == set(CARRIED)


def test_an_override_wins_over_a_carried_name():
    config = GSPOConfig(save_steps=5, per_device_train_batch_size=2, overrides=["checkpoint.every=9"])
    assert node_of(config).checkpoint.every == 9
    given = GSPOConfig(per_device_train_batch_size=2, overrides=["hardware.tokens_per_microbatch=64"])
    assert node_of(given).hardware.tokens_per_microbatch == 64


@pytest.mark.parametrize("name", FIXED)
def test_what_has_one_meaning_here_takes_one_value(name):
    only, why = FIXED[name]
    assert GSPOConfig(**{name: only})
    with pytest.raises(UserError) as error:
        GSPOConfig(**{name: only + 1})
    assert str(error.value) == f"GSPOConfig.{name}={only + 1}: {why}; leave it out, or give {only}"


def test_dropout_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"^GSPOConfig.lora_dropout=0.05: dropout makes the ratio of an "):
        GSPOConfig(lora_dropout=0.05)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_says_what_to_do(name):
    with pytest.raises(UserError) as error:
        GSPOConfig(**{name: 1})
    assert str(error.value) == f"GSPOConfig.{name}: is not a setting; {REFUSED[name]}"


def changed(**named):
    return GSPOConfig.from_training_config(GSPOConfig(), **named)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rat", "did you mean learning_rate?"),
        ("lr", "learning_rate sets that here"),
        ("group_size", "num_generations sets that here"),
        ("epsilon", "clip_range_left sets that here"),
        ("load_in_4bit", "use_4bit sets that here"),
        ("lora_rank", "lora_r sets that here"),
        ("optimizer", 'overrides=["training.optimizer=..."] sets that here'),
        ("scale_rewards", 'overrides=["algorithm.advantage_scale=..."] sets that here'),
        ("xyzzy", "available settings are num_generations, "),
    ],
)
@pytest.mark.parametrize(
    "make", [GSPOConfig, lambda **named: GSPOConfig.from_training_config(GSPOConfig(), **named)]
)
def test_an_unknown_name_is_one_sentence_with_the_nearest(make, name, hint):
    with pytest.raises(UserError) as error:
        make(**{name: 1})
    assert str(error.value).startswith(f"GSPOConfig.{name}: is not a setting; {hint}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_name_of_other_libraries_is_taken_or_refused_in_one_sentence(name):
    known = set(GSPOConfig().__dataclass_fields__)
    if name not in known:
        with pytest.raises(UserError, match=f"^GSPOConfig.{name}: is not a setting; ") as error:
            GSPOConfig(**{name: 1})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"per_device_train_batch_size": 0}, "GSPOConfig.per_device_train_batch_size=0: give a whole number"),
        (
            {"per_device_train_batch_size": 1.5},
            "GSPOConfig.per_device_train_batch_size=1.5: give a whole",
        ),
        ({"gradient_accumulation_steps": True}, "GSPOConfig.gradient_accumulation_steps=True: give a whole"),
        ({"use_gspo_token": "yes"}, "GSPOConfig.use_gspo_token=yes: give True or False"),
        ({"bf16": 1}, "GSPOConfig.bf16=1: give True or False"),
    ],
)
def test_a_carried_value_of_the_wrong_kind_is_refused(named, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        GSPOConfig(**named)


def test_a_dict_of_the_settings_trains_the_same(tmp_path):
    config = GSPOConfig(num_generations=6, output_dir=tmp_path, wandb_tags=("a", "b"), save_steps=5)
    plain = config.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["generations_per_iteration"] == 96  # what runs, not the default of 100
    assert (plain["wandb_tags"], plain["output_dir"]) == (["a", "b"], str(tmp_path))
    assert "max_turns" not in plain  # the task's
    again = GSPOConfig(**plain)
    assert again.to_dict() == plain
    first, second = (OmegaConf.to_container(node_of(each), resolve=True) for each in (config, again))
    for resolved in (first, second):
        resolved.pop("notes")  # the second has nothing left to adjust
        resolved["model"].pop("presets")
    assert first == second
    assert GSPOConfig.from_training_config(plain, seed=3).to_dict() == plain | {"seed": 3}
    with pytest.raises(
        UserError, match=r"^from_training_config: base is a list; give a GSPOConfig or a dict"
    ):
        GSPOConfig.from_training_config([1])


def test_from_training_config_keeps_the_names_of_trl():
    base = GSPOConfig(save_steps=5, gradient_accumulation_steps=2)
    found = GSPOConfig.from_training_config(base, logging_steps=1)
    assert (found.save_steps, found.gradient_accumulation_steps, found.logging_steps) == (5, 2, 1)
    assert found.given == {"save_steps", "gradient_accumulation_steps", "logging_steps"}


@pytest.mark.long
def test_validate_says_what_follows_and_refuses_what_cannot_run():
    assert get_config_for_task("customer_service").validate() == []
    notes = GSPOConfig(
        num_generations=6, per_device_train_batch_size=2, gradient_accumulation_steps=8
    ).validate()
    assert notes[0].startswith("training.generations_per_iteration=96: in place of the default 100")
    assert notes[1].startswith("hardware.tokens_per_microbatch=")
    assert notes[1].endswith(
        "per_device_train_batch_size=2, counted in the tokens of the longest prompts and answers"
    )
    assert notes[2].startswith("gradient_accumulation_steps=8: changes nothing; ")
    assert len(notes) == 3
    with pytest.raises(UserError, match=r"^algorithm.credit=turn: a sequence ratio takes one advantage"):
        GSPOConfig(credit="turn").validate()
    assert GSPOConfig(credit="turn", use_gspo_token=True).validate() == []
    with pytest.raises(UserError, match=r"^training.generations_per_iteration=7: must be a multiple"):
        GSPOConfig(num_generations=4, generations_per_iteration=7, updates_per_rollout=1).validate()
    with pytest.raises(UserError, match=r"^task=cooking: is not an option"):
        GSPOConfig().validate("cooking")


@pytest.mark.long
def test_use_gspo_token_chooses_the_variant(tmp_path, reporter):
    def train(function, **named):
        config = quick_config(tmp_path, num_outer_iterations=1, **named)
        return asyncio.run(function(config, tiny_agent(), arithmetic(), EvenReward(), reporter))

    assert train(train_with_gspo, use_gspo_token=True).summary["algorithm"] == "gspo_token"
    assert train(train_with_gspo, use_gspo_token=False).summary["algorithm"] == "gspo"
    assert train(train_with_gspo_token, use_gspo_token=True).summary["algorithm"] == "gspo_token"
    with pytest.raises(UserError, match=r"^GSPOConfig.use_gspo_token=False: train_with_gspo_token trains"):
        train(train_with_gspo_token, use_gspo_token=False)


@pytest.mark.long
def test_a_small_micro_batch_changes_no_number_and_is_noted_on_the_card(tmp_path, reporter):
    def train(name, **named):
        config = quick_config(tmp_path / name, num_outer_iterations=1, **named)
        return asyncio.run(train_with_gspo(config, tiny_agent(), arithmetic(), EvenReward(), reporter))

    small = train("small", per_device_train_batch_size=1, gradient_accumulation_steps=3)
    usual = train("usual")
    assert small.summary["final_eval"]["score"] == usual.summary["final_eval"]["score"]
    card = (Path(small.run_folder) / "card.txt").read_text()
    assert "per_device_train_batch_size=1" in " ".join(card.split())
    assert "gradient_accumulation_steps=3: changes nothing" in " ".join(card.split())


def test_no_name_is_taken_in_two_ways():
    names = [*CARRIED, *FIXED, *REFUSED]
    assert len(set(names)) == len(names)
    assert not set(names) & set(KEYS)
    assert override_key(GSPOConfig(save_steps=1).typed[0]) == "checkpoint.every"
