"""One point of benchmark_growth.py: time and memory of scoring and of an update on one group.

By the trainer's own collator, policy and objective, without the optimizer's step. Linux only."""

from __future__ import annotations

import ctypes
import gc
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmark_memory import forget_peak, resident

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt

Result = dict[str, float]
Around = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Point:
    """A group: tokens of the common prompt, answers, tokens of each answer, vocabulary of the model, and
    whether beginnings are shared."""

    prompt: int
    group: int
    answer: int
    vocabulary: int
    share: bool


@dataclass(frozen=True)
class Setup:
    """How a point is measured: threads, timed passes, whether all weights are trained or LoRA's, further
    overrides of the configuration, and the rows of the matrices whose product gives the matrix rate.
    `alone`: this process serves nothing else, so that settings of its allocator may change."""

    threads: int
    repeats: int
    full: bool
    overrides: Sequence[str]
    matrix_size: int
    alone: bool = True


def measure(folder: Path, point: Point, setup: Setup) -> Result:
    """Tokens, seconds, bytes and useful operations of scoring and of an update, with the model in `folder`.

    A small group warms up, a first pass measures memory, and `repeats` passes give the median time. The
    matrix rate is measured before and after them."""
    import torch
    from benchmark_operations import Work, forward_operations, matrix_rate, update_operations

    from gspo_cli.config.compose import register
    from gspo_cli.policy.dimensions import dimensions
    from gspo_cli.training.metrics import Clock

    torch.set_num_threads(setup.threads)
    register()
    updater = updater_of(configuration(folder, point, setup), point)
    one_group(updater, group_of(replace(point, prompt=8, group=2, answer=4)), Clock().timing)
    samples, peaks = group_of(point), Result()
    computed = one_group(updater, samples, peaks_above(resident_now(), peaks))
    if setup.alone:
        keep_freed_memory()
    rates, clocks = [matrix_rate(setup.matrix_size)], [Clock() for _ in range(setup.repeats)]
    for clock in clocks:
        one_group(updater, samples, clock.timing)
    rates.append(matrix_rate(setup.matrix_size))
    model = dimensions(updater.policy.model)
    work = Work.of([(sample.token_ids, sample.action_mask) for sample in samples])
    return {
        "unique_tokens": work.tokens,
        "computed_tokens": computed,
        "score_seconds": median(clock.seconds["score"] for clock in clocks),
        "update_seconds": median(clock.seconds["layout"] + clock.seconds["update"] for clock in clocks),
        "score_bytes": peaks["score"],
        "update_bytes": peaks["update"],
        "score_operations": forward_operations(model, work),
        "update_operations": update_operations(model, work),
        "matrix_rate": median(rates),
    }


def one_group(updater: Any, samples: Sequence[Any], around: Around) -> int:
    """Lay out, score and update on one group, each inside `around(part)`. -> tokens that a pass computes,
    padding included"""
    import torch

    temperature = updater.config.rollout.temperature
    with around("layout"):
        minibatch = updater.collator.minibatch(samples)
    with around("score"), torch.no_grad():
        for micro in minibatch.micro_batches:
            scored = (micro.token_ids, micro.action_mask, temperature)
            micro.old_logprobs = updater.strategy.forward(*scored, rows=micro.rows)[0]
    with around("update"), updater.policy.updating():
        for micro in minibatch.micro_batches:
            loss, *_ = updater.loss(micro, minibatch)
            updater.strategy.backward(loss)
    updater.strategy.drop_gradient()
    return sum(micro.computed for micro in minibatch.micro_batches)


def configuration(folder: Path, point: Point, setup: Setup) -> Any:
    """The shipped configuration, for one update on one group."""
    from hydra import compose, initialize_config_dir

    from gspo_cli.config.compose import CONF_DIR, build_config

    overrides = [
        "model=smollm2",
        "hardware=cpu",
        "task=arithmetic",  # its problems are not used
        f"model.name={folder}",
        f"model.use_lora={not setup.full}",
        f"rollout.max_prompt_length={point.prompt}",
        f"rollout.max_completion_length={point.answer}",
        f"training.num_generations={point.group}",
        f"training.generations_per_iteration={point.group}",
        "training.updates_per_rollout=1",
        f"training.share_prefixes={'auto' if point.share else 'off'}",
        *setup.overrides,
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return build_config(compose("train", overrides=overrides))


def updater_of(config: Any, point: Point) -> Any:
    """The updater of a run. Exits with the reason where beginnings are not shared though they should be."""
    from gspo_cli.policy.loading import load_policy
    from gspo_cli.training.sharing import sharing
    from gspo_cli.training.strategy import OneProcess
    from gspo_cli.training.update import Updater

    policy = load_policy(config.model.name, config.model, config.hardware)
    for parameter in policy.parameters():  # pages of a mapped file are resident only once they are read
        parameter.data = parameter.data.clone()
    strategy = OneProcess(policy, config)
    shared = sharing(config, policy, strategy)
    if shared.on != point.share:
        sys.exit(f"beginnings are not shared: {shared.reason}")
    return Updater(policy, config, strategy, shared)


def group_of(point: Point) -> list[Any]:
    """Answers of random tokens to one prompt of random tokens, with random advantages."""
    from gspo_cli.training.batch import Sample
    from gspo_cli.types import FinishReason, Problem, Trajectory

    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(point.vocabulary) for _ in range(count)]

    prompt, length = tokens(point.prompt), point.prompt + point.answer
    mask = [False] * point.prompt + [True] * point.answer
    turns = [-1] * point.prompt + [0] * point.answer
    problem, logprobs = Problem("", ()), [0.0] * length
    answers = [prompt + tokens(point.answer) for _ in range(point.group)]
    trajectories = [Trajectory(problem, ids, mask, logprobs, turns, [], FinishReason.stop) for ids in answers]
    return [Sample.of(trajectory, [rng.gauss(0, 1)]) for trajectory in trajectories]


def peaks_above(before: int, found: Result) -> Around:
    """A block whose highest resident memory is written to `found`, in bytes above `before`."""

    @contextmanager
    def around(part: str) -> Iterator[None]:
        forget_peak()
        yield
        found[part] = resident("VmHWM") - before

    return around


def resident_now() -> int:
    """Resident memory in bytes, without what was freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def keep_freed_memory() -> None:
    """From now on glibc keeps what is freed, in sizes up to those that it would come to by itself. Under
    `MALLOC` of benchmark_memory.py it returns it at once, which is right for memory, but takes time."""
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**25)
    ctypes.CDLL(None).mallopt(TRIM_THRESHOLD, 2**26)
