"""Model folders that are not whole: one sentence before anything is trained, and no code from pickles."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import PLAIN_TEMPLATE, ChatFormat
from gspo_cli.policy.loading import empty_model, load_policy
from gspo_cli.types import Message
from tests.support.command_line import call


def load_folder(folder, **settings):
    model = ModelConfig(**({"label": "x", "name": str(folder), "use_lora": False} | settings))
    return load_policy(str(folder), model, HardwareConfig())


@pytest.fixture
def model(folders, tmp_path) -> Path:
    """A whole model folder, to be spoiled."""
    shutil.copytree(folders["qwen3"], tmp_path / "model")
    return tmp_path / "model"


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without(name):
    return lambda folder: change_weights(folder, lambda weights: weights.pop(name))


def with_value(name, value):
    def change(weights):
        weights[name].view(-1)[3] = value

    return lambda folder: change_weights(folder, change)


def untied(folder):
    change_json(folder / "config.json", tie_word_embeddings=False)


def reshaped(folder):
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))


def garbage(name, content):
    return lambda folder: (folder / name).write_text(content)


NORM, FIRST = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
SPOILED = {
    "no output layer": (untied, "the weight lm_head.weight is not in its files and would be random"),
    "a lost weight": (without(FIRST), f"the weight {FIRST} is not in its files"),
    "another shape": (reshaped, "model.norm.weight"),
    "not a number": (with_value(FIRST, float("nan")), f"1 of 1,536 values of the weight {FIRST} are"),
    "infinite": (with_value(NORM, float("inf")), f"values of the weight {NORM} are infinite"),
    "an unknown architecture": (
        lambda folder: change_json(folder / "config.json", model_type="nobody"), "cannot be loaded"
    ),
    "no architecture": (garbage("config.json", "[]"), "cannot be loaded"),
    "a size of text": (
        lambda folder: change_json(folder / "config.json", hidden_size="big"), "cannot be loaded"
    ),
    "no heads": (
        lambda folder: change_json(folder / "config.json", num_attention_heads=0), "cannot be loaded"
    ),
    "a tokenizer of garbage": (garbage("tokenizer.json", '{"model": 3}'), "cannot be loaded"),
    "weights of garbage": (garbage("model.safetensors", "garbage"), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_model_is_one_sentence(model, name):
    spoil, said = SPOILED[name]
    spoil(model)
    with pytest.raises(UserError) as refused:
        load_folder(model)
    text = str(refused.value)
    assert said in text
    assert text.startswith(f"model.name={model}: ")
    assert "\n" not in text
    assert "; " in text  # and says what to do


def test_a_spoiled_adapter_is_one_sentence(load, folders, tmp_path):
    load("qwen3", use_lora=True).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, path)
    with pytest.raises(UserError, match="are infinite or not a number; its files are damaged"):
        load_policy(str(folders["qwen3"]), ModelConfig(label="x", name="x", use_lora=True), HardwareConfig(),
                    tmp_path / "adapter")  # fmt: skip


class Opened:
    """Unpickled, it leaves a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_pickled_weights_run_no_code(model, tmp_path, kind):
    (model / "model.safetensors").unlink()
    path, proof = model / "pytorch_model.bin", tmp_path / "ran"
    if kind == "torch":
        torch.save({"model.norm.weight": Opened(proof)}, path)
    else:
        path.write_bytes(pickle.dumps(Opened(proof)))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_folder(model)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Opened(proof)))
    assert proof.exists()  # it is code


def test_pickled_weights_of_an_adapter_run_no_code(load, folders, tmp_path):
    load("qwen3", use_lora=True).save(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"x": Opened(tmp_path / "ran")}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="its weights cannot be read"):
        load_policy(str(folders["qwen3"]), ModelConfig(label="x", name="x", use_lora=True), HardwareConfig(),
                    tmp_path / "adapter")  # fmt: skip
    assert not (tmp_path / "ran").exists()


def test_tokens_without_an_embedding_are_refused_with_both_sizes(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>", "<|newer|>"]})
    tokenizer.chat_template = "<|newer|>" + tokenizer.chat_template
    tokenizer.save_pretrained(model)
    with pytest.raises(UserError, match=rf"'<\|newer\|>' the id {rows + 1}, .* for {rows} tokens only"):
        load_folder(model).chat.prompt_ids((Message("user", "12+30="),))


def test_a_padding_token_without_an_embedding_is_replaced(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    tokenizer.save_pretrained(model)
    chat = load_folder(model).chat
    assert (chat.tokenizer.pad_token_id, chat.pad_id) == (rows, chat.end_id)


@pytest.mark.parametrize(
    "template",
    ["{% for %}", "{{ 1 // 0 }}", "{{ messages + 1 }}", "{{ messages[99].content }}", "{{ missing.name }}"],
)
def test_a_broken_chat_template_is_one_sentence(load, template):
    tokenizer = load("qwen3").tokenizer
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"model\.name: its chat template") as refused:
        ChatFormat(tokenizer, [1])
    assert "\n" not in str(refused.value)


def test_a_plain_prompt_begins_as_the_tokenizer_begins(load):
    tokenizer = load("gpt2").tokenizer
    text = "User:\nHi\nAssistant:\n"
    assert tokenizer.decode(ChatFormat(tokenizer, []).prompt_ids((Message("user", "Hi"),))) == text
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.chat_template = None
    chat = ChatFormat(tokenizer, [])
    ids = chat.prompt_ids((Message("user", "Hi"),))
    assert ids == tokenizer.encode(text)  # what the tokenizer itself makes of the text
    assert ids[0] == tokenizer.bos_token_id
    assert chat.suffix_ids((Message("user", "Hi"),), chat.end_id)[:1] != [0]  # only the beginning has one
    assert tokenizer.chat_template.endswith(PLAIN_TEMPLATE)


def scaled(folder: Path, **settings) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    kinds = {
        "final_logit_softcapping": (Gemma2Config, Gemma2ForCausalLM),
        "logits_scaling": (GraniteConfig, GraniteForCausalLM),
    }
    config_class, model_class = kinds[next(iter(settings))]
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model_class(config_class(vocab_size=64, **shape, **heads, **settings)).save_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [{"final_logit_softcapping": 30.0}, {"logits_scaling": 6.0}, {"final_logit_softcapping": 0.01}],
)
def test_logits_that_the_model_changes_are_refused_at_any_size(folders, tmp_path, settings):
    scaled(tmp_path, **settings)
    AutoTokenizer.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path)
    [(key, value)] = settings.items()
    with pytest.raises(UserError, match=f"changes its logits after the output layer \\({key}={value}\\)"):
        load_folder(tmp_path)


def test_without_a_cap_the_same_model_is_taken(folders, tmp_path):
    scaled(tmp_path, final_logit_softcapping=None)
    AutoTokenizer.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path)
    assert load_folder(tmp_path).max_positions > 0


class Whole(GPT2LMHeadModel):
    """A model whose parts do not have a part without the output layer."""

    base_model_prefix = "nothing"


def test_a_model_whose_base_is_not_separable_is_refused(load):
    from gspo_cli.policy.soundness import require_linear_logits

    model = Whole(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="Whole has no part without the output layer; choose another model"):
        require_linear_logits(model)


def test_an_adapted_output_layer_is_named(load):
    with pytest.raises(UserError, match=r"model\.lora_target_modules: names the output layer \(lm_head\)"):
        load("qwen3", use_lora=True, lora_target_modules=["lm_head", "q_proj"])


@pytest.mark.parametrize("name", ["no heads", "a size of text"])
def test_the_plan_of_memory_leaves_spoiled_configurations_to_the_loader(model, name):
    SPOILED[name][0](model)

    def plan_then_load():
        settings = ModelConfig(label="x", name=str(model), use_lora=False)
        assert empty_model(str(model), settings, HardwareConfig().precision) is None
        load_folder(model)

    with pytest.raises(UserError, match="cannot be loaded"):
        plan_then_load()


def test_a_command_says_it_with_exit_code_2(model, tmp_path):
    SPOILED["not a number"][0](model)
    done = call("gspo-eval", str(model), "task=arithmetic", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"gspo-eval: model.name={model}: 1 of 1,536 values")


@pytest.mark.parametrize("name", ["outputs/nothing", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path, name):
    (tmp_path / "outputs").mkdir()
    done = call("gspo-eval", name, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == f"gspo-eval: {name}: does not exist; give a run folder, a model folder or a hub id\n"
    )
