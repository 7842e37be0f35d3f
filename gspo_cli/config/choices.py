"""The choices of the configuration that are mathematics or machinery, as enums."""

from __future__ import annotations

from enum import Enum


class RatioLevel(Enum):
    """What the importance ratio is taken over."""

    token = "token"
    """one ratio per token (GSPO paper, Eq. 2)"""
    sequence = "sequence"
    """one ratio per answer, the geometric mean over tokens (Eq. 7)"""
    sequence_token = "sequence_token"
    """value of the sequence ratio, gradient of each token (Eq. 14)"""
    sequence_product = "sequence_product"
    """one ratio per answer, the product over tokens: how likely the whole answer is (RLOO)"""

    @property
    def is_whole(self) -> bool:
        """Whether an answer has one ratio, and therefore one advantage."""
        return self in (RatioLevel.sequence, RatioLevel.sequence_product)


class ClipMode(Enum):
    """What the clip does to a ratio outside the band."""

    min = "min"
    """`min(ratio A, clip(ratio) A)`; a clipped token has no gradient"""
    stop_gradient = "stop_gradient"
    """clipped ratio as a constant weight, every token keeps its gradient (CISPO)"""
    soft_gate = "soft_gate"
    """a smooth gate in place of the clip, whose gradient fades away from 1 (SAPO)"""
    token_log = "token_log"
    """token ratios are clipped before their geometric mean is taken (GMPO); widths are of log ratios"""
    none = "none"
    """`ratio A`, not clipped"""


class ClipCalibration(Enum):
    """Where the clip band comes from."""

    none = "none"
    """the configured widths throughout"""
    quantile = "quantile"
    """widths that would have clipped the share clip_fraction of the previous iteration; the configured ones
    in the first iteration"""


class Aggregation(Enum):
    """How token terms become one loss."""

    sequence_mean = "sequence_mean"
    """mean per answer, then over answers"""
    token_mean = "token_mean"
    """mean over all trained tokens of the update"""
    sequence_sum = "sequence_sum"
    """sum per answer, then mean over answers"""
    constant = "constant"
    """sum divided by answers x max_completion_length"""


class AdvantageBaseline(Enum):
    """What is subtracted from a reward."""

    group_mean = "group_mean"
    """mean of the group"""
    leave_one_out = "leave_one_out"
    """mean of the other answers of the group"""
    batch_mean = "batch_mean"
    """mean of all answers of the iteration (REINFORCE++)"""
    value = "value"
    """what a value head expects; advantages are generalized advantage estimates (PPO, A2C)"""


class AdvantageScale(Enum):
    """What the centered reward is divided by."""

    group_std = "group_std"
    """standard deviation of the group (n - 1)"""
    batch_std = "batch_std"
    """standard deviation of all rewards of the iteration (n - 1); with advantage_baseline=value the
    advantages of its trained tokens get mean 0 and deviation 1 (whitening)"""
    none = "none"
    """nothing"""


class GaeSteps(Enum):
    """What a step of generalized advantage estimation is."""

    token = "token"
    """a token"""
    turn = "turn"
    """a turn of the agent, whose tokens share an advantage"""


class Preference(Enum):
    """Whether answers are compared in pairs in place of advantages, by which loss."""

    none = "none"
    """no: every answer has an advantage"""
    dpo = "dpo"
    """`-log sigmoid(beta h)`, with h how much more the best answer gained than the worst (DPO)"""
    ipo = "ipo"
    """`(h - 1 / (2 beta))^2` (IPO)"""


class AdvantageParts(Enum):
    """What is normalized of a reward of several parts."""

    sum = "sum"
    """the reward, which is their weighted sum"""
    each = "each"
    """each part within its group, all with the same weight, and then their sum over the iteration (GDPO)"""


class Credit(Enum):
    """Which reward a turn of the agent gets credit for."""

    trajectory = "trajectory"
    """the reward of the whole conversation"""
    turn = "turn"
    """the reward from this turn on"""


class KLEstimator(Enum):
    """How the KL divergence is estimated, and where it acts."""

    k1 = "k1"
    """log(p/ref), subtracted from the reward"""
    k2 = "k2"
    """half the square of k1, added to the loss"""
    k3 = "k3"
    """ref/p - 1 + k1, added to the loss"""


class Truncated(Enum):
    """What to do with an answer that hits the length limit or the turn limit."""

    keep = "keep"
    """train on it"""
    mask = "mask"
    """do not train on it; its reward still counts in the baseline"""
    penalise = "penalise"
    """subtract truncation_penalty from its reward (also accepted as `penalize`)"""
    penalize = "penalise"  # American spelling; saved as the first one, for compatibility with earlier runs


class RewardErrors(Enum):
    """What to do when a reward raises or is not finite."""

    stop = "stop"
    """end the run with the error"""
    exclude = "exclude"
    """leave the answer out of its group's baseline"""


class OnCollapse(Enum):
    """What to do when the monitor finds that the policy is collapsing."""

    warn = "warn"
    """report it"""
    stop = "stop"
    """end the run and keep its checkpoints"""
    rollback = "rollback"
    """return to an earlier checkpoint and lower the learning rate"""


class Schedule(Enum):
    """Learning-rate schedule after the warm-up."""

    constant = "constant"
    """stays constant"""
    linear = "linear"
    """falls linearly to 0"""
    cosine = "cosine"
    """falls along half a cosine to 0"""


class Device(Enum):
    """Where tensors live."""

    cpu = "cpu"
    """the processor"""
    cuda = "cuda"
    """an NVIDIA GPU"""


class Precision(Enum):
    """dtype of frozen weights and matrix products; trained weights and log-probabilities are always fp32."""

    fp32 = "fp32"
    """32 bits"""
    bf16 = "bf16"
    """16 bits, with the exponent range of fp32"""


class Optimizer(Enum):
    """Implementation of AdamW."""

    adamw = "adamw"
    """torch's"""
    adamw_8bit = "adamw_8bit"
    """bitsandbytes' AdamW with 8-bit states"""
    paged_adamw = "paged_adamw"
    """bitsandbytes' AdamW with states that move to the CPU when GPU memory is short"""
    paged_adamw_8bit = "paged_adamw_8bit"
    """both"""


class QuantType(Enum):
    """Number format of 4-bit weights."""

    nf4 = "nf4"
    """quantiles of a normal distribution (QLoRA, section 3)"""
    fp4 = "fp4"
    """small floats"""


class ExpertsImplementation(Enum):
    """How fused experts are computed."""

    eager = "eager"
    """one expert at a time"""
    grouped_mm = "grouped_mm"
    """all experts in one grouped product"""
    batched_mm = "batched_mm"
    """one batched product, which copies an expert's weights for each token"""


class Engine(Enum):
    """What generates answers."""

    transformers = "transformers"
    """the trained model itself"""
    vllm = "vllm"
    """vLLM with a copy of the weights"""


class Attention(Enum):
    """How attention is computed."""

    auto = "auto"
    """as the model's library chooses, sdpa in most"""
    sdpa = "sdpa"
    """PyTorch's fused kernels"""
    eager = "eager"
    """plain matrix products, which need more memory"""
    flash_attention_2 = "flash_attention_2"
    """the package flash-attn, on a GPU in bf16; answers then do not share their beginnings"""
    flex_attention = "flex_attention"
    """PyTorch's flex_attention, without a dense mask, for answers that share their beginnings; sdpa for all
    else; on a GPU"""


class MinibatchBy(Enum):
    """What the minibatches of an iteration are made of."""

    group = "group"
    """whole groups, which share their prompts; needs updates_per_rollout to divide the prompts"""
    answer = "answer"
    """single answers, so that a group may be split"""


class SharePrefixes(Enum):
    """Whether common beginnings of answers are computed once."""

    auto = "auto"
    """wherever the model computes the same that way"""
    off = "off"
    """each answer by itself"""


class OldLogprobs(Enum):
    """Where old log-probabilities come from."""

    auto = "auto"
    """the engine's where its noise is far below every clip band, else recomputed"""
    recompute = "recompute"
    """scored by the trainer"""
    engine = "engine"
    """as sampled, which saves a pass and adds the engine's noise to the ratio"""


class EngineCorrection(Enum):
    """Correction for an engine whose distribution differs slightly from the trainer's."""

    none = "none"
    """nothing"""
    token_truncate = "token_truncate"
    """a weight per token, min(ratio, bound)"""
    sequence_mask = "sequence_mask"
    """weight 0 for answers whose ratio is outside [1/bound, bound]"""
    token_mask = "token_mask"
    """a weight per token, its ratio within [1/bound, bound], else 0 (IcePop)"""
    sequence_truncate = "sequence_truncate"
    """a weight per answer, min(ratio, bound) of its geometric mean"""


class ToolForm(Enum):
    """How an agent writes its tool calls."""

    auto = "auto"
    """as its chat template writes them where that can be read back, else as lines"""
    template = "template"
    """as its chat template writes them"""
    line = "line"
    """as lines: `/get_order 482`"""


class AgentSchedule(Enum):
    """When the policy generates for agents that run beside it."""

    lockstep = "lockstep"
    """once every agent has asked or is over: reproducible to the bit"""
    continuous = "continuous"
    """as soon as one has asked: agents that take long hold up nobody; equal up to rounding"""


class Until(Enum):
    """Whether gspo-compare adds seeds to those it begins with."""

    none = "none"
    """no: the seeds are those of compare.seeds"""
    settled = "settled"
    """one batch after another, until the primary outcome is settled or the budget is used up"""


class Tracker(Enum):
    """Where metrics are mirrored; metrics.jsonl in the run folder is always written."""

    none = "none"
    """nowhere"""
    wandb = "wandb"
    """Weights & Biases (extra `wandb`)"""
    tensorboard = "tensorboard"
    """event files in the run folder (extra `tensorboard`)"""


class WandbMode(Enum):
    """How wandb connects."""

    online = "online"
    """to the server"""
    offline = "offline"
    """to files"""
    disabled = "disabled"
    """not at all"""
