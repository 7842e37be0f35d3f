"""Typed configuration of the group `model`: weights, adapters, and starting points that depend on size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import ClassVar

from gspo_cli.config.checks import (
    require,
    require_at_most,
    require_fraction,
    require_not_negative,
    require_positive,
)
from gspo_cli.config.choices import Attention, ExpertsImplementation, QuantType
from gspo_cli.config.marks import MODEL, PATH, PLAIN, REMOTE, Marks
from gspo_cli.config.missing import MISSING

WIDEST = 1e3  # of a preset


@dataclass
class LevelPreset:
    """Starting points that depend on model size and ratio level together; `algorithm` reads its own row."""

    clip_range_left: float = MISSING
    """Default of `algorithm.clip_range_left` for algorithms with this ratio level; above 0."""
    clip_range_right: float = MISSING
    """Default of `algorithm.clip_range_right` for algorithms with this ratio level; above 0."""
    learning_rate: float = MISSING
    """Default of `algorithm.learning_rate` for algorithms with this ratio level; above 0."""

    def __post_init__(self) -> None:
        names = ("clip_range_left", "clip_range_right", "learning_rate")
        given = [name for name in names if getattr(self, name) != MISSING]
        require_positive("model.presets", self, *given)
        require_at_most("model.presets", self, **dict.fromkeys(given, WIDEST))


@dataclass
class Presets:
    """Starting points that depend on the model; `algorithm` and `training` read them by interpolation."""

    num_generations: int = MISSING
    """Default of `training.num_generations`."""
    generations_per_iteration: int = MISSING
    """Default of `training.generations_per_iteration`."""
    updates_per_rollout: int = 4
    """Default of `training.updates_per_rollout`."""
    num_outer_iterations: int = 100
    """Default of `training.num_outer_iterations`."""
    evaluation_every: int = 10
    """Default of `evaluation.every`."""
    sequence: LevelPreset = field(default_factory=LevelPreset)
    token: LevelPreset = field(default_factory=LevelPreset)


@dataclass
class Shape:
    """Architecture of an embedded model: Qwen3, or Qwen3-MoE where `experts` is above 0."""

    hidden_size: int = 128
    """Width of the embedded model; above 0."""
    layers: int = 4
    """Number of layers; above 0."""
    heads: int = 4
    """Attention heads of a layer, a multiple of key_value_heads; above 0."""
    key_value_heads: int = 2
    """Heads of keys and values; above 0."""
    head_dim: int = 32
    """Width of a head; above 0, and even."""
    intermediate_size: int = 384
    """Inner width of a feed-forward layer, or of one expert; above 0."""
    experts: int = 0
    """Experts of a layer; 0 makes a dense model; 0 or more."""
    experts_per_token: int = 2
    """Experts that a token is sent to, between 1 and `experts` where there are any."""
    vocabulary: int = 384
    """Maximum size of the tokenizer trained on the task's texts; at least 300."""
    positions: int = 16384
    """Longest context in tokens; above 0."""

    def __post_init__(self) -> None:
        require_positive("model.shape", self, "hidden_size", "layers", "heads", "key_value_heads", "head_dim")
        require_positive("model.shape", self, "intermediate_size", "vocabulary", "positions")
        require_not_negative("model.shape", self, "experts")
        require(self.head_dim % 2 == 0, f"model.shape.head_dim={self.head_dim}: must be even")
        shared = math.gcd(self.heads, self.key_value_heads)
        require(
            self.heads % self.key_value_heads == 0,
            f"model.shape.heads={self.heads}: must be a multiple of model.shape.key_value_heads="
            f"{self.key_value_heads}; use model.shape.key_value_heads={shared}",
        )
        require(
            self.experts == 0 or 0 < self.experts_per_token <= self.experts,
            f"model.shape.experts_per_token={self.experts_per_token}: must be between 1 and "
            f"model.shape.experts={self.experts}; use model.shape.experts_per_token="
            f"{min(max(1, self.experts_per_token), self.experts)}",
        )
        require(
            self.vocabulary >= 300,
            f"model.shape.vocabulary={self.vocabulary}: must be at least 300, for bytes and special tokens",
        )


@dataclass
class ColdStart:
    """Supervised fine-tuning on demonstrations before reinforcement learning (GSPO paper, section 5.1), which
    can only amplify what the model already samples."""

    TRUST: ClassVar[Marks] = {"demonstrations": PATH}

    steps: int = 0
    """Maximum steps of supervised fine-tuning on demonstrations before reinforcement learning; 0 skips it; 0
    or more."""
    stop_score: float | None = None
    """Ends the cold start once sampled answers solve this share of training problems, between 0 and 1; null
    runs all steps."""
    batch_tokens: int = 2048
    """Approximate tokens of demonstrations per step; above 0."""
    learning_rate: float = 1e-3
    """Initial learning rate, which falls linearly to a tenth; above 0."""
    demonstrations: str | None = None
    """JSON lines file of demonstrations, with "messages" or "prompt" and "answer"; null uses the task's own
    demonstrations."""
    seed: int = 0
    """Seed of the order of demonstrations, independent of `seed`; 0 or more."""
    cache: bool = True
    """Caches the result in the user's cache folder, keyed by everything it depends on, and reuses it."""

    def __post_init__(self) -> None:
        require_not_negative("model.cold_start", self, "steps", "seed")
        require_positive("model.cold_start", self, "batch_tokens", "learning_rate")
        require_at_most("model.cold_start", self, learning_rate=1.0)
        if self.stop_score is not None:
            require_fraction("model.cold_start", self, "stop_score")


@dataclass
class ModelConfig:
    """Which model is trained and how."""

    TRUST: ClassVar[Marks] = {
        "label": PLAIN,
        "name": MODEL,
        "base": MODEL,
        "lora_target_modules": PLAIN,
        "trust_remote_code": REMOTE,
    }

    label: str = MISSING
    """Short name of the option, in run folders and reports."""
    name: str = MISSING
    """`embedded` builds a model here from `shape`; else a hub id, a model folder, a GGUF file (extra `gguf`),
    a LoRA adapter's folder, a run folder (its best checkpoint) or a checkpoint. Under LoRA, training
    continues an adapter; with use_lora=false it is merged first."""
    base: str | None = None
    """Hub id or model folder that the adapter in `name` belongs to; null takes what the adapter names."""
    shape: Shape = field(default_factory=Shape)
    init_seed: int = 0
    """Seed of the embedded model's weights and of new LoRA weights, independent of `seed`; 0 or more."""
    cold_start: ColdStart = field(default_factory=ColdStart)
    use_lora: bool = True
    """Trains a LoRA adapter over frozen weights; false trains all weights."""
    lora_r: int = 16
    """Rank of the adapter; above 0."""
    lora_alpha: int = 32
    """Scale of the adapter, which is multiplied by lora_alpha / lora_r; above 0."""
    lora_target_modules: list[str] | None = None
    """Names of the layers that LoRA adapts; null or [all-linear] means every linear layer except the output
    layer, routers and experts."""
    lora_experts: bool = False
    """Adapts the fused weights of Mixture-of-Experts layers too; needs LoRA, and no 4-bit weights."""
    use_4bit: bool = False
    """Stores the frozen weights under LoRA in 4 bits (bitsandbytes, extra `quant`)."""
    use_8bit: bool = False
    """Stores the frozen weights under LoRA in 8 bits; fused experts are not quantized."""
    bnb_4bit_quant_type: QuantType = QuantType.nf4
    """Number format of 4-bit weights."""
    bnb_4bit_use_double_quant: bool = True
    """Quantizes the constants of 4-bit quantization too."""
    experts_implementation: ExpertsImplementation | None = None
    """How fused experts are computed; null keeps the library's default."""
    freeze_router: bool = True
    """Keeps the routers of a Mixture-of-Experts model frozen; false needs use_lora=false."""
    router_aux_loss: float = 0.0
    """Weight of the load-balancing loss of trained routers; 0 or more, and 0 where routers are frozen."""
    instructions: bool = True
    """Whether conversational tasks put their policy and tools in the system prompt of each conversation;
    false for models that learned them from demonstrations."""
    turn_length: int = 128
    """Longest turn of the agent in conversational tasks, in tokens; above 0."""
    gradient_checkpointing: bool = True
    """Recomputes activations in the backward pass, which saves memory and costs time."""
    attention: Attention = Attention.auto
    """How attention is computed."""
    trust_remote_code: bool = False
    """Lets a hub model run its own code while it loads."""
    presets: Presets = field(default_factory=Presets)

    def __post_init__(self) -> None:
        require_positive("model", self, "lora_r", "lora_alpha", "turn_length")
        require(
            self.lora_target_modules != [],
            "model.lora_target_modules: is empty; give some layers' names, or null for all linear ones",
        )
        require(
            self.freeze_router or not self.use_lora,
            "model.freeze_router=false: LoRA does not train routers; set model.use_lora=false or "
            "model.freeze_router=true",
        )
        require_not_negative("model", self, "router_aux_loss")
        require(
            self.router_aux_loss == 0 or not self.freeze_router,
            f"model.router_aux_loss={self.router_aux_loss:g}: has no effect on frozen routers; set "
            "model.freeze_router=false (with model.use_lora=false), or model.router_aux_loss=0",
        )
        self._check_quantization()
        require(self.name != "", "model.name: is empty; give a hub id, a model folder or a run folder")
        for target in self.lora_target_modules or []:
            named = re.fullmatch(r"[A-Za-z_][\w.-]*", target) is not None
            require(
                named,
                f"model.lora_target_modules: {target} is no module's name; give some as in [q_proj,v_proj]",
            )
        require(
            0 <= self.init_seed < 2**63,
            f"model.init_seed={self.init_seed}: must be between 0 and 2**63; give 0",
        )

    def _check_quantization(self) -> None:
        require(
            not (self.use_4bit and self.use_8bit),
            "model.use_4bit, model.use_8bit: are both true; set one of them to false",
        )
        require(
            self.use_lora or not self.is_quantized,
            f"model.{self.quantized_by}=true: quantized weights are frozen; set model.use_lora=true, or "
            f"model.{self.quantized_by}=false",
        )
        require(
            self.use_lora or not self.lora_experts,
            "model.lora_experts=true: without LoRA all weights are trained; set model.use_lora=true, or "
            "model.lora_experts=false",
        )
        require(
            not (self.lora_experts and self.use_4bit),
            "model.lora_experts=true: LoRA does not support experts in 4 bits; set "
            "model.lora_experts=false, or use model.use_8bit=true, which does not quantize experts, "
            "in place of model.use_4bit",
        )

    def whole(self) -> ModelConfig:
        """The same model with only its own weights: no adapter, and nothing quantized."""
        return replace(self.unquantized(), use_lora=False, lora_experts=False)

    def unquantized(self) -> ModelConfig:
        """The same model in full precision, for merging an adapter or saving full weights."""
        return replace(self, use_4bit=False, use_8bit=False)

    @property
    def is_quantized(self) -> bool:
        """Whether frozen weights have 8 or 4 bits."""
        return self.use_4bit or self.use_8bit

    @property
    def quantized_by(self) -> str:
        """The key that quantizes, for messages."""
        return "use_4bit" if self.use_4bit else "use_8bit"

    @property
    def is_embedded(self) -> bool:
        """Whether the model is built here from `shape` instead of loaded."""
        return self.name == "embedded"
