"""Typed configuration, free of torch: one dataclass per Hydra group, defaults here and nowhere else.

`__post_init__` checks ranges, `RunConfig.__post_init__` the rules that cross groups. The docstring under a
field is its entry in docs/configuration.md (scripts/reference.py). Every message names the
key and says what to do. Keys without a default are filled by the YAML of the chosen option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from gspo_cli.config.algorithm_schema import AlgorithmConfig
from gspo_cli.config.checks import require, require_not_negative, require_positive
from gspo_cli.config.choices import (
    AgentSchedule,
    Attention,
    Device,
    Engine,
    EngineCorrection,
    OldLogprobs,
    Optimizer,
    Precision,
    Tracker,
    WandbMode,
)
from gspo_cli.config.marks import CODE, PATH, PLAIN, SETTINGS, Marks
from gspo_cli.config.missing import MISSING
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.rollout_schema import RolloutConfig
from gspo_cli.config.sizes import fitted_lengths, known_positions
from gspo_cli.config.training_schema import CheckpointConfig, EvaluationConfig, TrainingConfig


@dataclass
class HardwareConfig:
    """Where the run executes and how much fits in memory at once."""

    TRUST: ClassVar[Marks] = {"chosen": PLAIN, "resized": PLAIN}

    chosen: str = ""
    """What `hardware=auto` chose and why, for the objective card; written by the program."""
    resized: str = ""
    """Why tokens_per_microbatch is smaller than it was asked for; written by the program."""
    device: Device = Device.cpu
    """Where tensors live."""
    precision: Precision = Precision.fp32
    """Number format of frozen weights and of matrix products; trained weights and log-probabilities stay
    fp32."""
    threads: int | None = None
    """Threads of torch, between 1 and 4096; null keeps torch's default."""
    tokens_per_microbatch: int = 8192
    """Maximum tokens in one forward and backward pass, padding included; above 0."""
    zero_stage: int = 0
    """What DeepSpeed ZeRO shards over processes - 0 nothing, 1 optimizer states, 2 gradients too, 3 weights
    too; 0 to 3."""
    offload: bool = False
    """Keeps what ZeRO shards in CPU memory - optimizer states, and weights at stage 3."""
    processes: int | None = None
    """Processes per node, each with its own GPU; null starts one per visible GPU; more than one needs ZeRO;
    above 0."""
    nodes: int = 1
    """Number of machines; more than one needs ZeRO; above 0."""

    def __post_init__(self) -> None:
        require_positive("hardware", self, "tokens_per_microbatch", "nodes")
        require(
            self.zero_stage in (0, 1, 2, 3),
            f"hardware.zero_stage={self.zero_stage}: must be 0, 1, 2 or 3; give 0 for a single process",
        )
        require(
            self.processes is None or self.processes > 0,
            f"hardware.processes={self.processes}: must be above 0; give null for one per visible GPU",
        )
        many = self.nodes > 1 or (self.processes or 1) > 1
        group = "multi_node" if self.nodes > 1 else "zero2"
        on_cpu = " hardware.device=cpu" if self.device is Device.cpu else ""
        require(
            not many or self.zero_stage > 0,
            "hardware.processes, nodes: more than one process needs hardware.zero_stage above 0; use "
            f"hardware={group}{on_cpu}",
        )
        require(
            not self.offload or self.zero_stage > 0,
            "hardware.offload=true: is part of ZeRO; use hardware=zero3_offload"
            + (", or hardware.offload=false on a CPU" if on_cpu else ""),
        )
        require(
            self.threads is None or 0 < self.threads <= 4096,
            f"hardware.threads={self.threads}: must be between 1 and 4096; give null for torch's default",
        )

    def to_one_process(self) -> str:
        """The settings that change this hardware to one process without ZeRO, as they are typed."""
        return " ".join(
            [
                "hardware.zero_stage=0",
                *(["hardware.processes=null"] if (self.processes or 1) > 1 else []),
                *(["hardware.nodes=1"] if self.nodes > 1 else []),
                *(["hardware.offload=false"] if self.offload else []),
            ]
        )


@dataclass
class LoggingConfig:
    """Where metrics are mirrored and what the terminal shows."""

    TRUST: ClassVar[Marks] = {"run_name": PLAIN, "wandb_project": PLAIN, "wandb_tags": PLAIN}

    report_to: Tracker = Tracker.none
    """Where metrics are mirrored; metrics.jsonl in the run folder is always written."""
    run_name: str | None = None
    """Name of the run in wandb; null lets wandb choose."""
    wandb_project: str = "gspo-cli"
    """Project in wandb."""
    wandb_tags: list[str] = field(default_factory=list)
    """Tags of the run in wandb."""
    wandb_mode: WandbMode = WandbMode.online
    """How wandb connects."""
    samples_per_iteration: int = 2
    """Conversations shown in the terminal and kept in samples.jsonl after each iteration; 0 or more."""

    def __post_init__(self) -> None:
        require_not_negative("logging", self, "samples_per_iteration")


@dataclass
class RunSettings:
    """The settings of a run by group, each group checked on its own. `notes` come first, and so do
    `hardware.chosen` and `rollout.default_lengths`: where a configuration is resolved in place, they are
    resolved before the settings that they are about."""

    TRUST: ClassVar[Marks] = {"notes": PLAIN, "reward": CODE, "reward_settings": SETTINGS, "resume": PATH}

    notes: list[str] = field(default_factory=list)
    """Which defaults were adjusted to fit the other settings, in sentences for the objective card; written by
    the program."""
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
    """Dotted path of a RewardFunction, such as my_rewards.Polite; null uses the task's own reward."""
    reward_settings: Any = None
    """Arguments of that RewardFunction by name; only used with `reward`."""
    seed: int = 0
    """Seed of problem order, sampling and minibatches, but not of the model before training; 0 or more."""
    resume: str | None = None
    """Run folder to resume, from its last checkpoint."""

    @property
    def measures_kl(self) -> bool:
        """Whether evaluations measure the KL divergence from the model before training, which a reference
        that is refreshed no longer is."""
        if self.algorithm.reference_refresh is not None:
            return False
        cheap = self.model.use_lora or self.model.is_embedded
        return self.evaluation.samples > 0 and (cheap if self.evaluation.kl is None else self.evaluation.kl)

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen copy of the model before training is kept; under LoRA none is needed."""
        return (self.algorithm.beta > 0 or self.measures_kl) and not self.model.use_lora


@dataclass
class RunConfig(RunSettings):
    """Everything one run is made of, with the rules that cross groups. `task` is the object that
    `task._target_` names, built and checked."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed={self.seed}: must be 0 or more, and below 2**63; give 0")
        require(
            self.reward_settings is None or isinstance(self.reward_settings, dict),
            f"reward_settings={self.reward_settings}: must be a mapping of arguments; write {{name: value}}",
        )
        require(
            self.reward is not None or not self.reward_settings,
            "reward_settings: only applies with reward=<dotted path>; set reward, or leave "
            "reward_settings out",
        )
        self._check_group()
        self._check_sizes()
        self._check_distribution()
        self._check_engine()
        require(
            self.model.attention is not Attention.flex_attention or self.hardware.device is not Device.cpu,
            "model.attention=flex_attention: has no backward pass on a CPU; use model.attention=auto, or "
            "hardware.device=cuda",
        )
        positions = known_positions(self.model.base or self.model.name, self.model.shape.positions)
        if positions is not None:
            self.check_lengths(positions)
        start, longest = self.training.length_curriculum_start, self.rollout.max_completion_length
        require(
            start is None or start <= longest,
            f"training.length_curriculum_start={start}: must not exceed rollout.max_completion_length="
            f"{longest}; use training.length_curriculum_start={max(1, longest // 2)}",
        )

    def check_task(self) -> None:
        """Raise UserError where the task, which is built last, does not suit the other groups."""
        together = getattr(self.task, "schedule", None) is not AgentSchedule.continuous
        require(
            together or self.rollout.engine is not Engine.vllm,
            "task.schedule=continuous: vLLM draws for all that have asked at once; use "
            "task.schedule=lockstep, or rollout=transformers",
        )
        start = self.training.difficulty_curriculum_start
        require(
            start is None or self.algorithm.pairs is None,
            f"training.difficulty_curriculum_start={start}: with algorithm.pairs no problem of the task is "
            "trained on; use training.difficulty_curriculum_start=null",
        )
        if start is not None:
            self.task.levels(start)
        require(
            start is None or self.evaluation.every > 0,
            f"training.difficulty_curriculum_start={start}: held-out evaluations raise the level, and "
            "evaluation.every=0 has none during training; use evaluation.every=5",
        )

    def _check_group(self) -> None:
        total = self.training.generations_per_iteration
        least = next((n for n in range(2, total + 1) if total % n == 0), 2)
        require(
            self.training.num_generations >= 2 or self.algorithm.has_critic,
            "training.num_generations=1: an advantage compares an answer with the other answers to its "
            f"prompt; use training.num_generations={least} or more, or algorithm=ppo",
        )
        prompts, updates = self.training.prompts_per_iteration, self.training.updates_per_rollout
        require(
            not self.algorithm.in_pairs or prompts >= updates,
            f"training.updates_per_rollout={updates}: a pair is of one prompt, and an iteration has "
            f"{prompts}; use training.updates_per_rollout={max(1, prompts)}, or more "
            "training.generations_per_iteration",
        )
        self._check_early_end()
        if self.algorithm.pairs is not None:
            self._check_pairs()

    def _check_early_end(self) -> None:
        target = self.training.target_kl
        require(
            target is None or not self.algorithm.in_pairs,
            f"training.target_kl={target}: algorithm.preference={self.algorithm.preference.value} has no old "
            "policy; use training.target_kl=null",
        )
        require(
            target is None or self.training.updates_per_iteration > 1,
            f"training.target_kl={target}: ends the updates of an iteration early, and there is one; use "
            "training.target_kl=null, or more training.updates_per_rollout",
        )

    def _check_pairs(self) -> None:
        training = self.training
        require(
            training.num_generations == 2,
            f"training.num_generations={training.num_generations}: a pair of algorithm.pairs has two "
            "answers; use training.num_generations=2",
        )
        require(
            training.length_curriculum_start is None,
            f"training.length_curriculum_start={training.length_curriculum_start}: limits answers that are "
            "sampled, and algorithm.pairs has its own; use training.length_curriculum_start=null",
        )

    def _check_sizes(self) -> None:
        sizes, hardware = self.training.sizes, self.hardware
        processes = (hardware.processes or 1) * hardware.nodes
        if sizes.fit(processes):
            return
        many = f", with a prompt for each of {processes} processes" if processes > 1 else ""
        require(
            sizes.fit(1),
            f"training.generations_per_iteration={sizes.generations_per_iteration}: must be a multiple of "
            f"training.num_generations={sizes.num_generations} and of training.updates_per_rollout="
            f"{sizes.updates_per_rollout}{many}; use training.generations_per_iteration="
            f"{sizes.nearest_total(processes)}",
        )
        self.check_processes(hardware.processes or 1)

    def check_lengths(self, positions: int) -> None:
        """Raise UserError if the longest prompt and answer do not fit a model with this many positions."""
        rollout, start = self.rollout, self.training.length_curriculum_start
        lengths = rollout.max_prompt_length, rollout.max_completion_length
        prompt, answer = fitted_lengths(lengths, positions)
        require(
            sum(lengths) <= positions,
            f"rollout.max_prompt_length={lengths[0]} and rollout.max_completion_length={lengths[1]}: exceed "
            f"the model's {positions:,} positions; use rollout.max_prompt_length={prompt} "
            f"rollout.max_completion_length={answer}"
            + (f" training.length_curriculum_start={answer}" if start is not None and start > answer else ""),
        )

    def _check_distribution(self) -> None:
        stage, optimizer = self.hardware.zero_stage, self.training.optimizer
        require(
            stage < 3 or not self.model.is_quantized,
            "model.use_4bit, use_8bit: ZeRO-3 cannot shard quantized weights; use hardware=zero2, or turn "
            "quantization off",
        )
        refresh = self.algorithm.reference_refresh
        require(
            refresh is None or stage < 3,
            f"algorithm.reference_refresh={refresh}: is not supported under ZeRO-3, which shards weights; "
            "use hardware=zero2, or algorithm.reference_refresh=null",
        )
        require(
            refresh is None or not self.evaluation.kl,
            "evaluation.kl=true: measures the distance from the model before training, of which "
            f"algorithm.reference_refresh={refresh} keeps no copy; use evaluation.kl=null",
        )
        require(
            stage == 0 or optimizer is Optimizer.adamw,
            f"training.optimizer={optimizer.value}: ZeRO supports adamw only; use "
            f"training.optimizer=adamw, or {self.hardware.to_one_process()}",
        )
        require(
            self.hardware.device is not Device.cpu or not optimizer.value.startswith("paged"),
            f"training.optimizer={optimizer.value}: needs a GPU; on a CPU use training.optimizer="
            f"{optimizer.value.removeprefix('paged_')}",
        )

    def _check_engine(self) -> None:
        correction = self.algorithm.engine_correction
        require(
            correction is EngineCorrection.none or self.rollout.old_logprobs is not OldLogprobs.engine,
            f"algorithm.engine_correction={correction.value}: compares recomputed log-probabilities with the "
            "engine's; set rollout.old_logprobs=recompute, or algorithm.engine_correction=none",
        )
        engine = self.rollout.old_logprobs is OldLogprobs.engine and not self.rollout.old_logprobs_chosen
        require(
            not (engine and self.algorithm.in_pairs),
            f"rollout.old_logprobs=engine: algorithm.preference={self.algorithm.preference.value} has no old "
            "policy; use rollout.old_logprobs=auto",
        )
        require(
            not self.algorithm.routing_replay or self.rollout.old_logprobs is not OldLogprobs.engine,
            "algorithm.routing_replay=true: experts are recorded when old log-probabilities are "
            "recomputed; set rollout.old_logprobs=recompute",
        )
        if self.rollout.engine is Engine.vllm:
            require(
                self.hardware.zero_stage == 0,
                f"rollout.engine=vllm: runs in one process; set {self.hardware.to_one_process()}, or use "
                "rollout=transformers",
            )
            require(
                not self.model.is_quantized,
                f"rollout.engine=vllm: an adapter over quantized weights cannot be pushed to vLLM; set model."
                f"{self.model.quantized_by}=false, or use rollout=transformers",
            )

    def check_processes(self, processes: int) -> None:
        """Raise UserError if there are more processes (`processes` on each node) than prompts."""
        everywhere, prompts = processes * self.hardware.nodes, self.training.prompts_per_iteration
        most, more = prompts // self.hardware.nodes, self.training.sizes.nearest_total(everywhere)
        fewer = f"hardware.processes={most}" if most else f"training.generations_per_iteration={more}"
        require(
            everywhere <= prompts,
            f"hardware.processes={processes}: there are {everywhere} processes for the {prompts} "
            f"prompts of an iteration, and all answers to a prompt run in one process; use {fewer}",
        )

    def max_completion_length(self, iteration: int) -> int:
        """Length cap of an answer's turn at `iteration`: constant, or rising linearly along the
        curriculum."""
        start, longest = self.training.length_curriculum_start, self.rollout.max_completion_length
        if start is None:
            return longest
        progress = min(1.0, iteration / self.training.length_curriculum_iterations)
        return round(start + (longest - start) * progress)
