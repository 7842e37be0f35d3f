"""Conversations as ids: the end token belongs to the answer, separators to what follows."""

from __future__ import annotations

import json
import shutil

import pytest

from gspo_cli.config.schema import HardwareConfig, ModelConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import ChatFormat
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


# the shape of Qwen3's: an empty thinking block stands before the last agent turn only
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_still_gives_what_follows_them(load):
    tokenizer = load("qwen3").tokenizer
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = QWEN3
    chat = ChatFormat(tokenizer, [])
    # the template's end token ends answers, also where the tokenizer's own is another
    assert chat.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.stop_ids == {chat.end_id, tokenizer.eos_token_id}
    suffix = tokenizer.decode(chat.suffix_ids((USER,), chat.end_id))
    assert suffix == "\n<|im_start|>user\n12+30=<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_refuses_a_role_is_one_sentence(load):
    tokenizer = load("qwen3").tokenizer
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + tokenizer.chat_template
    )
    with pytest.raises(UserError, match=r"refuses a conversation of system, user \(no system\)"):
        ChatFormat(tokenizer, []).prompt_ids((Message("system", "Be brief."), USER))


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
