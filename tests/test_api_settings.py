"""What the Python API's settings become: a configuration, as they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gspo_cli import AgentConfig, ConversationEnvironment, GSPOConfig, MultiTurnAgent, get_config_for_task
from gspo_cli.api.config import model_overrides
from gspo_cli.api.training import run_node
from gspo_cli.config.compose import (
    build_config,
    build_task,
    composed,
    load_saved,
    resolved_yaml,
    with_overrides,
)
from gspo_cli.errors import UserError


def test_lengths_and_turns_are_the_tasks_unless_given(tmp_path):
    config, agent = get_config_for_task("customer_service"), MultiTurnAgent(AgentConfig())
    assert (config.max_turns, config.max_completion_length, config.max_prompt_length) == (None, None, None)
    environment = ConversationEnvironment(
        task="customer_service", difficulty=4, max_turns=20, answer_length=48, prompt_length=3000
    )

    def rollout(config):
        node = run_node("gspo", config, agent, environment)
        environment.apply(node, tmp_path)
        run = build_config(node).rollout
        return run.max_turns, run.max_completion_length, run.max_prompt_length

    assert rollout(config) == rollout(GSPOConfig()) == (20, 48, 3000)
    given = {"max_turns": 17, "max_completion_length": 16, "max_prompt_length": 2000}
    assert rollout(GSPOConfig.from_training_config(config, **given)) == (17, 16, 2000)
    assert rollout(GSPOConfig(overrides=["rollout.max_turns=18"])) == (18, 48, 3000)


@pytest.mark.parametrize("bits", ["use_4bit", "use_8bit"])
def test_the_guides_names_quantise(bits):
    config = GSPOConfig.from_training_config(get_config_for_task("arithmetic"), use_lora=True, **{bits: True})
    node = run_node("gspo", config, MultiTurnAgent(AgentConfig()), ConversationEnvironment("arithmetic"))
    model = build_config(node).model
    assert (model.use_4bit, model.use_8bit) == (bits == "use_4bit", bits == "use_8bit")


@pytest.mark.parametrize(
    "prompt",
    ["pay ${amount} at ${", "???", "what???", "\\${a}", "\\\\${a} \\", "$${a}", "${seed}", "a\n: '\""],
)
@pytest.mark.parametrize("place", ["agent", "environment"])
def test_a_system_prompt_is_taken_as_it_is_written(prompt, place, tmp_path):
    own = {"system_prompt": prompt}
    environment = ConversationEnvironment("sales", **(own if place == "environment" else {}))
    agent = MultiTurnAgent(AgentConfig(**(own if place == "agent" else {})))
    node = run_node("gspo", GSPOConfig(), agent, environment)
    environment.apply(node, tmp_path)
    (tmp_path / "config.yaml").write_text(resolved_yaml(node))
    reloaded = load_saved(tmp_path / "config.yaml")
    for read in (node, reloaded, with_overrides(reloaded, ["evaluation.problems=1"])):
        assert build_config(read).task.system_prompt == prompt
        assert resolved_yaml(read).count("system_prompt") == 1
    assert resolved_yaml(reloaded) == resolved_yaml(node)


def test_a_value_that_is_still_to_be_given_is_asked_for():
    node = composed(["task=customer_service"])
    node.task.system_prompt = "???"
    with pytest.raises(UserError, match=r"^task.system_prompt: has no value; set it with"):
        build_config(node)
    with pytest.raises(UserError, match=r"^task.*has no value|^task.*missing mandatory"):
        build_task(node.task)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("Qwen/Qwen3-0.6B", "small"),
        ("Qwen/Qwen3-4B", "large"),
        ("meta-llama/Llama-3.2-1B-Instruct", "large"),
        ("HuggingFaceTB/SmolLM2-135M", "small"),
        ("Qwen/Qwen3-30B-A3B", "moe"),
        ("mistralai/Mixtral-8x7B-v0.1", "moe"),
        ("gpt2", "small"),
    ],
)
def test_a_name_tells_the_size(name, group):
    assert model_overrides(name)[0] == f"model={group}"


@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ({"num_experts": 8, "hidden_size": 32}, "moe"),
        ({"hidden_size": 1024, "num_hidden_layers": 28, "vocab_size": 151936}, "small"),
        ({"hidden_size": 2560, "num_hidden_layers": 36, "vocab_size": 151936}, "large"),
        ({"n_embd": 768, "n_layer": 12, "vocab_size": 50257}, "small"),
        ({}, "small"),
        ({"text_config": {"hidden_size": 2560, "num_hidden_layers": 36, "vocab_size": 151936}}, "large"),
        ({"text_config": {"num_experts": 8}, "hidden_size": 32}, "moe"),
        ({"text_config": None, "hidden_size": None, "num_hidden_layers": 36, "vocab_size": None}, "small"),
    ],
)
def test_a_folder_tells_its_size_by_its_shape(shape, group, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert model_overrides(tmp_path)[0] == f"model={group}"


def test_a_folder_that_describes_no_model_is_said(tmp_path):
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(
        UserError, match=r"config.json: does not describe a model \(it is not a JSON object\)"
    ):
        model_overrides(tmp_path)


def test_any_folders_name_reaches_the_configuration(tmp_path):
    name = str(tmp_path / 'modèle "1" = a,b')
    Path(name).mkdir()
    (Path(name) / "config.json").write_text("{}")
    assert composed(model_overrides(name)).model.name == name
