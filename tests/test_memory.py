"""The memory planner against what tensors really take: kept activations, weights, caches, and divisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gspo_cli.config.choices import SharePrefixes
from gspo_cli.config.model_schema import Shape
from gspo_cli.policy.dimensions import dimensions
from gspo_cli.policy.embedded import write_embedded
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.packed import PackedRows
from gspo_cli.policy.value_head import ValueHead
from gspo_cli.rollout.kv_cache import GrowingLayer, new_cache
from gspo_cli.training import memory_plan as memory
from gspo_cli.training.critic import Critic
from gspo_cli.training.memory_plan import cache_room, memory_plan
from gspo_cli.training.memory_text import memory_text
from gspo_cli.training.process_group import ProcessGroup
from tests.support.models import SMALL, TEXTS

ROWS, LENGTH = 3, 40
# no two widths alike: a formula that takes one for another is off
WIDE = SMALL | {"hidden_size": 64, "head_dim": 24, "intermediate_size": 112}
ALONE = "training.share_prefixes=off"
FULL = f"model.use_lora=false model.gradient_checkpointing=false {ALONE}"
LORA = f"model.use_lora=true model.lora_r=4 model.gradient_checkpointing=false {ALONE}"
EAGER = f"model.attention=eager rollout.max_prompt_length={LENGTH - 8} rollout.max_completion_length=8"
KINDS = {
    "qwen3": [
        FULL,
        LORA,
        f"{FULL} hardware.precision=bf16",
        f"{LORA} hardware.precision=bf16",
        f"{LORA} model.lora_target_modules=[q_proj,v_proj]",
        f"{LORA} model.use_4bit=true",
        FULL.replace(ALONE, ""),
        LORA.replace(ALONE, ""),
        f"{FULL} hardware.precision=bf16".replace(ALONE, ""),
        f"{LORA} hardware.precision=bf16".replace(ALONE, ""),
        f"{FULL} {EAGER}",
        f"{LORA} {EAGER} hardware.precision=bf16",
        f"{FULL} {EAGER} hardware.precision=bf16",
        f"{LORA} {EAGER}".replace(ALONE, ""),
    ],
    "qwen3_moe": [
        FULL,
        f"{FULL} model.freeze_router=false",
        f"{FULL} hardware.precision=bf16",
        f"{FULL} model.experts_implementation=eager",
        LORA,
        f"{LORA} hardware.precision=bf16",
        f"{LORA} model.lora_experts=true",
        f"{LORA} model.use_4bit=true",
    ],
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Model folders by name and number of layers."""
    root = tmp_path_factory.mktemp("wide")
    for layers in (2, 3):
        shape = WIDE | {"layers": layers}
        write_embedded(root / f"qwen3-{layers}", Shape(**shape), 0, TEXTS)
        moe = Shape(**shape, experts=4, experts_per_token=2)
        write_embedded(root / f"qwen3_moe-{layers}", moe, 0, TEXTS)
    return root


@pytest.fixture
def opened(wide, folders, configure):
    """`opened("qwen3-2", FULL)`: configuration, policy and dimensions."""

    def load(name: str, settings: str = FULL):
        folder = folders["gpt2"] if name == "gpt2" else wide / name
        config, _ = configure(f"model.name={folder}", *settings.split())
        policy = load_policy(str(folder), config.model, config.hardware)
        return config, policy, dimensions(policy.model, policy.autocast is not None)

    return load


def tree(policy) -> PackedRows:
    """A row of ROWS * LENGTH nodes: two sequences that begin alike."""
    ids = np.arange(ROWS * LENGTH) % 200
    one, other = ids[: 3 * LENGTH], np.concatenate([ids[:LENGTH], 1 + ids[3 * LENGTH :]])
    sequences = sorted((one, other), key=list)
    masks = [np.arange(len(sequence)) > 0 for sequence in sequences]
    return PackedRows.of([sequences], masks, 3 * LENGTH, policy.chat.pad_id, policy.device)


def kept_bytes(policy, rows: PackedRows | None = None, head: ValueHead | None = None) -> int:
    """Bytes that autograd keeps in an update pass over ROWS * LENGTH tokens, parameters left out."""
    parameters = (*policy.parameters(), *(() if head is None else head.parameters()))
    own = {t.untyped_storage().data_ptr() for t in (*parameters, *policy.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 200
    mask = torch.ones_like(ids, dtype=torch.bool)
    if rows is not None:
        ids = torch.zeros(rows.nodes.shape, dtype=torch.long)
        lengths = torch.tensor([len(set(nodes)) for nodes in rows.nodes.tolist()])
        mask = torch.arange(rows.nodes.shape[1])[None] < lengths[:, None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), policy.updating():
        policy(ids, mask, 1.0, rows=rows, value_head=head)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(("name", "settings"), [(n, s) for n, kinds in KINDS.items() for s in kinds])
def test_a_layer_keeps_what_autograd_keeps(opened, name, settings):
    (_, two, _), (config, three, model) = (opened(f"{name}-{layers}", settings) for layers in (2, 3))
    shared = config.training.share_prefixes is SharePrefixes.auto
    measured = kept_bytes(three, tree(three) if shared else None) - kept_bytes(
        two, tree(two) if shared else None
    )
    planned = ROWS * LENGTH * memory.kept_per_token(config, model)
    planned += memory.restored_experts(config, model) + 2 * model.cast // model.layers
    planned += memory.eager_scores(config, model, ROWS * LENGTH)
    assert planned == pytest.approx(measured, rel=0.003)


@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize(
    ("name", "settings"), [("qwen3-3", FULL), ("gpt2", FULL), ("gpt2", LORA), ("gpt2", f"{FULL} bf16")]
)
def test_a_whole_model_keeps_what_autograd_keeps(opened, name, settings, checkpointing):
    settings = settings.replace("checkpointing=false", f"checkpointing={checkpointing}")
    config, policy, model = opened(name, settings.replace(" bf16", " hardware.precision=bf16"))
    planned = memory.activations(config, model, ROWS * LENGTH)["activations"]
    assert planned == pytest.approx(kept_bytes(policy), rel=0.1)


@pytest.mark.parametrize("coefficient", [0.1, 0])
@pytest.mark.parametrize("settings", [FULL, f"{FULL} bf16", LORA, f"{LORA} bf16"])
def test_a_value_head_keeps_what_autograd_keeps_beside_its_states(opened, settings, coefficient):
    settings = settings.replace(" bf16", " hardware.precision=bf16")
    config, policy, model = opened(
        "qwen3-2", f"{settings} algorithm=ppo algorithm.value.coefficient={coefficient}"
    )
    critic = Critic(policy, config, ProcessGroup())
    measured = kept_bytes(policy, head=critic.head) - kept_bytes(policy)
    # nothing predicts the first token of a sequence
    planned = memory.values_kept(config, model, ROWS * (LENGTH - 1))
    assert planned == pytest.approx(measured, abs=1000)
    assert planned > 10_000 or coefficient == 0
    for parameter in critic.head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    critic.optimizer.step()
    held = [t for p in critic.head.parameters() for t in (p, p.grad)]
    held += [own[moment] for own in critic.optimizer.state.values() for moment in ("exp_avg", "exp_avg_sq")]
    for phase in memory_plan(config, model).phases.values():
        assert phase["value head"] == sum(t.nbytes for t in held)
    without, _, _ = opened("qwen3-2", settings)
    assert not any(phase["value head"] for phase in memory_plan(without, model).phases.values())


@pytest.mark.parametrize("settings", [FULL, LORA, f"{LORA} hardware.precision=bf16"])
def test_weights_gradients_and_states_are_those_of_the_optimizer(opened, settings):
    config, policy, model = opened("qwen3-2", settings)
    optimizer = torch.optim.AdamW(policy.trainable())
    for parameter in policy.trainable():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [own[moment] for own in optimizer.state.values() for moment in ("exp_avg", "exp_avg_sq")]
    found = memory_plan(config, model).phases["step"]
    assert found["weights"] == sum(p.nbytes for p in policy.model.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in policy.trainable())
    assert found["optimizer"] == sum(state.nbytes for state in states)


def test_a_frozen_reference_takes_the_weights_again(opened):
    config, _, model = opened("qwen3-2", f"{FULL} algorithm.beta=0.1")
    assert memory_plan(config, model).phases["rollout"]["weights"] == 2 * model.weights
    config, _, model = opened("qwen3-2", f"{LORA} algorithm.beta=0.1")
    assert memory_plan(config, model).phases["rollout"]["weights"] == model.weights


@pytest.mark.parametrize(("prompt", "new"), [(10, 5), (10, 70), (200, 150), (7, 1)])
def test_the_cache_has_the_room_of_its_growing_layers(opened, prompt, new):
    limits = f"{FULL} rollout.max_prompt_length={prompt} rollout.max_completion_length={new}"
    config, policy, model = opened("qwen3-3", f"{limits} rollout.batch_size=2")
    assert GrowingLayer.spare == memory.SPARE
    cache = new_cache(policy.causal_model.config)
    with torch.no_grad():
        ids = torch.zeros(1, prompt, dtype=torch.long)
        policy.causal_model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([0, 0]))  # answers to one prompt
        for _ in range(new - 1):
            ids = torch.zeros(2, 1, dtype=torch.long)
            policy.causal_model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    held = [t for layer in cache.layers for t in (layer.key_room, layer.value_room)]
    assert memory_plan(config, model).phases["rollout"]["cache"] == sum(
        t.untyped_storage().nbytes() for t in held
    )


def test_room_grows_by_half():
    assert cache_room(100, 100) == (100, 100)
    assert cache_room(100, 101) == (165, 100)  # 101 and the spare 64
    assert cache_room(200, 302) == (453, 301)


@pytest.mark.parametrize(
    ("phase", "part", "setting"),
    [
        ("update", "activations", "hardware.tokens_per_microbatch"),
        ("rollout", "cache", "rollout.batch_size"),
        ("rollout", "cache", "rollout.max_prompt_length"),
        ("update", "activations", "model.lora_r"),
    ],
)
def test_more_of_a_setting_takes_more(opened, phase, part, setting):
    answers = "training.generations_per_iteration=64 evaluation.problems=64"
    totals = []
    for value in (1, 300, 900):
        config, _, model = opened("qwen3-2", f"{LORA} {answers} {setting}={value}")
        totals.append(memory_plan(config, model).phases[phase][part])
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


def test_checkpointing_keeps_less_and_4_bit_weights_take_less(opened):
    def total(settings: str) -> int:
        config, _, model = opened("qwen3-3", settings)
        return memory_plan(config, model).total("update")

    assert total(FULL.replace("checkpointing=false", "checkpointing=true")) < total(FULL)
    assert total(f"{LORA} model.use_4bit=true") < total(LORA)


def test_zero_divides_states_then_gradients_then_weights(opened):
    _, _, model = opened("qwen3-2")
    found = []
    for stage in range(4):
        config, _, _ = opened("qwen3-2", f"{FULL} hardware.zero_stage={stage} hardware.processes=1")
        found.append(memory_plan(config, model, ranks=4).phases["step"])
    states, gradients = model.trained * 8, model.trained * 4
    # besides two moments DeepSpeed keeps an fp32 copy of what it steps on
    divided = model.trained * 12 // 4
    assert [phase["optimizer"] for phase in found] == [states, divided, divided, divided]
    assert [phase["gradients"] for phase in found] == [gradients, gradients, gradients // 4, gradients // 4]
    assert [phase["weights"] for phase in found] == [*[model.weights] * 3, model.weights // 4]


def test_under_zero_3_generation_holds_whole_weights(opened):
    config, _, model = opened("qwen3-2", f"{FULL} hardware.zero_stage=3 hardware.processes=1")
    assert memory_plan(config, model, ranks=4).phases["rollout"]["gathered"] == model.weights


def test_offloading_moves_states_and_at_stage_3_weights(opened):
    for stage, moved in ((2, {"optimizer"}), (3, {"optimizer", "weights"})):
        offload = f"hardware.zero_stage={stage} hardware.processes=1 hardware.offload=true"
        config, _, model = opened("qwen3-2", f"{FULL} {offload}")
        found = memory_plan(config, model, ranks=2)
        assert set(found.host) == moved
        assert not any(found.phases["step"][part] for part in moved)
        assert "in the CPU's memory optimizer " in memory_text(found)


def test_the_line_names_the_phase_that_takes_most(opened):
    config, _, model = opened("qwen3-2", f"{FULL} rollout.batch_size=1")
    found = memory_plan(config, model)
    assert found.peak == max(found.phases, key=found.total)
    named = f"peak {found.peak} {found.total(found.peak) / 2**20:.0f} MiB ("
    assert memory_text(found).startswith(named)
    config, _, _ = opened("qwen3-2", f"{FULL} rollout.batch_size=1 rollout.max_prompt_length=1")
    assert not memory_text(memory_plan(config, model)).startswith(named)
