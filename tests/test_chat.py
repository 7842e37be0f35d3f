"""Conversations as ids: the end token belongs to the answer, separators to what follows."""

from __future__ import annotations

import json
import shutil

import pytest

from gspo_cli.config.schema import HardwareConfig, ModelConfig
from gspo_cli.policy.loading import load_policy
from gspo_cli.types import Message

USER = Message("user", "12+30=")
NAMES = ["qwen3", "gpt2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_in_pieces_is_the_template_of_the_whole(load, name):
    chat = load(name).chat
    follow_up = (Message("user", "again"),)
    prompt, answer = chat.prompt_ids((USER,)), chat.answer_ids("42")
    pieces = prompt + answer + chat.suffix_ids(follow_up, answer[-1])
    whole = chat.prompt_ids((USER, Message("assistant", "42"), *follow_up))
    assert pieces == whole


@pytest.mark.parametrize("name", NAMES)
def test_the_end_token_is_the_answers_last(load, name):
    chat = load(name).chat
    assert chat.answer_ids("42")[-1] == chat.end_id
    assert chat.end_id in chat.stop_ids
    assert chat.text(chat.answer_ids("42")) == "42"


def test_a_cut_answer_is_closed_by_the_template(load):
    chat = load("qwen3").chat
    cut = chat.answer_ids("42")[:-1]
    suffix = chat.suffix_ids((USER,), cut[-1])
    assert suffix[0] == chat.end_id
    assert chat.suffix_ids((USER,), chat.end_id) == suffix[1:]


def test_without_a_template_the_plain_one_is_used(load):
    chat = load("gpt2").chat
    assert chat.tokenizer.decode(chat.prompt_ids((USER,))) == "User:\n12+30=\nAssistant:\n"


def test_stop_ids_are_a_set_that_includes_the_generation_config(load, folders, tmp_path):
    shutil.copytree(folders["qwen3"], tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, 7]}))
    model = ModelConfig(label="x", name="x", use_lora=False)
    policy = load_policy(str(tmp_path / "model"), model, HardwareConfig())
    assert policy.chat.stop_ids == {1, 7}
