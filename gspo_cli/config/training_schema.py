"""Typed configuration of the groups `training`, `evaluation` and `checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass

from gspo_cli.config.checks import require, require_fraction, require_not_negative, require_positive
from gspo_cli.config.choices import (
    MinibatchBy,
    OnCollapse,
    Optimizer,
    RewardErrors,
    Schedule,
    SharePrefixes,
)
from gspo_cli.config.missing import MISSING
from gspo_cli.config.sizes import Sizes

FARTHEST = 1e3  # nats per token


@dataclass
class TrainingConfig:
    """The loop: how much is sampled, how it is split into updates, and the optimizer."""

    num_outer_iterations: int = 100
    """Iterations of sampling, scoring and updating; above 0."""
    num_generations: int = MISSING
    """Answers per prompt, which form the group of an advantage; at least 2, with a value head 1. The default
    is the model's, or what is nearest and divides a given generations_per_iteration."""
    generations_per_iteration: int = MISSING
    """Answers sampled in an iteration, a multiple of num_generations and of updates_per_rollout; above 0. The
    default is the model's, or the nearest such multiple."""
    updates_per_rollout: int = 4
    """Optimizer steps per iteration, each on its own minibatch of the answers; divides
    generations_per_iteration; above 0. The default is the model's, or what is nearest and divides a given
    generations_per_iteration."""
    passes: int = 1
    """Passes over the answers of an iteration, each of updates_per_rollout steps on the same minibatches;
    above 0. From the second on every minibatch has ratios other than 1."""
    target_kl: float | None = None
    """Ends an iteration's updates after the first whose minibatch is this far from the old policy, in nats
    per trained token (logged as approx_kl_last); above 0; null makes all updates."""
    minibatch_by: MinibatchBy = MinibatchBy.answer
    """What a minibatch is made of. The default is `group` where updates_per_rollout divides the prompts of an
    iteration, else `answer`."""
    share_prefixes: SharePrefixes = SharePrefixes.auto
    """Computes what answers have in common (system prompt, tools, question, equal turns) once, in scoring and
    in updates."""
    schedule: Schedule = Schedule.constant
    """Learning rate after the warm-up."""
    warmup_iterations: int = 0
    """Iterations over which the learning rate rises from near 0; 0 or more."""
    optimizer: Optimizer = Optimizer.adamw
    """Implementation of AdamW; ZeRO supports `adamw` only."""
    max_grad_norm: float = 1.0
    """Maximum gradient norm; larger gradients are scaled down to it; above 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW; 0 or more."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean of gradients; 0 or more, and below 1."""
    adam_beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients; 0 or more, and below 1."""
    length_curriculum_start: int | None = None
    """Length limit of the first iteration, which rises to rollout.max_completion_length; above 0; null for no
    curriculum."""
    length_curriculum_iterations: int = 50
    """Iterations over which the length limit rises; above 0."""
    difficulty_curriculum_start: int | None = None
    """Value of the task's difficulty setting at which training begins, such as task.difficulty or
    task.digits; it rises by 1, up to the task's own; null for no curriculum."""
    difficulty_curriculum_raise_at: float = 0.7
    """Score on held-out problems of the present level from which on the next one is trained on; at most 1,
    and above 0."""
    reward_errors: RewardErrors = RewardErrors.stop
    """What to do when a reward raises or is not finite."""
    reward_concurrency: int = 16
    """Maximum number of asynchronous rewards at once; above 0."""
    reward_timeout: float = 60.0
    """Time limit of an asynchronous or isolated reward, in seconds for each conversation; above 0."""
    isolate_reward: bool = False
    """Whether the reward runs in a process of its own, which is ended where it takes too long or dies."""
    on_collapse: OnCollapse = OnCollapse.warn
    """What to do when the monitor finds that the policy is collapsing."""
    rollback_learning_rate: float = 0.5
    """Factor applied to the learning rate after each rollback; at most 1, and above 0."""
    max_rollbacks: int = 2
    """Maximum number of rollbacks; the next collapse stops the run; 0 or more."""

    def __post_init__(self) -> None:
        group = "training"
        require_positive(group, self, "num_outer_iterations", "num_generations", "generations_per_iteration")
        require_positive(group, self, "updates_per_rollout", "passes")
        require_positive(group, self, "max_grad_norm", "length_curriculum_iterations")
        require_positive(group, self, "reward_concurrency", "reward_timeout")
        require_not_negative(group, self, "warmup_iterations", "weight_decay", "max_rollbacks")
        require(
            0 < self.rollback_learning_rate <= 1,
            f"training.rollback_learning_rate={self.rollback_learning_rate}: multiplies the learning rate "
            "after a rollback and must be above 0 and at most 1; give 0.5",
        )
        require(
            self.target_kl is None or 0 < self.target_kl <= FARTHEST,
            f"training.target_kl={self.target_kl}: is a KL divergence in nats and must be above 0 and at "
            f"most {FARTHEST:g}; give a value such as 0.01, or null to make all updates",
        )
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"training.{name}={value}: must be 0 or more, and below 1; give 0.9")
        require(
            self.minibatch_by is MinibatchBy.answer
            or self.prompts_per_iteration % self.updates_per_rollout == 0,
            f"training.minibatch_by=group: training.updates_per_rollout={self.updates_per_rollout} does not "
            f"divide the {self.prompts_per_iteration} prompts of an iteration; use "
            "training.minibatch_by=answer, or a number of updates that does",
        )
        require(
            self.length_curriculum_start is None or self.length_curriculum_start > 0,
            "training.length_curriculum_start: must be above 0; give null for no curriculum",
        )
        require(
            0 < self.difficulty_curriculum_raise_at <= 1,
            f"training.difficulty_curriculum_raise_at={self.difficulty_curriculum_raise_at}: is a held-out "
            "score and must be above 0 and at most 1; give 0.7",
        )

    @property
    def sizes(self) -> Sizes:
        """The sizes of an iteration that depend on each other."""
        return Sizes(self.num_generations, self.generations_per_iteration, self.updates_per_rollout)

    @property
    def prompts_per_iteration(self) -> int:
        """Problems drawn per iteration."""
        return self.generations_per_iteration // self.num_generations

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps per iteration, in all passes."""
        return self.updates_per_rollout * self.passes

    @property
    def answers_per_update(self) -> int:
        """Sequences in each minibatch."""
        return self.generations_per_iteration // self.updates_per_rollout


@dataclass
class EvaluationConfig:
    """Held-out evaluation, on the same problems each time: one greedy answer, and `samples` answers for
    pass@k."""

    every: int = 10
    """Iterations between held-out evaluations; 0 evaluates only before and after training; 0 or more."""
    problems: int = 200
    """Number of held-out problems, the first ones of the task; above 0."""
    samples: int = 4
    """Sampled answers per problem for pass@k, besides the greedy one; 0 or more."""
    kl: bool | None = None
    """Measures the KL divergence from the model before training on the sampled answers; null measures it only
    under LoRA and for embedded models, where no second copy of large weights is needed."""
    stop_at_score: float | None = None
    """Ends training once the held-out score reaches this value, between 0 and 1; null disables it."""

    def __post_init__(self) -> None:
        require_not_negative("evaluation", self, "every", "samples")
        require_positive("evaluation", self, "problems")
        require(
            not self.kl or self.samples > 0,
            "evaluation.kl=true: is measured on sampled answers; set evaluation.samples above 0",
        )
        if self.stop_at_score is not None:
            require_fraction("evaluation", self, "stop_at_score")


@dataclass
class CheckpointConfig:
    """Checkpoints at regular intervals; the newest are kept, and the best by held-out score."""

    every: int = 10
    """Iterations between checkpoints; above 0."""
    keep: int = 2
    """Number of newest checkpoints to keep, besides the best; above 0."""
    save_best: bool = True
    """Keeps the checkpoint with the best held-out score as `best`."""

    def __post_init__(self) -> None:
        require_positive("checkpoint", self, "every", "keep")
