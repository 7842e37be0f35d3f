"""The memory planner of the objective card against measured peaks, for shapes that a CPU can train.

    python scripts/benchmark_memory.py

Each shape, with random weights, runs in its own process: the updater takes two optimizer steps of two full
micro-batches, then the engine generates a full batch. Measured is the peak resident memory of each phase,
minus what was resident before weights were loaded. A small model of the same kind runs first, so that imports
and the kernels' own buffers are not counted. Weights are copied out of the mapping of their file, whose pages
would count twice. glibc returns freed memory at once (MALLOC_*), so that only memory in use at one time
counts. Exits with 1 where planned over measured is outside 0.75 to 1.25. Linux only,
and after `make smollm2`.

Left out: GPUs, several processes, models that are read in shards."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPT, ANSWER, PROMPTS, ROWS = 96, 60, 16, 64  # a full cache: pages that are never written are not resident
LOWEST, HIGHEST = 0.75, 1.25
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "524288", "MALLOC_TRIM_THRESHOLD_": "524288"}
PACKAGES = ("torch", "transformers", "peft")
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # as `make smollm2` fetches it


@dataclass(frozen=True)
class Case:
    """A shape to measure: `answers` of PROMPT + ANSWER tokens fill a micro-batch."""

    shape: dict[str, int]
    answers: int
    settings: dict[str, Any] = field(default_factory=dict)
    family: str = "qwen3"


def dense(hidden: int, layers: int, vocabulary: int) -> dict[str, int]:
    """A Qwen3 shape with heads of 64 and half as many for keys."""
    heads = hidden // 64
    sizes = {"hidden_size": hidden, "layers": layers, "heads": heads, "key_value_heads": heads // 2}
    return sizes | {"head_dim": 64, "intermediate_size": 3 * hidden, "vocabulary": vocabulary}


def experts(hidden: int, layers: int, vocabulary: int) -> dict[str, int]:
    """A Qwen3-MoE shape with 8 experts, 2 of which are active."""
    return dense(hidden, layers, vocabulary) | {
        "experts": 8,
        "experts_per_token": 2,
        "intermediate_size": hidden,
    }


FULL = {"model.use_lora": False, "model.gradient_checkpointing": False}
LORA = {"model.use_lora": True, "model.gradient_checkpointing": False}
CHECKPOINTED = {"model.gradient_checkpointing": True}
BF16 = {"hardware.precision": "bf16"}
CASES = {
    "full": Case(dense(512, 6, 8192), 3, FULL),
    "full, bf16": Case(dense(512, 4, 16384), 3, FULL | BF16),
    "LoRA": Case(dense(512, 8, 16384), 6, LORA),
    "LoRA, checkpointing": Case(dense(768, 6, 8192), 7, LORA | CHECKPOINTED),
    "LoRA, bf16": Case(dense(512, 8, 32768), 6, LORA | BF16),
    "experts, full": Case(experts(384, 4, 4096), 6, FULL),
    "experts, LoRA on them": Case(experts(512, 4, 8192), 6, LORA | {"model.lora_experts": True}),
    "gpt2, LoRA": Case({"hidden": 512, "layers": 6, "vocabulary": 16384}, 6, LORA, "gpt2"),
    "SmolLM2, full": Case({"vocabulary": 49152}, 4, FULL, SMOLLM2),
    "SmolLM2, LoRA": Case({"vocabulary": 49152}, 8, LORA, SMOLLM2),
}
SMALL = {"qwen3": dense(128, 2, 512), "gpt2": {"hidden": 128, "layers": 2, "vocabulary": 512}}
SMALL |= {SMOLLM2: SMALL["qwen3"]}
SMOKE = {
    name: replace(CASES[name], shape=SMALL[CASES[name].family], answers=2) for name in ("full", "gpt2, LoRA")
}


def write(folder: Path, shape: dict[str, int], family: str) -> None:
    """A model folder of random weights, with a tokenizer of words."""
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from gspo_cli.config.model_schema import Shape
    from gspo_cli.policy.embedded import build_model
    from gspo_cli.user_cache import fetched_model

    vocabulary = shape["vocabulary"]
    if family == SMOLLM2 and len(shape) == 1:
        shutil.copytree(fetched_model(SMOLLM2), folder)
        return
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=shape["hidden"],
                n_layer=shape["layers"],
                n_head=shape["hidden"] // 64,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    else:
        model = build_model(Shape(**shape), vocabulary, seed=0)
    words = Tokenizer(models.WordLevel({"<end>": 0, "word": 1}, unk_token="<end>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def configuration(folder: Path, case: Case):
    """The shipped configuration with the model in `folder` and just enough answers for two updates."""
    from hydra import compose, initialize_config_dir

    from gspo_cli.config.compose import CONF_DIR, build_config

    settings = case.settings | {
        "model.name": folder,
        "rollout.max_prompt_length": PROMPT,
        "rollout.max_completion_length": ANSWER,
        "rollout.batch_size": ROWS,
        "training.num_generations": 2 * case.answers,
        "training.generations_per_iteration": 4 * case.answers,
        "training.updates_per_rollout": 2,
        "evaluation.problems": PROMPTS,
        "evaluation.samples": ROWS // PROMPTS,
        "hardware.tokens_per_microbatch": case.answers * (PROMPT + ANSWER),
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return build_config(compose("train", overrides=["task=arithmetic", "hardware=cpu", *overrides]))


def samples(count: int, vocabulary: int) -> list[Any]:
    """Full-length answers of random tokens with random advantages."""
    from gspo_cli.training.batch import Sample
    from gspo_cli.types import FinishReason, Problem, Trajectory

    rng, length = random.Random(0), PROMPT + ANSWER
    mask = [False] * PROMPT + [True] * ANSWER
    ids = [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(count)]
    problem, logprobs = Problem("", ()), [0.0] * length
    trajectories = [Trajectory(problem, row, mask, logprobs, [], [], FinishReason.stop) for row in ids]
    return [Sample.of(trajectory, [rng.gauss(0, 1)]) for trajectory in trajectories]


def requests(vocabulary: int) -> list[Any]:
    """Prompts of different lengths, each sampled several times."""
    from gspo_cli.rollout.engine import Request

    rng = random.Random(1)
    prompts = [[rng.randrange(1, vocabulary) for _ in range(PROMPT - i)] for i in range(PROMPTS)]
    return [Request(prompts[i % PROMPTS], i, i) for i in range(ROWS)]


def run(folder: Path, case: Case) -> dict[str, dict[str, Any]]:
    """Both phases by the trainer's own parts. -> phase -> planned and measured bytes"""
    from gspo_cli.policy.dimensions import dimensions
    from gspo_cli.policy.loading import load_policy
    from gspo_cli.randomness import generator
    from gspo_cli.rollout.engine import Sampling, generate
    from gspo_cli.rollout.transformers_engine import TransformersEngine
    from gspo_cli.training.memory_plan import memory_plan
    from gspo_cli.training.metrics import Clock
    from gspo_cli.training.update import Updater

    config = configuration(folder, case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    policy = load_policy(config.model.name, config.model, config.hardware)
    for parameter in policy.parameters():
        parameter.data = parameter.data.clone()
    planned = memory_plan(config, dimensions(policy.model, policy.autocast is not None))
    updater = Updater(policy, config)
    vocabulary = policy.causal_model.config.vocab_size
    answers = samples(config.training.generations_per_iteration, vocabulary)
    measured = {"loaded": resident("VmRSS") - before}
    forget_peak()
    updater.run(answers, generator(0, "minibatches"), Clock())
    measured["update"] = resident("VmHWM") - before
    gc.collect()
    forget_peak()
    engine = TransformersEngine(policy, ROWS)
    generate(engine, requests(vocabulary), Sampling(1.0, 1.0, 0, ANSWER, frozenset()))
    measured["rollout"] = resident("VmHWM") - before
    totals = {
        "loaded": planned.phases["update"]["weights"],
        "update": max(planned.total("update"), planned.total("step")),
        "rollout": planned.total("rollout"),
    }
    parts = {phase: dict(planned.phases.get(phase, {})) for phase in measured}
    return {
        phase: {"planned": totals[phase], "measured": measured[phase], "parts": parts[phase]}
        for phase in measured
    }


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak since `forget_peak`) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def forget_peak() -> None:
    """Reset VmHWM to the present value."""
    Path("/proc/self/clear_refs").write_text("5")


def write_models(folder: Path, cases: Mapping[str, Case]) -> None:
    """The model of each case, and a small one of its kind."""
    for place, case in enumerate(cases.values()):
        write(folder / f"model{place}", case.shape, case.family)
        small = SMALL[case.family] | ({"experts": 8} if "experts" in case.shape else {})
        write(folder / f"small{place}", small, case.family)


def child(work: str, folder: Path, cases: Mapping[str, Case], warm_up: bool = True) -> str:
    """What a subprocess does: write all models, or measure one case (-> JSON) after a small model."""
    import torch

    from gspo_cli.config.compose import register

    torch.set_num_threads(1)
    register()
    if work == "write":
        write_models(folder, cases)
        return ""
    place = list(cases).index(work)
    if warm_up:
        run(folder / f"small{place}", cases[work])
    return json.dumps(run(folder / f"model{place}", cases[work]))


def spawn(work: str, folder: str) -> str:
    """Run `child` in its own process and return what it printed. Raises RuntimeError if it fails."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, "--child", work, "--folder", folder]
    environment = os.environ | quiet | MALLOC | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{work} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def smoke() -> None:
    """Two tiny models in this process: checks that the script runs. Compares nothing."""
    with tempfile.TemporaryDirectory() as folder:
        child("write", Path(folder), SMOKE)
        for name in SMOKE:
            for phase, found in json.loads(child(name, Path(folder), SMOKE, warm_up=False)).items():
                show([name, phase, *(f"{found[key] / 2**20:.0f}" for key in ("planned", "measured"))], False)


def show(cells: Sequence[str], markdown: bool) -> None:
    """One line of the table."""
    if markdown:
        print("| " + " | ".join(cells) + " |", flush=True)
    else:
        print(f"{cells[0]:24}{cells[1]:10}" + "".join(f"{cell:>10}" for cell in cells[2:]), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"some of: {'; '.join(CASES)}")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    parser.add_argument("--parts", action="store_true", help="print what is planned part by part, in MiB")
    parser.add_argument("--smoke", action="store_true", help="tiny models, one process: checks that it runs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(child(arguments.child, arguments.folder, CASES))
        return
    if arguments.smoke:
        smoke()
        return
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}, {packages}\n")
    show(["shape", "phase", "planned", "measured", "ratio"], arguments.markdown)
    if arguments.markdown:
        show(["---", "---", "---:", "---:", "---:"], True)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        spawn("write", folder)
        for name in arguments.cases or CASES:
            for phase, found in json.loads(spawn(name, folder).splitlines()[-1]).items():
                ratio = found["planned"] / found["measured"]
                if phase != "loaded":
                    ratios.append(ratio)
                numbers = [f"{found[key] / 2**20:.0f}" for key in ("planned", "measured")]
                show([name, phase, *numbers, f"{ratio:.2f}"], arguments.markdown)
                if arguments.parts:
                    parts = {part: size >> 20 for part, size in found["parts"].items() if size >> 20}
                    print("  ", ", ".join(f"{part} {size}" for part, size in parts.items()))
    print(f"\nplanned / measured: {min(ratios):.2f} to {max(ratios):.2f}")
    if not LOWEST <= min(ratios) <= max(ratios) <= HIGHEST:
        sys.exit(1)


if __name__ == "__main__":
    main()
