"""What `model.name` takes: adapters are continued over their base, never loaded by the library alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gspo_cli import CONVERSATION_CONFIGS, AgentConfig, ConversationEnvironment, GSPOConfig, MultiTurnAgent
from gspo_cli.api.training import run_node
from gspo_cli.compare.missing_runs import SharedSettings
from gspo_cli.config.compose import composed
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig, RunConfig
from gspo_cli.config.trust import trust_base, trust_own
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.pretrained import unusable
from gspo_cli.rewards import reward_model
from gspo_cli.sources import ModelSource, find_source, settled
from tests.support.batches import ragged


def moved(policy, amount=0.05):
    """Random changes of the trained weights, so that an adapter has an effect."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(amount * torch.randn(parameter.shape, generator=random))


def scores(policy, **arguments):
    ids, mask = ragged(policy)
    with torch.no_grad():
        return policy(ids, mask, 1.0, **arguments)[0]


def loaded(name, **settings):
    defaults = {"label": "x", "name": str(name), "gradient_checkpointing": False}
    return load_policy(str(name), ModelConfig(**(defaults | settings)), HardwareConfig())


@pytest.fixture(params=["qwen3", "qwen3_moe", "gpt2"])
def saved(request, load, tmp_path):
    """An adapter folder of each architecture, on experts where there are some, and the policy's scores."""
    settings = {"lora_experts": True} if request.param == "qwen3_moe" else {}
    policy = load(request.param, use_lora=True, lora_r=4, lora_alpha=6, **settings)
    moved(policy)
    policy.save(tmp_path / "adapter")
    return tmp_path / "adapter", scores(policy)


def test_an_adapter_is_continued_over_its_base(saved):
    adapter, expected = saved
    policy = loaded(adapter)
    assert torch.equal(scores(policy), expected)
    assert policy.has_adapter
    stored = load_file(adapter / "adapter_model.safetensors")
    assert sum(p.numel() for p in policy.trainable()) == sum(value.numel() for value in stored.values())


def test_the_reference_of_a_continued_adapter_is_the_adapter_as_it_was(saved, tmp_path):
    adapter, expected = saved
    policy = loaded(adapter)
    trained = len(policy.trainable())
    policy.keep_reference_adapter(adapter)
    moved(policy)
    assert not torch.equal(scores(policy), expected)
    assert torch.equal(scores(policy, reference=True), expected)
    assert len(policy.trainable()) == trained
    ids, mask = ragged(policy)
    with policy.updating():
        policy(ids, mask, 1.0)[0].sum().backward()
    frozen = [p for name, p in policy.model.named_parameters() if ".ref." in name]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_a_reference_adapter_is_never_saved(saved, tmp_path):
    adapter, _ = saved
    policy = loaded(adapter)
    policy.keep_reference_adapter(adapter)
    policy.save(tmp_path / "again")
    assert not [path for path in (tmp_path / "again").rglob("*") if "ref" in path.name]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_where_all_weights_are_trained_an_adapter_is_merged(saved):
    adapter, expected = saved
    policy = loaded(adapter, use_lora=False)
    torch.testing.assert_close(scores(policy), expected, rtol=0, atol=2e-6)
    assert not policy.has_adapter
    frozen = [name for name, p in policy.model.named_parameters() if not p.requires_grad]
    assert all(".gate." in name for name in frozen)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}},
        {"layers_to_transform": [1]},
        {"exclude_modules": ["v_proj"]},
        {"target_modules": r".*self_attn\.[qv]_proj"},
        {"lora_dropout": 0.5},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_shapes_of_lora_from_elsewhere_score_as_in_peft(folders, tmp_path, settings):
    base = AutoModelForCausalLM.from_pretrained(folders["qwen3"])
    arguments = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    theirs = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **(arguments | settings))).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(1, 10)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
        ours, merged = loaded(tmp_path), loaded(tmp_path, use_lora=False)
        with ours.updating():  # where dropout would act
            torch.testing.assert_close(ours.causal_model(ids).logits, expected, rtol=0, atol=0)
        torch.testing.assert_close(merged.causal_model(ids).logits, expected, rtol=0, atol=1e-5)


def edited(adapter: Path, **values) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return adapter


@pytest.fixture
def adapter(load, tmp_path) -> Path:
    policy = load("qwen3", use_lora=True, lora_r=4, lora_alpha=6)
    moved(policy)
    policy.save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"use_dora": True}, "use_dora=True in adapter_config.json: is not supported; merge it with peft"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"bias": "all"}, "bias=all"),
        ({"lora_bias": True}, "lora_bias="),
        ({"trainable_token_indices": [1]}, "trainable_token_indices="),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens="),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"a_variant_to_come": {"x": 1}}, "a_variant_to_come="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa changed the base"),
        ({"task_type": "SEQ_CLS"}, "is an adapter for SEQ_CLS"),
        ({"peft_type": "IA3"}, "is an adapter of type IA3; only LoRA"),
        ({"r": "4"}, "r=4 must be a whole number"),
    ],
)
def test_adapters_that_would_not_be_exact_are_refused_before_loading(adapter, values, reason):
    with pytest.raises(UserError, match="adapter") as refused:
        find_source(str(edited(adapter, **values)))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_that_are_no_lora_are_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    stored = load_file(path)
    save_file(stored | {"base_model.model.model.embed_tokens.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"also replaces weights of its base .*embed_tokens"):
        loaded(adapter)
    stored.pop(next(iter(stored)))
    save_file(stored, path)
    with pytest.raises(UserError, match=r"does not fit its base .*has no"):
        loaded(adapter)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_embeddings_and_output_layers_are_refused(folders, tmp_path, target):
    base = AutoModelForCausalLM.from_pretrained(folders["qwen3"])
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=[target])).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    with pytest.raises(UserError, match=f"{target}|embedding"):
        loaded(tmp_path)


def test_another_base_than_the_adapters_own_is_refused(adapter, folders):
    with pytest.raises(UserError, match=r"its tokenizer has 281 tokens, but its base .*model\.base="):
        loaded(adapter, base=str(folders["gpt2"]))
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"does not fit its base .*model\.base="):
        loaded(adapter, base=str(folders["gpt2"]))


def test_a_base_that_is_gone_can_be_given(adapter, folders, tmp_path):
    expected = scores(loaded(adapter))
    edited(adapter, base_model_name_or_path="/gone/model")
    with pytest.raises(UserError, match=r"its base /gone/model is not on this machine; .*model\.base="):
        find_source(str(adapter))
    assert torch.equal(scores(loaded(adapter, base=str(folders["qwen3"]))), expected)
    with pytest.raises(UserError, match=r"model\.base=x: .*is no adapter"):
        find_source(str(folders["qwen3"]), "x")


def test_a_folder_with_two_models_is_refused(adapter, folders):
    shutil.copy(folders["qwen3"] / "config.json", adapter)  # some trainers write it
    assert find_source(str(adapter)) == ModelSource(str(folders["qwen3"]), adapter)
    shutil.copy(folders["qwen3"] / "model.safetensors", adapter)
    with pytest.raises(UserError, match="holds the weights of a model and of an adapter"):
        find_source(str(adapter))


def test_an_adapter_over_an_adapter_is_refused(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "second")
    edited(tmp_path / "second", base_model_name_or_path=str(adapter))
    trust_base(str(adapter))
    with pytest.raises(UserError, match="is an adapter itself; merge that one first"):
        find_source(str(tmp_path / "second"))


@pytest.mark.parametrize("name", ["outputs/arithmetic/typo", "./typo", "/typo", "typo.gguf/"])
def test_a_mistyped_folder_is_not_taken_for_a_hub_id(name):
    with pytest.raises(UserError, match="no such file or folder is here; give a hub id"):
        find_source(name)


def test_hub_ids_are_left_to_the_hub_and_a_failure_names_the_script():
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert find_source(name) == ModelSource(name)
    assert "make smollm2" in str(unusable(name, "no network"))
    assert "smollm2" not in str(unusable("some/other", "no network"))


def test_settings_of_a_run_follow_the_adapter(adapter, folders, monkeypatch):
    monkeypatch.chdir(adapter.parent)
    node = composed(["model=small", "model.name=adapter"])
    settled(node, ["model.name=adapter"])
    assert (node.model.name, node.model.base) == (str(adapter), str(folders["qwen3"]))
    assert (node.model.lora_r, node.model.lora_alpha, node.model.lora_experts) == (4, 6, False)
    assert "q_proj" in node.model.lora_target_modules
    typed = ["model=small", "model.name=adapter", "model.lora_r=8"]
    with pytest.raises(UserError, match=r"^model\.lora_r=8: training continues the adapter .*which has 4"):
        settled(composed(typed), typed)


def test_a_reward_model_is_not_loaded_over_the_base_of_an_adapter(adapter):
    with pytest.raises(UserError, match="is an adapter, which the library would load over any base"):
        reward_model.load(str(adapter), None)


def test_python_continues_an_adapter(adapter, folders):
    agent = MultiTurnAgent(AgentConfig(model_name=adapter))
    environment = ConversationEnvironment(**CONVERSATION_CONFIGS["customer_service"])
    node = run_node("gspo", GSPOConfig(), agent, environment)
    assert (node.model.label, node.model.lora_r, node.model.base) == ("small", 4, str(folders["qwen3"]))


def test_a_comparison_trains_on_from_an_adapter(adapter, monkeypatch):
    monkeypatch.chdir(adapter.parent)
    run = SharedSettings(["model=small", "model.name=adapter", "task=arithmetic"]).run("gspo", 0, None)
    assert (run.config.model.name, run.config.model.lora_r) == (str(adapter), 4)


def second_stage(folder: Path, adapter: Path, **model) -> Path:
    """The folder of a run that has trained on from `model.name`."""
    checkpoint = folder / "checkpoints" / "iteration-000002"
    shutil.copytree(adapter, checkpoint)
    (checkpoint.parent / "last").symlink_to(checkpoint.name)
    (folder / "config.yaml").write_text(json.dumps({"model": model}))
    return folder


def test_a_run_whose_first_stage_is_gone_keeps_its_adapter_and_base(adapter, folders, tmp_path):
    gone, base = str(tmp_path / "gone" / "iteration-000010"), str(folders["qwen3"])
    run = second_stage(tmp_path / "second", adapter, name=gone, base=base)
    trust_own({"model": {"name": gone, "base": base}}, RunConfig)
    assert find_source(str(run)) == ModelSource(base, (run / "checkpoints" / "iteration-000002").resolve())
    with pytest.raises(UserError, match=r"model\.name=.*iteration-000010: no such file or folder is here"):
        find_source(gone, base)


def test_a_run_that_names_itself_as_its_model_is_refused(adapter, tmp_path):
    run = second_stage(tmp_path / "own", adapter, name=str(tmp_path / "own"))
    trust_own({"model": {"name": str(tmp_path / "own")}}, RunConfig)
    with pytest.raises(UserError, match="leads back to itself"):
        find_source(str(run))


def test_runs_that_lead_back_to_one_another_are_refused(adapter, tmp_path):
    names = [str(tmp_path / name) for name in ("one", "other", "third")]
    for place, name in enumerate(names):
        second_stage(Path(name), adapter, name=names[(place + 1) % 3])
        trust_own({"model": {"name": name}}, RunConfig)
    with pytest.raises(UserError, match="what it started from leads back to itself"):
        find_source(names[0])


def test_what_an_adapter_changes_in_a_preset_is_noted(adapter):
    node = composed([f"model.name={adapter}", "model=small", "model.cold_start.steps=5"])
    settled(node, [])
    assert (node.model.cold_start.steps, node.model.lora_r) == (0, 4)
    assert [text.partition(":")[0] for text in node.notes if "model." in text][:2] == [
        "model.cold_start.steps=0",
        "model.lora_r=4",
    ]


def test_python_refuses_what_contradicts_the_adapter_as_the_command_does(adapter):
    agent = MultiTurnAgent(AgentConfig(model_name=str(adapter)))
    environment = ConversationEnvironment(**CONVERSATION_CONFIGS["customer_service"])
    with pytest.raises(UserError, match=r"model\.lora_r=8: training continues the adapter"):
        run_node("gspo", GSPOConfig(lora_r=8), agent, environment)
