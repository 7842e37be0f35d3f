"""The choices of the configuration that are mathematics or machinery, as enums."""

from __future__ import annotations

from enum import Enum


class RatioLevel(Enum):
    """What the importance ratio is taken over (GSPO paper: Eq. 2 token, Eq. 7 sequence, Eq. 14
    sequence_token)."""

    token = "token"
    sequence = "sequence"
    sequence_token = "sequence_token"


class ClipMode(Enum):
    """`min`: min(ratio A, clip(ratio) A). `stop_gradient`: sg(clip(ratio)) A log p (CISPO). `none`: ratio
    A."""

    min = "min"
    stop_gradient = "stop_gradient"
    none = "none"


class ClipCalibration(Enum):
    """Where the clip band comes from: the configured widths throughout, or from the second iteration on the
    quantiles of the last iteration's ratios that clip a given share of the tokens."""

    none = "none"
    quantile = "quantile"


class Aggregation(Enum):
    """How token terms become one loss: mean per sequence then over sequences, mean over all trained tokens
    of the update, or sum divided by sequences x max_completion_length (dr_grpo)."""

    sequence_mean = "sequence_mean"
    token_mean = "token_mean"
    constant = "constant"


class AdvantageBaseline(Enum):
    """What is subtracted from a reward: the mean of its group, or of the other answers of its group
    (RLOO)."""

    group_mean = "group_mean"
    leave_one_out = "leave_one_out"


class AdvantageScale(Enum):
    """What the centred reward is divided by."""

    group_std = "group_std"
    batch_std = "batch_std"
    none = "none"


class Credit(Enum):
    """What an agent's turn is judged by: the reward of the whole conversation, or what was earned from this
    turn on."""

    trajectory = "trajectory"
    turn = "turn"


class KLEstimator(Enum):
    """k1 = log(p/ref), subtracted from the reward; k2 = k1^2/2 and k3 = ref/p - 1 + k1, added to the loss."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class Truncated(Enum):
    """What to do with an answer cut by the length cap: train on it, leave it out, or subtract a penalty."""

    keep = "keep"
    mask = "mask"
    penalise = "penalise"
    penalize = "penalise"  # a second spelling; saved as the first, which earlier runs have


class RewardErrors(Enum):
    """What to do when a reward raises or is not finite: stop the run, or leave the sample out of its
    group."""

    stop = "stop"
    exclude = "exclude"


class OnCollapse(Enum):
    """What to do when the monitor finds that the policy is being lost: say so, end the run with its
    checkpoints, or return to a checkpoint of before with a lower learning rate."""

    warn = "warn"
    stop = "stop"
    rollback = "rollback"


class Schedule(Enum):
    """Learning-rate schedule after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Device(Enum):
    """Where tensors live."""

    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """dtype of frozen weights and of the matrix products; trained weights and log-probabilities are always
    fp32."""

    fp32 = "fp32"
    bf16 = "bf16"


class Optimizer(Enum):
    """AdamW of torch, or of bitsandbytes: `8bit` keeps its two states in a byte each, `paged` lets them move
    to the CPU's memory while a GPU's is short."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    paged_adamw = "paged_adamw"
    paged_adamw_8bit = "paged_adamw_8bit"


class QuantType(Enum):
    """What 4 bits stand for: quantiles of a normal distribution (QLoRA, section 3), or small floats."""

    nf4 = "nf4"
    fp4 = "fp4"


class ExpertsImplementation(Enum):
    """How fused experts are multiplied: one after the other, all in one grouped product, or as a batch that
    copies an expert's weights for each token."""

    eager = "eager"
    grouped_mm = "grouped_mm"
    batched_mm = "batched_mm"


class Engine(Enum):
    """What generates answers: the trained model itself, or vLLM with a copy of its weights."""

    transformers = "transformers"
    vllm = "vllm"


class OldLogprobs(Enum):
    """Where old log-probabilities come from: scored again by the trainer, or those that the engine sampled
    with, which saves a pass and puts the engine's numerical noise into the ratio."""

    recompute = "recompute"
    engine = "engine"


class EngineCorrection(Enum):
    """What makes up for an engine that samples from a slightly other distribution than the trainer's:
    nothing, a truncated weight per token, or leaving out sequences that are too far off."""

    none = "none"
    token_truncate = "token_truncate"
    sequence_mask = "sequence_mask"


class Tracker(Enum):
    """Where metrics are mirrored; metrics.jsonl in the run folder is always written."""

    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"


class WandbMode(Enum):
    """wandb's own modes."""

    online = "online"
    offline = "offline"
    disabled = "disabled"
