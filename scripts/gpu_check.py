"""Whether rows that share their beginnings are computed right on this GPU, and how fast an iteration is.

    PYTHONPATH=. python scripts/gpu_check.py [--out FILE]
    PYTHONPATH=. python scripts/gpu_check.py --small          # tiny shapes on a CPU: checks that it runs

Takes less than 10 minutes, and needs torch, transformers and peft of the project's dependencies, and no
download. Small Qwen3 and Qwen3-MoE models with random weights: log-probabilities and gradients of packed rows
against plain ones, and of flex_attention against sdpa. Then an iteration of 64 prompts with 8 answers of 256
tokens for the shapes of Qwen3-0.6B and Qwen3-4B under LoRA in bf16: time, tokens per second, peak memory, and
shares of what a large matrix product and a large copy reach on the same device. What has no time is cut, with
a note. Writes JSON after each part. Exits with 1 where a part failed or numbers differ.

Left out: several GPUs, vLLM, quantized weights, text that means something."""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_check_iteration import (
    Ceilings,
    Iteration,
    Job,
    attempt,
    configuration,
    now,
    random_policy,
    samples,
    scored,
)
from torch import nn

from gspo_cli.config.choices import Attention, Precision
from gspo_cli.config.model_schema import Shape
from gspo_cli.training.sharing import SAME_FP32, Sharing
from gspo_cli.training.update import Updater

STARTED = time.perf_counter()
TOTAL = 540  # seconds of all parts
SAME_GRADIENT = 1e-3  # norm of the difference over the norm, in fp32
SPREAD = 3.0  # times the initial weights: of weights as they come, hardly any token depends on another
PACKED, PLAIN = Sharing(True, attention_share=1e-4), Sharing(False)
PACKAGES = ("torch", "transformers", "peft")


def qwen3(hidden: int, layers: int, heads: int, inner: int, **others: int) -> Shape:
    """A shape with 8 heads of keys and values of 128, as Qwen3 has them."""
    shape = {"hidden_size": hidden, "layers": layers, "heads": heads, "key_value_heads": 8, "head_dim": 128}
    return Shape(**shape | {"intermediate_size": inner, "positions": 40960} | others)


CHECK = Shape(hidden_size=256, layers=4, heads=4, key_value_heads=2, head_dim=64, intermediate_size=768)
CHECKS = {
    "Qwen3": Job(CHECK, 2048, prompts=4, answers=4, prompt_tokens=120, answer_tokens=60),
    "Qwen3-MoE": Job(
        replace(CHECK, experts=8, experts_per_token=2, intermediate_size=256),
        2048,
        prompts=4,
        answers=4,
        prompt_tokens=120,
        answer_tokens=60,
    ),
}
JOBS = {
    "Qwen3-0.6B": Job(qwen3(1024, 28, 16, 3072), 151936),
    "Qwen3-4B": Job(qwen3(2560, 36, 32, 9728), 151936, lora_r=16, checkpointing=True),
}
SECONDS = {"ceilings": 10, "packed": 20, "Qwen3-0.6B": 120, "Qwen3-4B": 180, "flex": 60}  # per part
SIZES = {"prompts": 4, "prompt_tokens": 12, "answer_tokens": 6, "vocabulary": 320}
TINY = {"hidden_size": 32, "layers": 2, "heads": 4, "key_value_heads": 2, "head_dim": 8}


def tiny(job: Job) -> Job:
    """The same job for a CPU."""
    shape = replace(job.shape, **TINY, intermediate_size=48)
    return replace(job, **SIZES, shape=shape, answers=4, tokens_per_microbatch=64)


@dataclass
class Report:
    """What was found so far, which is written to `path` after each part."""

    path: Path
    found: dict[str, Any]
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, part: str, text: str) -> None:
        """Report something that a reader of the numbers has to know."""
        self.notes.append(f"{part}: {text}")
        print(f"note: {part}: {text}", flush=True)

    def run(self, part: str, seconds: float, measure: Callable[[float], dict[str, Any]]) -> None:
        """Measure a part, which is told when its time is up. Whatever goes wrong in it is reported, and the
        next one still runs."""
        start = time.perf_counter()
        deadline = min(start + seconds, STARTED + TOTAL)
        late = {"error": "not run, no time was left"}
        result = attempt(lambda: measure(deadline) if deadline > start else late)
        result["part_s"] = time.perf_counter() - start
        self.found["parts"][part] = result
        inner = [values for values in result.values() if isinstance(values, dict)]
        if any("error" in values for values in (result, *inner)) or result.get("equal") is False:
            self.failed.append(part)
        whole = self.found | {"notes": self.notes, "failed": self.failed}
        self.path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {sentence(result)}", flush=True)


def sentence(result: dict[str, Any]) -> str:
    """The numbers of a part, as they are printed."""
    for key in ("error", "skipped"):
        if key in result:
            return f"{'failed' if key == 'error' else key}: {result[key]}"
    lines = ["equal" if result["equal"] else "DIFFERENT"] if "equal" in result else []
    plain = {key: value for key, value in result.items() if isinstance(value, float)}
    lines = lines or [numbers(plain)]
    for name, values in result.items():
        if isinstance(values, dict):
            lines.append(f"  {name:12} {numbers(values)}")
    return "\n".join(lines)


def numbers(values: dict[str, Any]) -> str:
    """Names and values in a line, or what failed."""
    if "error" in values:
        return f"failed: {values['error']}"
    return ", ".join(f"{key} {value:.3g}" for key, value in values.items() if isinstance(value, int | float))


def surroundings(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    found = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    found |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": platform.machine()}
    if device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split()
        except (OSError, subprocess.TimeoutExpired):
            driver = []
        memory = torch.cuda.get_device_properties(device).total_memory
        found |= {"device": torch.cuda.get_device_name(device), "memory_gb": memory / 1e9}
        found |= {"driver": driver[0] if driver else "unknown", "cuda": str(torch.version.cuda)}
    return found


def ceilings(device: torch.device, size: int, elements: int, _: float) -> dict[str, Any]:
    """Operations per second of a square matrix product, and bytes per second of a copy, which reads and
    writes each byte."""
    one, other = torch.randn(2, size, size, device=device).to(torch.bfloat16)
    source = torch.ones(elements, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    product = torch.empty_like(one)
    multiplied = fastest(device, lambda: torch.mm(one, other, out=product))
    copied = fastest(device, lambda: target.copy_(source))
    return {
        "matmul_tflops": 2 * size**3 / multiplied / 1e12,
        "copy_gb_per_s": 2 * source.nbytes / copied / 1e9,
        "matmul_size": size,
        "copy_bytes": source.nbytes,
    }


def fastest(device: torch.device, work: Callable[[], Any], times: int = 10, rounds: int = 3) -> float:
    """Seconds of `work`, in the fastest of some rounds."""
    found = []
    for _ in range(1 + rounds):
        start = now(device)
        for _ in range(times):
            work()
        found.append((now(device) - start) / times)
    return min(found[1:])


def sharpened(job: Job, device: torch.device, precision: Precision, attention: Attention, **hardware: int):
    """A policy whose tokens depend on each other, and its configuration."""
    config = configuration(job, device, precision, attention)
    config = replace(config, hardware=replace(config.hardware, **hardware))
    policy = random_policy(config, job.vocabulary, device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SPREAD)
            if not parameter.any():  # an adapter that changes nothing yet
                nn.init.normal_(parameter, std=0.02)
    return policy, config


def difference(one, other) -> dict[str, float]:
    """Largest difference of log-probabilities in nats, and of gradients relative to their norm."""
    logprobs = torch.cat(one[0]) - torch.cat(other[0])
    gradient = (one[1] - other[1]).norm() / one[1].norm()
    return {"logprobs": logprobs.abs().max().item(), "gradient": gradient.item()}


Way = tuple[Attention, Sharing]


def agreement(
    job: Job, device: torch.device, one: Way, other: Way, note: Callable[[str], None], deadline: float
) -> dict[str, Any]:
    """Two ways to compute the same answers. In fp32 with all weights trained they have to agree; in bf16
    under LoRA the difference is reported, beside that of two layouts of plain rows, which is noise."""
    given = samples(job, shortest=1)

    def computed(precision: Precision, way: Way, **hardware: int):
        policy, config = sharpened(job, device, precision, way[0], **hardware)
        return scored(policy, Updater(policy, config, sharing=way[1]), given)

    exact = difference(computed(Precision.fp32, one), computed(Precision.fp32, other))
    equal = exact["logprobs"] <= SAME_FP32 and exact["gradient"] <= SAME_GRADIENT
    found = {"equal": equal, "fp32": exact}
    if now(device) >= deadline:
        note("bf16 left out: its time was up")
        return found
    low, plain = Precision.bf16, (one[0], PLAIN)
    found["bf16"] = difference(computed(low, one), computed(low, other))
    alone = computed(low, plain, tokens_per_microbatch=1)
    found["bf16, noise"] = difference(computed(low, plain), alone)
    finite = all(map(math.isfinite, found["bf16"].values()))
    return found | {"equal": equal and finite}


def iteration(
    job: Job, device: torch.device, report: Report, part: str, attention: Attention, deadline: float
) -> dict[str, Any]:
    """The times of a job; under flex_attention those of scoring and update, since the rest is the same."""
    start = time.perf_counter()
    measured = report.found["parts"]["ceilings"]
    most = Ceilings(measured.get("matmul_tflops", 0) * 1e12, measured.get("copy_gb_per_s", 0) * 1e9)
    work = Iteration(job, device, most, partial(report.note, part), attention)
    times = work.run(start, deadline, with_rollout=attention is not Attention.flex_attention)
    return {"job": asdict(job) | {"shape": asdict(job.shape)}, **times}


def skipped(_: float) -> dict[str, Any]:
    """The result of a part that needs a GPU."""
    return {"skipped": "flex_attention has no backward pass on a CPU"}


def check(report: Report, device: torch.device, small: bool) -> None:
    """All parts, those that compile last."""
    sdpa, flex = Attention.sdpa, Attention.flex_attention
    checks, jobs = CHECKS, JOBS
    if small:
        checks, jobs = ({name: tiny(job) for name, job in given.items()} for given in (CHECKS, JOBS))
    size, elements = (256, 2**20) if small else (8192, 2**30)
    report.run("ceilings", SECONDS["ceilings"], partial(ceilings, device, size, elements))
    for name, job in checks.items():
        part, ways = f"packed rows, {name}", ((sdpa, PLAIN), (sdpa, PACKED))
        tried = partial(agreement, job, device, *ways, partial(report.note, part))
        report.run(part, SECONDS["packed"], tried)
    for name, job in jobs.items():
        report.run(name, SECONDS[name], partial(iteration, job, device, report, name, Attention.auto))
    for name, job in checks.items():
        part, ways = f"flex_attention, {name}", ((sdpa, PACKED), (flex, PACKED))
        tried = partial(agreement, job, device, *ways, partial(report.note, part))
        report.run(part, SECONDS["flex"], skipped if small else tried)
    part = "flex_attention, Qwen3-0.6B"
    timed = partial(iteration, jobs["Qwen3-0.6B"], device, report, part, flex)
    report.run(part, SECONDS["flex"], skipped if small else timed)


def main() -> None:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU: checks that it runs")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON file to write")
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        parser.error("torch finds no GPU; use --small to run tiny shapes on the CPU")
    device = torch.device("cpu" if arguments.small else "cuda")
    report = Report(arguments.out, {"small": arguments.small, **surroundings(device), "parts": {}})
    print(", ".join(f"{key} {value}" for key, value in surroundings(device).items()), flush=True)
    check(report, device, arguments.small)
    took, failed = time.perf_counter() - STARTED, "; ".join(report.failed)
    print(f"{took:.0f} s, written to {arguments.out}" + (f"; FAILED: {failed}" if failed else ""))
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
