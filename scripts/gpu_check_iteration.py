"""One iteration by the trainer's own parts on random weights, prompts and answers: how long rollout, scoring
and update take, and how much of what the device can do at most.

Useful operations are those of matrix products and of attention over unique tokens, forward and, in an update,
backward with frozen weights under LoRA; padding and what checkpointing computes again are not useful. Useful
bytes of a decoding step are the weights and the keys and values of its rows."""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import benchmark_operations
import numpy as np
import torch
from torch import Tensor

from gspo_cli.config.algorithm_schema import AlgorithmConfig
from gspo_cli.config.choices import Attention, Device, MinibatchBy, Precision, RatioLevel
from gspo_cli.config.model_schema import LevelPreset, ModelConfig, Presets, Shape
from gspo_cli.config.rollout_schema import RolloutConfig
from gspo_cli.config.schema import HardwareConfig, LoggingConfig, RunConfig
from gspo_cli.config.training_schema import TrainingConfig
from gspo_cli.policy.dimensions import dimensions
from gspo_cli.policy.embedded import build_model, train_tokenizer
from gspo_cli.policy.loading import as_policy, weights_dtype
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.prefix_tree import plant
from gspo_cli.randomness import generator
from gspo_cli.rollout.engine import Request, Sampling, generate
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.training.batch import MicroBatch, MiniBatch, Sample
from gspo_cli.training.free_memory import default_cache_gb, free_bytes
from gspo_cli.training.memory_check import fitting_tokens
from gspo_cli.training.memory_plan import memory_plan
from gspo_cli.training.sharing import Sharing, attention_share
from gspo_cli.training.update import Updater
from gspo_cli.types import FinishReason, Problem, Trajectory

ONE_TURN = SimpleNamespace(single_turn=True, runs_agent=False)
ROLLOUT, SCORE = 0.5, 0.15  # shares of a job's time; the update has the rest


@dataclass(frozen=True)
class Job:
    """A model's shape and the answers of an iteration; the settings are those of conf/ for its size."""

    shape: Shape
    vocabulary: int
    lora_r: int = 8
    checkpointing: bool = False
    prompts: int = 64
    answers: int = 8
    prompt_tokens: int = 300
    answer_tokens: int = 256
    tokens_per_microbatch: int = 16384


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most: operations per second in a large matrix product in bf16, and bytes per
    second that a large copy reads and writes; 0 where it was not measured."""

    operations: float
    bandwidth: float


def share(amount: float, seconds: float, most: float) -> float | None:
    """Of what is possible in a time."""
    return amount / (seconds * most) if seconds * most > 0 else None


@dataclass(frozen=True)
class Work:
    """Of a micro-batch: tokens of its sequences, different ones of them, pairs of these of which one sees the
    other, and those whose log-probabilities are computed."""

    tokens: int
    unique: int
    pairs: int
    targets: int

    @classmethod
    def of(cls, micro: MicroBatch) -> Work:
        """The work of a micro-batch without its padding."""
        trees = [plant([sample.ids for sample in row]) for row in micro.layout]
        targets = int(micro.action_mask.sum()) if micro.rows is None else len(micro.rows.targets)
        pairs = sum(int((tree.depths + 1).sum()) for tree in trees)
        tokens = sum(sample.length for sample in micro.samples)
        return cls(tokens, sum(len(tree.token_ids) for tree in trees), pairs, targets)


def configuration(job: Job, device: torch.device, precision: Precision, attention: Attention) -> RunConfig:
    """A run of GSPO on `job`: LoRA in bf16, all weights in fp32."""
    total = job.prompts * job.answers
    band = LevelPreset(clip_range_left=3e-4, clip_range_right=4e-4, learning_rate=1e-5)
    model = ModelConfig(
        label="check",
        name="embedded",
        shape=job.shape,
        use_lora=precision is Precision.bf16,
        lora_r=job.lora_r,
        gradient_checkpointing=job.checkpointing,
        attention=attention,
        presets=Presets(job.answers, total, sequence=band, token=replace(band, clip_range_left=0.2)),
    )
    return RunConfig(
        model=model,
        task=ONE_TURN,
        algorithm=AlgorithmConfig(
            "gspo", RatioLevel.sequence, clip_range_left=3e-4, clip_range_right=4e-4, learning_rate=1e-5
        ),
        hardware=HardwareConfig(
            device=Device(device.type),
            precision=precision,
            tokens_per_microbatch=job.tokens_per_microbatch,
        ),
        rollout=RolloutConfig(max_prompt_length=longest_prompt(job), max_completion_length=job.answer_tokens),
        logging=LoggingConfig(),
        training=TrainingConfig(
            num_generations=job.answers,
            generations_per_iteration=total,
            minibatch_by=MinibatchBy.group,
        ),
    )


def random_policy(config: RunConfig, vocabulary: int, device: torch.device) -> Policy:
    """A policy of random weights, made where they stay; the same for every configuration of one shape."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(weights_dtype(config.model, config.hardware.precision))
    try:
        with torch.device(device):
            causal = build_model(config.model.shape, vocabulary, seed=0).eval()
    finally:
        torch.set_default_dtype(before)
    return as_policy(causal, train_tokenizer(["a word"], 300), config.model, config.hardware)


def longest_prompt(job: Job) -> int:
    """Tokens of the longest prompt; the shortest is as much shorter than the mean."""
    return job.prompt_tokens + job.prompt_tokens // 10


def prompts(job: Job) -> list[list[int]]:
    """Prompts of random tokens, of lengths around the mean, which share nothing."""
    rng, spread = random.Random(0), job.prompt_tokens // 10
    lengths = [job.prompt_tokens + rng.randint(-spread, spread) for _ in range(job.prompts)]
    return [[rng.randrange(2, job.vocabulary) for _ in range(length)] for length in lengths]


def samples(job: Job, shortest: int | None = None) -> list[Sample]:
    """Answers of random tokens with random advantages, group by group, of full length or from `shortest`
    on."""
    rng, found = random.Random(1), []
    for prompt in prompts(job):
        for _ in range(job.answers):
            length = rng.randint(shortest or job.answer_tokens, job.answer_tokens)
            ids = prompt + [rng.randrange(2, job.vocabulary) for _ in range(length)]
            mask = [False] * len(prompt) + [True] * length
            turns = [-1] * len(prompt) + [0] * length
            logprobs = [0.0] * len(ids)
            trajectory = Trajectory(Problem("", ()), ids, mask, logprobs, turns, [], FinishReason.stop)
            found.append(Sample.of(trajectory, [rng.gauss(0, 1)]))
    return found


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` returns, or the error that it ends with, whose traceback is printed."""
    try:
        return measure()
    except Exception as error:  # of any kernel, compiler or allocator: what comes next still runs
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    # after the handler, because the error keeps tensors alive
    gc.collect()
    torch.cuda.empty_cache()
    return found


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Iteration:
    """The parts of an iteration of `job` on a device; `note` is told what had no time."""

    def __init__(
        self,
        job: Job,
        device: torch.device,
        ceilings: Ceilings,
        note: Callable[[str], None],
        attention: Attention = Attention.auto,
    ) -> None:
        self.job, self.device, self.ceilings, self.note = job, device, ceilings, note
        config = configuration(job, device, Precision.bf16, attention)
        self.policy = random_policy(config, job.vocabulary, device)
        shape = dimensions(self.policy.model)
        tokens = fitting_tokens(config, shape, free_bytes(device) + shape.weights)
        if tokens < config.hardware.tokens_per_microbatch:
            note(f"micro-batches of {tokens} tokens, to fit the memory that is free")
        self.config = replace(config, hardware=replace(config.hardware, tokens_per_microbatch=tokens))
        self.planned_gb = memory_plan(self.config, shape).total("update") / 1e9
        sharing = Sharing(True, attention_share=attention_share(self.policy))
        self.updater = Updater(self.policy, self.config, sharing=sharing)
        self.weight_bytes = sum(p.nbytes for p in self.policy.parameters())

    def run(self, start: float, deadline: float, with_rollout: bool = True) -> dict[str, Any]:
        """Time each part; those that do not end in time are cut, which is noted."""
        found: dict[str, Any] = {"planned_update_gb": self.planned_gb}
        seconds = deadline - start
        if with_rollout:
            found["rollout"] = attempt(lambda: self.rollout(start + ROLLOUT * seconds))
        order = generator(0, "minibatches")
        minibatches = self.updater.collator.minibatches(samples(self.job), order)
        found["warm-up"] = attempt(lambda: self._warm_up(minibatches[0]))
        end = now(self.device) + SCORE * seconds
        found["score"] = attempt(lambda: self.score(minibatches, end))
        found["update"] = attempt(lambda: self.update(minibatches, deadline))
        return found

    @torch.no_grad()
    def rollout(self, deadline: float) -> dict[str, Any]:
        """Generate all answers in full. A step in which rows join the batch is one of prefilling, all others
        are decoding."""
        job, shape = self.job, self.job.shape
        room = int(default_cache_gb(self.device, processes=1) * 2**29)  # as a run has it
        engine = TransformersEngine(self.policy, self.config.rollout.batch_size, room)
        asked = [ids for ids in prompts(job) for _ in range(job.answers)]
        sampling = Sampling(1.0, 1.0, 0, job.answer_tokens, frozenset())
        generate(engine, [Request(asked[0], 0, 0)], replace(sampling, max_new_tokens=2))
        position = 4 * shape.layers * shape.key_value_heads * shape.head_dim  # keys and values in bf16
        mean = sum(map(len, asked)) / len(asked)
        drawn = engine.sampled
        ended, rows, most, read, decoding, steps = 0, 0, 0, 0.0, 0.0, 0
        begin = last = self._reset()
        with engine.session():
            for place, ids in enumerate(asked):
                engine.submit(Request(ids, place, place), sampling, keep_cache=False)
            while ended < len(asked) and (steps == 0 or last < deadline):
                context = engine.sampled - drawn - ended * job.answer_tokens  # drawn for rows in flight
                before, sampled = rows, engine.sampled
                found = engine.step()
                after = now(self.device)
                rows = engine.sampled - sampled
                if 0 < rows <= before:
                    decoding, steps = decoding + after - last, steps + 1
                    read += self.weight_bytes + position * (rows * mean + context)
                ended, most, last = ended + len(found), max(most, rows), after
                rows -= len(found)
        if ended < len(asked):
            self.note(f"rollout cut at {ended} of {len(asked)} answers: its time was up")
        tokens, seconds = engine.sampled - drawn, last - begin
        return {
            "seconds": seconds,
            "answers": ended,
            "of": len(asked),
            "tokens_per_s": tokens / seconds,
            "rows_at_once": most,
            "decoding_s": decoding,
            "step_ms": 1e3 * decoding / max(1, steps),
            "share_of_bandwidth": share(read, decoding, self.ceilings.bandwidth),
            "peak_gb": self._peak_gb(),
        }

    @torch.no_grad()
    def score(self, minibatches: Sequence[MiniBatch], deadline: float) -> dict[str, Any]:
        """Log-probabilities of all answers, which become the old ones."""
        micros = [micro for minibatch in minibatches for micro in minibatch.micro_batches]
        begin, done = self._reset(), 0
        while done < len(micros) and (done == 0 or now(self.device) < deadline):
            micros[done].old_logprobs = self._logprobs(micros[done])
            done += 1
        seconds = now(self.device) - begin
        self._note_cut("scoring", done, len(micros))
        return self._measured(seconds, micros[:done], backward=False)

    def update(self, minibatches: Sequence[MiniBatch], deadline: float) -> dict[str, Any]:
        """Gradients and optimizer steps on all minibatches."""
        micros = [micro for minibatch in minibatches for micro in minibatch.micro_batches]
        begin, done = self._reset(), 0
        for index, minibatch in enumerate(minibatches):
            for micro in minibatch.micro_batches:
                if done and now(self.device) >= deadline:
                    break
                self._gradient(micro, minibatch, first=index == 0)
                done += 1
            else:
                self.updater.strategy.step(1e-5)
        seconds = now(self.device) - begin
        self.updater.strategy.drop_gradient()
        self._note_cut("update", done, len(micros))
        return self._measured(seconds, micros[:done], backward=True)

    def _warm_up(self, minibatch: MiniBatch) -> dict[str, Any]:
        """What is done once in a process, such as compiling, on the largest micro-batch of a minibatch."""
        begin = now(self.device)
        micro = max(minibatch.micro_batches, key=lambda each: each.computed)
        with torch.no_grad():
            self._logprobs(micro)
        self._gradient(micro, minibatch, first=True)
        self.updater.strategy.drop_gradient()
        return {"seconds": now(self.device) - begin}

    def _logprobs(self, micro: MicroBatch) -> Tensor:
        return self.policy(micro.token_ids, micro.action_mask, 1.0, rows=micro.rows)[0]

    def _gradient(self, micro: MicroBatch, minibatch: MiniBatch, first: bool) -> None:
        with self.policy.updating():
            loss, _, _ = self.updater.loss(micro, minibatch, first)
            self.updater.strategy.backward(loss)

    def _measured(self, seconds: float, micros: Sequence[MicroBatch], backward: bool) -> dict[str, Any]:
        work = [Work.of(micro) for micro in micros]
        operations = sum(self.operations(each, backward) for each in work)
        return {
            "seconds": seconds,
            "tokens_per_s": sum(each.tokens for each in work) / seconds,
            "unique_tokens_per_s": sum(each.unique for each in work) / seconds,
            "computed_tokens_per_s": sum(micro.computed for micro in micros) / seconds,
            "share_of_matmul": share(operations, seconds, self.ceilings.operations),
            "peak_gb": self._peak_gb(),
        }

    def operations(self, work: Work, backward: bool) -> int:
        """Useful operations of a forward pass, and of the backward pass after it."""
        needed = benchmark_operations.Work(work.unique, work.pairs, work.targets)
        count = (
            benchmark_operations.update_operations if backward else benchmark_operations.forward_operations
        )
        return count(dimensions(self.policy.model), needed)

    def _note_cut(self, what: str, done: int, of: int) -> None:
        if done < of:
            self.note(f"{what} cut at {done} of {of} micro-batches: its time was up")

    def _reset(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return now(self.device)

    def _peak_gb(self) -> float | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 1e9


def scored(policy: Policy, updater: Updater, given: list[Sample]) -> tuple[list[Tensor], Tensor]:
    """Log-probabilities of each sample, and the gradient of their sum weighted by advantages, as one vector
    in fp32. Raises RuntimeError if rows are to be shared and none is."""
    found: dict[int, Tensor] = {}
    micros = updater.collator.minibatch(given).micro_batches
    if updater.collator.sharing.on and all(micro.rows is None for micro in micros):
        raise RuntimeError("no row shares a beginning")
    with policy.updating():
        for micro in micros:
            logprobs, _ = policy(micro.token_ids, micro.action_mask, 1.0, rows=micro.rows)
            (logprobs * micro.advantages).sum().backward()
            for sample, row in zip(micro.samples, logprobs.detach(), strict=True):
                found[id(sample)] = row[: sample.length][np.asarray(sample.action_mask)]
    gradient = torch.cat([p.grad.float().flatten() for p in policy.trainable() if p.grad is not None])
    policy.zero_grad(set_to_none=True)
    return [found[id(sample)] for sample in given], gradient
