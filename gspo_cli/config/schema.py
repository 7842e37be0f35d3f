"""Typed configuration, free of torch: one dataclass per Hydra group, defaults here and nowhere else.

`__post_init__` checks ranges, `RunConfig.__post_init__` the rules that cross groups. Every message names the
key and says what to do. Keys without a default are filled by the YAML of the chosen option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from gspo_cli.config.algorithm_schema import AlgorithmConfig
from gspo_cli.config.checks import require, require_fraction, require_not_negative, require_positive
from gspo_cli.config.choices import (
    Device,
    Engine,
    EngineCorrection,
    OldLogprobs,
    OnCollapse,
    Optimizer,
    Precision,
    RewardErrors,
    Schedule,
    Tracker,
    WandbMode,
)
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.rollout_schema import RolloutConfig


@dataclass
class TrainingConfig:
    """The loop: how much is sampled, how it is split into updates, and the optimizer. `on_collapse=rollback`
    returns at most `max_rollbacks` times to an earlier checkpoint, the learning rate each time multiplied by
    `rollback_learning_rate`; after that a collapse stops the run."""

    num_outer_iterations: int = 100
    num_generations: int = MISSING
    generations_per_iteration: int = MISSING
    updates_per_rollout: int = 4
    schedule: Schedule = Schedule.constant
    warmup_iterations: int = 0
    optimizer: Optimizer = Optimizer.adamw
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    length_curriculum_start: int | None = None
    length_curriculum_iterations: int = 50
    reward_errors: RewardErrors = RewardErrors.stop
    reward_concurrency: int = 16
    reward_timeout: float = 60.0
    on_collapse: OnCollapse = OnCollapse.warn
    rollback_learning_rate: float = 0.5
    max_rollbacks: int = 2

    def __post_init__(self) -> None:
        group, generations, answers = "training", self.generations_per_iteration, self.num_generations
        require_positive(group, self, "num_outer_iterations", "num_generations", "generations_per_iteration")
        require_positive(group, self, "updates_per_rollout", "max_grad_norm", "length_curriculum_iterations")
        require_positive(group, self, "reward_concurrency", "reward_timeout")
        require_not_negative(group, self, "warmup_iterations", "weight_decay", "max_rollbacks")
        require(
            0 < self.rollback_learning_rate <= 1,
            f"training.rollback_learning_rate={self.rollback_learning_rate}: multiplies the learning rate "
            "after a rollback; must be above 0 and at most 1",
        )
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"training.{name}={value}: must be 0 or more, and below 1")
        require(
            answers >= 2,
            "training.num_generations=1: an answer is judged against the other answers to its prompt; "
            "use 2 or more",
        )
        require(
            generations % answers == 0,
            f"training.generations_per_iteration={generations}: must be a multiple of "
            "training.num_generations="
            f"{answers}; try {max(1, round(generations / answers)) * answers}",
        )
        divisors = [str(n) for n in range(1, 17) if generations % n == 0]
        require(
            generations % self.updates_per_rollout == 0,
            f"training.updates_per_rollout={self.updates_per_rollout}: must divide training."
            f"generations_per_iteration={generations}; try one of {', '.join(divisors)}",
        )
        require(
            self.length_curriculum_start is None or self.length_curriculum_start > 0,
            "training.length_curriculum_start: must be above 0, or null for no curriculum",
        )

    @property
    def prompts_per_iteration(self) -> int:
        """Problems drawn per iteration."""
        return self.generations_per_iteration // self.num_generations

    @property
    def answers_per_update(self) -> int:
        """Sequences in each minibatch."""
        return self.generations_per_iteration // self.updates_per_rollout


@dataclass
class HardwareConfig:
    """Where it runs and how much fits at once. `zero_stage` above 0 divides training over `processes` (null:
    one for each visible GPU) on each of `nodes`, by DeepSpeed ZeRO: optimizer states (1), gradients too (2),
    weights too (3); `offload` keeps what is divided in the memory of the CPU."""

    device: Device = Device.cpu
    precision: Precision = Precision.fp32
    threads: int | None = None
    tokens_per_microbatch: int = 8192
    zero_stage: int = 0
    offload: bool = False
    processes: int | None = None
    nodes: int = 1

    def __post_init__(self) -> None:
        require_positive("hardware", self, "tokens_per_microbatch", "nodes")
        require(
            self.zero_stage in (0, 1, 2, 3), f"hardware.zero_stage={self.zero_stage}: must be 0, 1, 2 or 3"
        )
        require(
            self.processes is None or self.processes > 0,
            f"hardware.processes={self.processes}: must be above 0, or null for one per visible GPU",
        )
        many = self.nodes > 1 or (self.processes or 1) > 1
        require(
            not many or self.zero_stage > 0,
            "hardware.processes, nodes: more than one process needs hardware.zero_stage above 0; use "
            "hardware=zero2",
        )
        require(
            not self.offload or self.zero_stage > 0,
            "hardware.offload=true: is part of ZeRO; set hardware.zero_stage to 1, 2 or 3",
        )
        require(
            self.threads is None or 0 < self.threads <= 4096,
            f"hardware.threads={self.threads}: must lie between 1 and 4096, or be null for torch's default",
        )


@dataclass
class EvaluationConfig:
    """Held-out evaluation, on the same problems each time: one greedy answer, and `samples` answers for
    pass@k. `kl` measures how far the policy is from the model before training, on these samples; null does
    where that takes no second copy of large weights (LoRA, embedded models)."""

    every: int = 10
    problems: int = 200
    samples: int = 4
    kl: bool | None = None
    stop_at_score: float | None = None

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
    """Checkpoints: every so many iterations, the newest `keep` stay, and the best by held-out score."""

    every: int = 10
    keep: int = 2
    save_best: bool = True

    def __post_init__(self) -> None:
        require_positive("checkpoint", self, "every", "keep")


@dataclass
class LoggingConfig:
    """Where metrics are mirrored and what the terminal shows."""

    report_to: Tracker = Tracker.none
    run_name: str | None = None
    wandb_project: str = "gspo-cli"
    wandb_tags: list[str] = field(default_factory=list)
    wandb_mode: WandbMode = WandbMode.online
    samples_per_iteration: int = 2

    def __post_init__(self) -> None:
        require_not_negative("logging", self, "samples_per_iteration")


@dataclass
class RunSettings:
    """The settings of a run by group, each group checked on its own."""

    model: ModelConfig = MISSING
    task: Any = MISSING
    algorithm: AlgorithmConfig = MISSING
    hardware: HardwareConfig = MISSING
    rollout: RolloutConfig = MISSING
    logging: LoggingConfig = MISSING
    training: TrainingConfig = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    reward: str | None = None
    reward_settings: Any = None
    seed: int = 0
    resume: str | None = None

    @property
    def measures_kl(self) -> bool:
        """Whether evaluations measure the KL divergence from the model before training."""
        cheap = self.model.use_lora or self.model.is_embedded
        return self.evaluation.samples > 0 and (cheap if self.evaluation.kl is None else self.evaluation.kl)

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen copy of the model before training is held; under LoRA none is needed."""
        return (self.algorithm.beta > 0 or self.measures_kl) and not self.model.use_lora


@dataclass
class RunConfig(RunSettings):
    """Everything one run is made of, with the rules that cross groups. `task` is the object that
    `task._target_` names, built and checked."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed={self.seed}: must be 0 or more")
        require(
            self.reward_settings is None or isinstance(self.reward_settings, dict),
            f"reward_settings={self.reward_settings}: must be settings by name; write {{name: value}}",
        )
        require(
            self.reward is not None or not self.reward_settings,
            "reward_settings: is read with reward=<dotted path> only; name the reward, or leave it out",
        )
        self._check_distribution()
        self._check_engine()
        start, longest = self.training.length_curriculum_start, self.rollout.max_completion_length
        require(
            start is None or start <= longest,
            f"training.length_curriculum_start={start}: must not exceed "
            f"rollout.max_completion_length={longest}",
        )
        require(
            not self.model.is_embedded
            or self.rollout.max_prompt_length + longest <= self.model.shape.positions,
            f"rollout.max_prompt_length + max_completion_length: exceed model.shape.positions="
            f"{self.model.shape.positions}; lower them",
        )

    def _check_distribution(self) -> None:
        stage, optimizer = self.hardware.zero_stage, self.training.optimizer
        require(
            stage < 3 or not self.model.is_quantised,
            "model.use_4bit, use_8bit: ZeRO-3 cannot divide quantised weights; use hardware=zero2, or leave "
            "the model whole",
        )
        require(
            stage == 0 or optimizer is Optimizer.adamw,
            f"training.optimizer={optimizer.value}: ZeRO divides the states of adamw only; use that, or "
            "hardware.zero_stage=0",
        )
        require(
            self.hardware.device is not Device.cpu or not optimizer.value.startswith("paged"),
            f"training.optimizer={optimizer.value}: pages between a GPU and the CPU; on a CPU use "
            f"{optimizer.value.removeprefix('paged_')}",
        )
        if self.hardware.processes is not None:
            self.check_processes(self.hardware.processes)

    def _check_engine(self) -> None:
        correction = self.algorithm.engine_correction
        require(
            correction is EngineCorrection.none or self.rollout.old_logprobs is OldLogprobs.recompute,
            f"algorithm.engine_correction={correction.value}: compares recomputed log-probabilities with the "
            "engine's; set rollout.old_logprobs=recompute, or algorithm.engine_correction=none",
        )
        require(
            not self.algorithm.routing_replay or self.rollout.old_logprobs is OldLogprobs.recompute,
            "algorithm.routing_replay=true: experts are recorded as old log-probabilities are recomputed; "
            "set rollout.old_logprobs=recompute",
        )
        if self.rollout.engine is Engine.vllm:
            require(
                self.hardware.zero_stage == 0,
                "rollout.engine=vllm: runs in one process; set hardware.zero_stage=0, or use "
                "rollout=transformers",
            )
            require(
                not self.model.is_quantised,
                f"rollout.engine=vllm: an adapter over quantised weights cannot be pushed; set model."
                f"{self.model.quantised_by}=false, or use rollout=transformers",
            )

    def check_processes(self, processes: int) -> None:
        """Raise UserError where `processes` on each node are more than there are prompts to divide."""
        everywhere, prompts = processes * self.hardware.nodes, self.training.prompts_per_iteration
        require(
            everywhere <= prompts,
            f"hardware.processes={processes}: {everywhere} processes are more than the {prompts} prompts of "
            "an iteration, and the answers to a prompt stay together; use fewer, or raise "
            "training.generations_per_iteration",
        )

    def max_completion_length(self, iteration: int) -> int:
        """Length cap of an answer's turn at `iteration`: constant, or rising linearly along the
        curriculum."""
        start, longest = self.training.length_curriculum_start, self.rollout.max_completion_length
        if start is None:
            return longest
        progress = min(1.0, iteration / self.training.length_curriculum_iterations)
        return round(start + (longest - start) * progress)
