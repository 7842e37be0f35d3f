"""The vLLM engine, for real where vllm is installed: it samples as the transformers engine does, and it never
goes on with stale weights."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gspo_cli.config.model_schema import ModelConfig, Shape
from gspo_cli.errors import UserError
from gspo_cli.policy.embedded import write_embedded
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.weights import plain_weights
from gspo_cli.rollout import vllm_engine
from gspo_cli.rollout.engine import Request, Sampling, finish, generate
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.rollout.vllm_engine import VLLMEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training
from gspo_cli.types import FinishReason

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed (its environment is its own)")
# vLLM has no CPU attention for heads narrower than 32; 48 is padded by its CPU kernel for experts
SHAPE = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 48,
}
KINDS = {"dense": {}, "moe": {"experts": 4, "experts_per_token": 2}}
STOPS = frozenset(range(40, 56))  # random weights hardly ever draw the end token
MEMORY = "rollout.vllm_memory=0.01"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vllm")
    for name, experts in KINDS.items():
        write_embedded(
            root / name, Shape(**SHAPE, **experts), 0, [f"{a}+{b}=" for a in range(9) for b in range(9)]
        )
    return {name: root / name for name in KINDS}


def policy_of(folder: Path, config, **settings):
    defaults = {"label": "small", "name": str(folder), "use_lora": False, "gradient_checkpointing": False}
    return load_policy(str(folder), ModelConfig(**(defaults | settings)), config.hardware)


@pytest.fixture(scope="module", params=list(KINDS))
def started(request, models, configure):
    """An engine over one model; tests put their own policy in."""
    config, _ = configure("rollout=vllm", MEMORY)
    engine = VLLMEngine(policy_of(models[request.param], config), str(models[request.param]), config)
    yield engine, models[request.param], config
    del engine
    gc.collect()


@pytest.fixture
def engine(started):
    """The engine over a fresh policy of its model."""
    found, folder, config = started
    found.policy = policy_of(folder, config)
    found._pushed = found._answered = None
    found.refresh()
    return found


def sampling(**settings) -> Sampling:
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 20}
    return Sampling(**(defaults | settings), stop_ids=STOPS)


def requests(groups=5, size=3) -> list[Request]:
    prompts = [[7, 8, 9, 10 + i] + [11] * (40 * i) for i in range(groups)]
    return [Request(prompts[i], 100 * i + g, size * i + g) for i in range(groups) for g in range(size)]


def teacher_forced(policy, request, completion, temperature):
    ids = torch.tensor([request.prompt_ids + completion.token_ids])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, len(request.prompt_ids) :] = True
    with torch.no_grad():
        return policy(ids, mask, temperature)[0][mask].tolist()


@torch.no_grad()
def disturb(policy, size=0.02):
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.trainable():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))


SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 0.0},
]


@needs_vllm
@pytest.mark.parametrize("settings", SETTINGS)
def test_logprobs_are_the_teacher_forced_ones_of_the_whole_distribution(engine, settings):
    chosen = sampling(**settings)
    found = generate(engine, requests(), chosen, False)
    assert len(found) == len(requests())
    for request, completion in zip(requests(), found, strict=True):
        expected = teacher_forced(engine.policy, request, completion, chosen.temperature or 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@needs_vllm
@pytest.mark.parametrize("settings", SETTINGS)
def test_both_engines_draw_the_same_tokens(engine, settings):
    ours = generate(TransformersEngine(engine.policy, 256), requests(), sampling(**settings), False)
    theirs = generate(engine, requests(), sampling(**settings), False)
    assert [c.token_ids for c in theirs] == [c.token_ids for c in ours]
    assert [c.finish_reason for c in theirs] == [c.finish_reason for c in ours]
    for one, other in zip(theirs, ours, strict=True):
        assert one.truncated_mass == pytest.approx(other.truncated_mass, abs=1e-5)
    assert (max(c.truncated_mass for c in theirs) > 0.05) == ("top_p" in settings or "top_k" in settings)


@needs_vllm
def test_answers_end_with_their_stop_token_or_at_the_limit(engine):
    for completion in generate(engine, requests(), sampling(), False):
        *before, last = completion.token_ids
        assert not set(before) & STOPS
        assert (last in STOPS) == (completion.finish_reason is FinishReason.stop)
        assert completion.finish_reason is FinishReason.stop or len(completion.token_ids) == 20


@needs_vllm
def test_the_same_request_gives_the_same_tokens_alone_and_after_others(engine):
    together = generate(engine, requests(), sampling(), False)
    alone = [generate(engine, [request], sampling(), False)[0] for request in requests()]
    assert [c.token_ids for c in alone] == [c.token_ids for c in together]


@needs_vllm
def test_requests_join_those_in_flight_and_leave_them(engine):
    alone = [generate(engine, [request], sampling())[0] for request in requests()]
    found, gone = {}, requests()[-1].conversation
    with engine.session():
        for request in requests():
            engine.submit(request, sampling(), keep_cache=False)
            found |= engine.step()
        engine.cancel(gone)
        while len(found) < len(requests()) - 1:
            found |= engine.step()
    assert not engine.llm.llm_engine.has_unfinished_requests()
    kept = [(r, c) for r, c in zip(requests(), alone, strict=True) if r.conversation != gone]
    assert [found[r.conversation].token_ids for r, _ in kept] == [c.token_ids for _, c in kept]


@needs_vllm
def test_a_later_turn_goes_on_from_the_cached_one(engine):
    with engine.session():
        first = finish(engine, requests(), sampling(), keep_cache=True)
        longer = [
            Request([*r.prompt_ids, *c.token_ids, 12, 13], r.seed + 1, r.conversation)
            for r, c in zip(requests(), first, strict=True)
        ]
        second = finish(engine, longer, sampling(), keep_cache=False)
    for request, completion in zip(longer, second, strict=True):
        expected = teacher_forced(engine.policy, request, completion, 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@needs_vllm
@pytest.mark.parametrize("use_lora", [True, False])
def test_pushed_weights_change_what_is_sampled_to_the_policys(started, use_lora):
    engine, folder, config = started
    experts = use_lora and "moe" in folder.name
    engine.policy = policy_of(folder, config, use_lora=use_lora, lora_experts=experts)
    engine._pushed = engine._answered = None
    engine.refresh()
    before = generate(engine, requests(), sampling(), False)
    disturb(engine.policy)
    held = {name: tensor.clone() for name, tensor in engine.policy.state_dict().items()}
    assert engine.refresh()["sampling/push_error"] < 1e-5
    after = generate(engine, requests(), sampling(), False)
    for request, old, new in zip(requests(), before, after, strict=True):
        expected = teacher_forced(engine.policy, request, new, 1.0)
        assert new.logprobs == pytest.approx(expected, abs=1e-4)
        # far from what the old weights say of the same first token, or of the same prompt
        assert old.logprobs[0] != pytest.approx(new.logprobs[0], abs=1e-4)
    # nothing was merged into the policy
    assert all(torch.equal(tensor, held[name]) for name, tensor in engine.policy.state_dict().items())


@needs_vllm
def test_every_single_weight_arrives(engine):
    # each tensor in turn is changed by much, pushed, and seen in the log-probabilities
    for parameter in engine.policy.model.parameters():
        last = engine._policy_probe()
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        assert engine.refresh()["sampling/push_error"] < 1e-5
        assert (engine._engine_probe() - last).abs().max() > 1e-3


@needs_vllm
@pytest.mark.parametrize("size", [0.02, 1e-5, 1e-6])
def test_an_engine_that_stays_with_stale_weights_is_noticed(engine, monkeypatch, size):
    stale = [(name, tensor.clone()) for name, tensor in plain_weights(engine.policy.causal_model)]
    disturb(engine.policy, size)
    monkeypatch.setattr(vllm_engine, "plain_weights", lambda policy: iter(stale))
    with pytest.raises(UserError, match="cannot load new weights"):
        engine.refresh()


@needs_vllm
def test_an_engine_with_one_stale_layer_is_noticed(engine, monkeypatch):
    old = dict(plain_weights(engine.policy.causal_model))
    kept = {name: tensor.clone() for name, tensor in old.items() if ".layers.1." in name}
    disturb(engine.policy)
    new = dict(plain_weights(engine.policy.causal_model)) | kept
    monkeypatch.setattr(vllm_engine, "plain_weights", lambda policy: iter(new.items()))
    with pytest.raises(UserError, match="cannot load new weights"):
        engine.refresh()


@needs_vllm
def test_in_bf16_the_engine_stays_near_the_policy(models, configure):
    config, _ = configure("rollout=vllm", MEMORY, "hardware.precision=bf16")
    engine = VLLMEngine(policy_of(models["dense"], config, use_lora=True), str(models["dense"]), config)
    disturb(engine.policy)
    engine.refresh()
    for request, completion in zip(requests(), generate(engine, requests(), sampling(), False), strict=True):
        with engine.policy.autocasting():
            expected = teacher_forced(engine.policy, request, completion, 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=0.03)


RUN = [
    "rollout=vllm", MEMORY, "reward=tests.support.whole_runs.EvenReward", "model.shape.head_dim=32",
    "checkpoint.every=1", "evaluation.every=1",
]  # fmt: skip


@needs_vllm
@pytest.mark.parametrize("model", ["tiny", "tiny_moe"])
@pytest.mark.parametrize("use_lora", ["true", "false"])
def test_a_whole_run_trains_on_what_vllm_sampled(tmp_path, configure, reporter, model, use_lora):
    settings = ["model.shape.experts=4", "model.freeze_router=true"] if model == "tiny_moe" else []
    config, yaml = configure(*RUN, f"model={model}", f"model.use_lora={use_lora}", *settings)
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    summary = run_training(config, folder, reporter)
    assert (summary["status"], summary["iterations"]) == ("completed", 2)
    for record in folder.read("metrics.jsonl"):
        assert record["sampling/logp_difference/max"] < 1e-4
        assert record["sampling/push_error"] < 1e-5
        assert record["grad_norm"] > 0


@needs_vllm
def test_a_run_under_vllm_resumes_with_its_own_weights(tmp_path, configure, reporter):
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    for folder, lengths in ((whole, [2]), (stopped, [1, 2])):
        for iterations in lengths:
            config, yaml = configure(*RUN, f"training.num_outer_iterations={iterations}")
            if not folder.config.exists():
                folder.create(yaml)
            run_training(config, folder, reporter)
    expected, found = whole.read("metrics.jsonl"), stopped.read("metrics.jsonl")
    assert [record["iteration"] for record in found] == [1, 2]
    for name in ("reward", "num_tokens", "completions/mean_length"):
        assert found[1][name] == expected[1][name]
    assert found[1]["grad_norm"] == pytest.approx(expected[1]["grad_norm"], rel=1e-3)
    assert found[1]["sampling/logp_difference/max"] < 1e-4


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_vllm_a_run_says_so_before_it_makes_a_model(tmp_path, configure, reporter):
    config, yaml = configure("rollout=vllm")
    folder = RunFolder(tmp_path / "run")
    folder.create(yaml)
    with pytest.raises(UserError, match=r"rollout\.engine=vllm: vllm is not installed; pip install"):
        run_training(config, folder, reporter)
    assert not folder.initial_model.exists()
    assert reporter.events == []


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt2"])
def test_plain_weights_are_those_of_the_merged_model_on_disk(load, tmp_path, name, experts):
    if experts and name != "qwen3_moe":
        pytest.skip("has no experts")
    policy = load(name, use_lora=True, lora_experts=experts)
    disturb(policy)
    found = {key: tensor.clone() for key, tensor in plain_weights(policy.causal_model)}
    policy.model.merge_and_unload().save_pretrained(tmp_path)
    saved = dict(load_file(tmp_path / "model.safetensors"))
    assert set(saved) <= set(found)
    for key, tensor in saved.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)
