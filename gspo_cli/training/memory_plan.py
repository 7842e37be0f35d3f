"""How much memory a run takes at its peak, part by part, from the configuration and the model's dimensions.

Shapes: L layers, H hidden size, Q and K widths of queries and of keys, I inner width of an MLP or an expert,
k experts per token, V vocabulary, T tokens of a micro-batch, R rows of a generation batch. All in bytes.

Activations are what autograd keeps for backward, tensor by tensor, under transformers' `sdpa` attention,
which keeps no scores, or `eager`, which keeps them all. Left out: scratch space of kernels, a single
quantized matrix while it is dequantized, what other libraries allocate (vLLM above all), and a judge's own
model. `scripts/benchmark_memory.py` compares it with measured peaks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gspo_cli.config.choices import (
    Attention,
    Device,
    Engine,
    ExpertsImplementation,
    Optimizer,
    Precision,
    SharePrefixes,
)
from gspo_cli.config.schema import RunConfig
from gspo_cli.policy.dimensions import Dimensions
from gspo_cli.policy.logprobs import BLOCK_BYTES, chunk_rows
from gspo_cli.policy.packed import LONGEST_ROW

SPARE = 64  # positions that `GrowingLayer` adds at least
STATES = {Optimizer.adamw: 8, Optimizer.paged_adamw: 8}  # bytes per trained element; others keep two of 1
SAMPLING = {False: 24, True: 48}  # bytes per logit while a token is drawn, and under top_p or top_k
GATHERED = 10**9  # elements that ZeRO-3 may keep gathered at once (DeepSpeed's stage3_max_reuse_distance)
BUCKET = 5 * 10**8  # elements of ZeRO's communication buffer (DeepSpeed's reduce_bucket_size)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by phase and part on one device, which each of `processes` has of its own; `host` is what
    offloading keeps in the CPU's memory instead. `vllm_memory` is the share of the device's memory that vLLM
    takes in addition, None without it."""

    phases: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]
    processes: int = 1
    vllm_memory: float | None = None

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> str:
        """The largest phase."""
        return max(self.phases, key=self.total)


def memory_plan(config: RunConfig, model: Dimensions, ranks: int = 1) -> MemoryPlan:
    """Peaks of the rollout, of an update's forward and backward, and of the optimizer's step on one of
    `ranks` devices, under the ZeRO stage of `config`."""
    stage, offload = config.hardware.zero_stage, config.hardware.offload
    whole = model.weights * (2 if config.keeps_reference else 1)
    shards = {after: ranks if stage >= after else 1 for after in (1, 2, 3)}
    states = STATES.get(config.training.optimizer, 2) + (4 if stage else 0)  # ZeRO keeps a second fp32 copy
    optimizer = model.trained * states // shards[1]
    gradients = model.trained * 4 // shards[2]
    weights = whole // shards[3]
    gathered = min(whole, GATHERED * model.width) if stage == 3 else 0
    host = {"optimizer": optimizer, **({"weights": weights} if stage == 3 else {})} if offload else {}
    copied = model.vocabulary * model.hidden * 4 * keeps_head(config, model)
    kept = {"weights": weights, "head": copied, "optimizer": optimizer}
    kept = {part: 0 if part in host else size for part, size in kept.items()}
    # in fp32 on every rank, with its gradient and the two moments of an AdamW of its own
    kept["value head"] = 16 * (model.hidden + 1) * config.algorithm.has_critic
    tokens, several = micro_batch(config, model, ranks)
    update = kept | {
        "gathered": gathered,
        "buckets": _buckets(config, model),
        "gradients": gradients if several else 0,
        **activations(config, model, tokens),
    }
    step = kept | {"gradients": gradients, "temporary": _step(config, model, shards[1])}
    # generation gathers all weights
    rollout = kept | {"gathered": whole if stage == 3 else 0}
    if config.rollout.engine is Engine.transformers:
        rollout |= _rollout(config, model, ranks)
    vllm = config.rollout.vllm_memory if config.rollout.engine is Engine.vllm else None
    return MemoryPlan({"update": update, "step": step, "rollout": rollout}, host, ranks, vllm)


def micro_batch(config: RunConfig, model: Dimensions, ranks: int) -> tuple[int, bool]:
    """Tokens of the largest micro-batch, and whether an update has several, the later of which meet the
    gradients of the earlier ones."""
    longest = longest_conversation(config, model.positions)
    answers = math.ceil(config.training.answers_per_update / ranks)
    budget = max(config.hardware.tokens_per_microbatch // longest, 1) * longest
    return min(budget, answers * longest), answers * longest > budget


def longest_conversation(config: RunConfig, positions: int) -> int:
    """Tokens of the longest conversation; of several turns without what the other side says."""
    rollout = config.rollout
    turns = 1 if config.task.single_turn else rollout.max_turns
    return min(positions, rollout.max_prompt_length + turns * rollout.max_completion_length)


def activations(config: RunConfig, model: Dimensions, tokens: int) -> dict[str, int]:
    """What is kept for backward, the log-probability head, and what a layer's backward takes beyond the head.

    With gradient checkpointing the residual stream is kept at each layer, and one layer in full."""
    layer = tokens * kept_per_token(config, model) + restored_experts(config, model)
    layer += eager_scores(config, model, tokens)
    # the last norm; under LoRA it takes the place of the first one's input, which needs no gradient
    full, again = not config.model.use_lora, config.model.gradient_checkpointing
    norm = 4 * (1 + full) if model.rms_norm else model.width
    final = tokens * model.hidden * norm * (full or again)
    kept = final + tokens * model.hidden * model.width  # the hidden states that the head reads
    kept += tree_mask(config, tokens) + values_kept(config, model, tokens)
    backward = tokens * _flowing(config, model) + _weight_gradient(config, model)
    casts = 2 * model.cast
    if again:
        kept += model.layers * tokens * model.hidden * model.width
        # autocast's copies of all weights live as long as the forward pass
        working = max(layer + casts // model.layers + backward, casts)
    else:
        kept += model.layers * layer + casts
        working = backward
    if not config.model.use_lora and model.tied:  # waits for the gradient of the embeddings
        working += 4 * model.vocabulary * model.hidden
    logits = head(config, model, tokens)
    return {"activations": kept, "logits": logits, "working": max(0, working - logits)}


def values_kept(config: RunConfig, model: Dimensions, tokens: int) -> int:
    """What the value head keeps: hidden states in fp32, unless it trains alone and reads those that are."""
    copies = config.algorithm.has_critic and (config.algorithm.value.coefficient > 0 or model.width < 4)
    return tokens * model.hidden * 4 * copies


def shares(config: RunConfig) -> bool:
    """Whether rows of trees are planned for."""
    return config.training.share_prefixes is SharePrefixes.auto


def tree_mask(config: RunConfig, tokens: int) -> int:
    """The masks of a micro-batch at most: of one tree, or of several of the longest. flex_attention finds its
    blocks in a boolean one."""
    width = 1 if config.model.attention is Attention.flex_attention else _compute_bytes(config)
    return tokens * min(tokens, LONGEST_ROW) * width * shares(config)


def eager_scores(config: RunConfig, model: Dimensions, tokens: int) -> int:
    """Under eager attention: a layer's share of every token in every other of its row, in fp32 and cast."""
    if config.model.attention is not Attention.eager:
        return 0
    longest = LONGEST_ROW if shares(config) else longest_conversation(config, model.positions)
    product = _compute_bytes(config)
    return tokens * min(tokens, longest) * model.heads * (4 + product * (product < 4))


def kept_per_token(config: RunConfig, model: Dimensions) -> int:
    """Bytes that autograd keeps for a token in one layer, beside weights."""
    full, product = not config.model.use_lora, _compute_bytes(config)
    hidden, queries, keys = model.hidden, model.queries, model.keys
    # an RMS norm is written out in fp32: its input and, where its weight is trained, the normalized one
    norms = 2 * hidden * (4 * (1 + full) if model.rms_norm else model.width)
    # eager attention, and any under the mask of a tree, repeats keys and values for all heads
    eager = config.model.attention is Attention.eager
    read = queries if shares(config) or eager else keys
    written = 0 if eager and product < 4 and not full else queries  # adapters keep it cast
    attention = product * (queries + 2 * read + written) + 4 * model.heads * (not eager) + 8
    if model.head_norm:
        attention += (queries + keys) * (4 + product * full) + 4 * (model.heads + model.key_heads)
    return norms + attention + _linear_inputs(config, model) + _mlp(config, model)


def _linear_inputs(config: RunConfig, model: Dimensions) -> int:
    """Hidden states that linear layers keep: one for all that read it, or a cast one for each."""
    router = model.experts > 0 and not config.model.use_lora and not config.model.freeze_router
    if _compute_bytes(config) == 4:
        if config.model.use_lora:
            return 4 * (model.adapter_keeps + model.adapter_ranks)
        return 4 * model.hidden * (1 + (router if model.experts else 1))
    if config.model.use_lora:  # each adapter casts its own to fp32
        return 4 * (model.adapter_inputs + model.adapter_ranks)
    attention = 3 if model.rms_norm else 1  # queries, keys and values apart, or in one product as in gpt2
    return 2 * model.hidden * (attention + (router if model.experts else 1 + model.gated))


def _mlp(config: RunConfig, model: Dimensions) -> int:
    full, product = not config.model.use_lora, _compute_bytes(config)
    steps = 3 if model.gated else model.activation_steps
    if not model.experts:
        return product * model.inner * (steps + full)
    trained = full or config.model.lora_experts
    width, active, way = _expert_width(config), model.active, config.model.experts_implementation
    one_by_one, copied = (way is ExpertsImplementation.eager, way is ExpertsImplementation.batched_mm)
    inner = model.inner * (steps + trained) + model.hidden * (1 + trained + one_by_one)
    inner += copied * 3 * model.inner * model.hidden
    return width * active * inner + 4 * model.experts + 40 * active


def restored_experts(config: RunConfig, model: Dimensions) -> int:
    """Expert weights of a layer made for one pass: with their adapter added, or out of 4 bits."""
    made = config.model.lora_experts or config.model.use_4bit
    return made * model.expert_elements * _expert_width(config)


def _flowing(config: RunConfig, model: Dimensions) -> int:
    """Gradients of a token inside the MLP, the widest part of a layer."""
    width = _expert_width(config) if model.experts else _compute_bytes(config)
    rows = model.active * width * (3 * model.inner + 2 * model.hidden * (model.experts > 0))
    return rows + 2 * model.hidden * model.width


def _weight_gradient(config: RunConfig, model: Dimensions) -> int:
    """The largest gradient of a layer's weights, before it joins that of earlier micro-batches."""
    if config.model.use_lora:
        return restored_experts(config, model)
    mlp = model.expert_elements * 2 // 3 if model.experts else model.hidden * model.inner
    return 4 * max(mlp, model.hidden * model.queries)


def head(config: RunConfig, model: Dimensions, tokens: int) -> int:
    """The log-probability head: the gradient of hidden states, chunks of logits, a block of weights in fp32
    where they are not, and the gradient of a trained head."""
    rows = min(chunk_rows(model.vocabulary, config.hardware.device.value), tokens)
    chunk = rows * model.vocabulary * 4
    matrix = model.vocabulary * model.hidden * 4
    cast = min(BLOCK_BYTES, matrix) if model.width < 4 and not keeps_head(config, model) else 0
    trained = 0 if config.model.use_lora else matrix
    return tokens * model.hidden * model.width + 3 * chunk + cast + trained


def keeps_head(config: RunConfig, model: Dimensions) -> bool:
    """Whether the weight of the output layer is kept in fp32 besides; see `Head`."""
    low, cpu = model.width < 4, config.hardware.device is Device.cpu
    return low and cpu and config.model.use_lora and config.hardware.zero_stage < 3


def cache_room(prompt: int, length: int) -> tuple[int, int]:
    """Positions for which a cache row has room when it holds `length`, and had before the last growth; see
    `GrowingLayer`."""
    room, before = prompt, prompt
    while room < length:
        total = room + 1
        before, room = room, total + max(SPARE, total // 2)
    return room, before


def _rollout(config: RunConfig, model: Dimensions, ranks: int) -> dict[str, int]:
    """Cache, logits and working space of generation in training and evaluation, whichever takes more rows."""
    training, evaluation, sampling = config.training, config.evaluation, config.rollout
    conversations = math.ceil(training.generations_per_iteration / ranks)
    evaluated = math.ceil(evaluation.problems / ranks)
    rows = min(sampling.batch_size, max(conversations, evaluated * max(1, evaluation.samples)))
    prompts = min(sampling.batch_size, max(math.ceil(training.prompts_per_iteration / ranks), evaluated))
    prompt, longest = sampling.max_prompt_length, longest_conversation(config, model.positions)
    position = model.layers * _cached(config, model)  # bytes of one position of a row
    # the last token drawn is never fed
    room, before = cache_room(prompt, longest - 1)
    cache = rows * room * position
    if not config.task.single_turn:  # earlier turns stay in the cache
        cache += max(conversations, evaluated * max(1, evaluation.samples)) * longest * position
    growing = rows * before * position // model.layers
    cast = BLOCK_BYTES * (model.width < 4 and not keeps_head(config, model))
    logits = rows * model.vocabulary
    drawing = max(SAMPLING[sampling.truncates] * logits, cast + 8 * logits)
    # under a mask keys and values are repeated for all heads, and the mask is held as bits and as a bias
    repeated = 2 * model.queries * _compute_bytes(config) * (model.queries > model.keys)
    reading = prompts * prompt * (3 * model.width * model.hidden + _flowing(config, model) + repeated)
    reading += prompts * prompt * prompt * (1 + _compute_bytes(config))
    begun = prompts * (prompt + max(SPARE, prompt // 2)) * position
    working = max(growing, drawing, begun + reading - cache)
    parts = {"cache": cache, "logits": drawing if working == drawing else 0}
    return parts | {"working": working - parts["logits"], "casts": 2 * model.cast}


def _cached(config: RunConfig, model: Dimensions) -> int:
    """Bytes of a position in one layer's cache; autocast leaves rotated keys in fp32."""
    product = _compute_bytes(config)
    keys = 4 if model.cast and model.rms_norm else product
    return model.keys * (keys + product)


def _step(config: RunConfig, model: Dimensions, ranks: int) -> int:
    """Working memory of AdamW: on a GPU for all tensors at once, on a CPU for one at a time."""
    if config.hardware.zero_stage == 0 and config.hardware.device is Device.cpu:
        return 2 * 4 * model.largest
    return 4 * model.trained // ranks


def _buckets(config: RunConfig, model: Dimensions) -> int:
    """ZeRO's communication buffer; pages of it that are never written take nothing on a CPU."""
    if config.hardware.zero_stage == 0:
        return 0
    return 4 * (BUCKET if config.hardware.device is Device.cuda else min(BUCKET, model.trained))


def _compute_bytes(config: RunConfig) -> int:
    """Bytes of an element in matrix products."""
    return 2 if config.hardware.precision is Precision.bf16 else 4


def _expert_width(config: RunConfig) -> int:
    """Grouped products of fused experts are not cast by autocast."""
    return _compute_bytes(config) if config.model.use_lora else 4
