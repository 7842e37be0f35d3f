"""Typed configuration of the group `model`: weights, adapters, and starting points that depend on size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omegaconf import MISSING

from gspo_cli.config.checks import require, require_fraction, require_not_negative, require_positive
from gspo_cli.config.choices import ExpertsImplementation, QuantType


@dataclass
class LevelPreset:
    """Starting points that depend on model size and ratio level together; `algorithm` reads its own row."""

    clip_range_left: float = MISSING
    clip_range_right: float = MISSING
    learning_rate: float = MISSING


@dataclass
class Presets:
    """Starting points that depend on the model; `algorithm` and `training` read them by interpolation."""

    num_generations: int = MISSING
    generations_per_iteration: int = MISSING
    sequence: LevelPreset = field(default_factory=LevelPreset)
    token: LevelPreset = field(default_factory=LevelPreset)


@dataclass
class Shape:
    """Architecture of an embedded model: Qwen3, or Qwen3-MoE where `experts` is above 0."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    experts: int = 0
    experts_per_token: int = 2
    vocabulary: int = 384
    positions: int = 16384

    def __post_init__(self) -> None:
        require_positive("model.shape", self, "hidden_size", "layers", "heads", "key_value_heads", "head_dim")
        require_positive("model.shape", self, "intermediate_size", "vocabulary", "positions")
        require_not_negative("model.shape", self, "experts")
        require(self.head_dim % 2 == 0, f"model.shape.head_dim={self.head_dim}: must be even")
        require(
            self.heads % self.key_value_heads == 0,
            "model.shape.heads: must be a multiple of model.shape.key_value_heads",
        )
        require(
            self.experts == 0 or 0 < self.experts_per_token <= self.experts,
            f"model.shape.experts_per_token={self.experts_per_token}: must lie between 1 and "
            "model.shape.experts",
        )
        require(
            self.vocabulary >= 300,
            f"model.shape.vocabulary={self.vocabulary}: bytes and special tokens need at least 300",
        )


@dataclass
class ColdStart:
    """Supervised fine-tuning on demonstrations before reinforcement learning (GSPO paper, section 5.1):
    `steps` at most, and no more once sampled answers solve the share `stop_score` of training problems: what
    reinforcement learning amplifies has to occur."""

    steps: int = 0
    stop_score: float | None = None
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    demonstrations: str | None = None
    seed: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        require_not_negative("model.cold_start", self, "steps", "seed")
        require_positive("model.cold_start", self, "batch_tokens", "learning_rate")
        if self.stop_score is not None:
            require_fraction("model.cold_start", self, "stop_score")


@dataclass
class ModelConfig:
    """Which model is trained and how. `name` is `embedded`, a hub id or a local folder. `instructions` says
    whether conversational tasks put their policy and tools before each conversation, `turn_length` what they
    allow one turn of the agent, in tokens.

    `use_4bit` and `use_8bit` quantise the frozen weights under LoRA. `lora_target_modules` null (or
    [all-linear]) adapts every linear layer but output layer, routers and experts, `lora_experts` the fused
    experts too. `experts_implementation` null leaves the library's own. `router_aux_loss` weighs the
    load-balancing loss of routers that are trained."""

    label: str = MISSING
    name: str = MISSING
    shape: Shape = field(default_factory=Shape)
    init_seed: int = 0
    cold_start: ColdStart = field(default_factory=ColdStart)
    use_lora: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    lora_target_modules: list[str] | None = None
    lora_experts: bool = False
    use_4bit: bool = False
    use_8bit: bool = False
    bnb_4bit_quant_type: QuantType = QuantType.nf4
    bnb_4bit_use_double_quant: bool = True
    experts_implementation: ExpertsImplementation | None = None
    freeze_router: bool = True
    router_aux_loss: float = 0.0
    instructions: bool = True
    turn_length: int = 128
    gradient_checkpointing: bool = True
    trust_remote_code: bool = False
    presets: Presets = field(default_factory=Presets)

    def __post_init__(self) -> None:
        require_positive("model", self, "lora_r", "lora_alpha", "turn_length")
        require(
            self.lora_target_modules != [],
            "model.lora_target_modules: is empty; name layers, or null for all linear ones",
        )
        require(
            self.freeze_router or not self.use_lora,
            "model.freeze_router=false: LoRA trains no router; set model.use_lora=false or "
            "model.freeze_router=true",
        )
        require_not_negative("model", self, "router_aux_loss")
        require(
            self.router_aux_loss == 0 or not self.freeze_router,
            f"model.router_aux_loss={self.router_aux_loss:g}: frozen routers learn nothing from it; set "
            "model.freeze_router=false (with model.use_lora=false), or model.router_aux_loss=0",
        )
        self._check_quantisation()
        require(
            0 <= self.init_seed < 2**63, f"model.init_seed={self.init_seed}: must lie between 0 and 2**63"
        )

    def _check_quantisation(self) -> None:
        require(
            not (self.use_4bit and self.use_8bit),
            "model.use_4bit, model.use_8bit: are both true; set one of them to false",
        )
        require(
            self.use_lora or not self.is_quantised,
            f"model.{self.quantised_by}=true: quantised weights are frozen; set model.use_lora=true, or "
            f"model.{self.quantised_by}=false",
        )
        require(
            self.use_lora or not self.lora_experts,
            "model.lora_experts=true: all weights are trained without LoRA; set model.use_lora=true, or "
            "model.lora_experts=false",
        )
        require(
            not (self.lora_experts and self.use_4bit),
            "model.lora_experts=true: experts in 4 bits take no LoRA; set model.lora_experts=false, or "
            "model.use_8bit=true, which leaves experts whole, in place of model.use_4bit",
        )

    def whole(self) -> ModelConfig:
        """The same model with its own weights alone: no adapter, and nothing quantised."""
        return replace(self.unquantised(), use_lora=False, lora_experts=False)

    def unquantised(self) -> ModelConfig:
        """The same in full precision: what is merged, or saved whole."""
        return replace(self, use_4bit=False, use_8bit=False)

    @property
    def is_quantised(self) -> bool:
        """Whether frozen weights are held in 8 or 4 bits."""
        return self.use_4bit or self.use_8bit

    @property
    def quantised_by(self) -> str:
        """The key that quantises, for messages."""
        return "use_4bit" if self.use_4bit else "use_8bit"

    @property
    def is_embedded(self) -> bool:
        """Whether the model is built here from `shape` instead of loaded."""
        return self.name == "embedded"
