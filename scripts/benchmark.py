"""One iteration of gspo-cli and of TRL's GRPOTrainer set up as GSPO, side by side on this machine's CPU.

    pip install -e '.[bench]'
    python scripts/benchmark.py
    python scripts/benchmark.py --workload tools --ours-only     # one workload, without TRL

A Qwen3 shape of 3.7M parameters with random weights. `fixed` and `geometric`: 16 prompts of 24 to 40 tokens,
4 answers each, 4 updates; nothing ends an answer before 128 tokens, or 64 of 2,048 token ids end it, so that
lengths are about geometric with mean 32, cut at 128. `tools`: 4 prompts of 600 tokens, 8 answers of 64 each,
2 updates. `smollm2`: SmolLM2-135M (make smollm2), all weights trained, 2 prompts of the shop with policy and
tools, 8 answers of 32 each, 2 updates. gspo-cli is measured as it comes, and with old log-probabilities
recomputed as TRL does. Each side runs in its own process, one after the other, with an iteration to warm up.
At the end each process measures the rate of a large matrix product, and the table has the share of it that
scoring and update reach in useful operations (benchmark_operations.py). These are counted in the same way for
all sides, so that prompts that are computed again lower the share. Exits with 1 unless all sides trained on
the same number of tokens (within 10% where lengths are drawn). Left out: several processes, vLLM, GPUs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmark_sides import WORKLOADS, Record, Workload, peak_gb, run_ours, run_trl, smoke, write_model

LABELS = {"rollout": "rollout", "score": "old log-probs", "update": "update", "other": "rewards, batching"}
SIDES = {"ours": "gspo-cli", "recompute": "recomputing", "trl": "TRL"}
SETTINGS = {"ours": (), "recompute": ("rollout.old_logprobs=recompute",)}
PACKAGES = ("torch", "transformers", "trl", "accelerate")
SHORTEST = 0.01  # seconds (or GB): what is less has no ratio
NO_PASS = 0.001  # seconds: a stage that takes less has computed nothing
DRAWN_TOLERANCE = 0.1  # how far the sides' token counts may differ where lengths are drawn


def child(arguments: argparse.Namespace) -> None:
    """What a subprocess does: write the models, or run one side and leave its numbers in a file."""
    folder = arguments.folder
    if arguments.child == "write":
        for name in workloads_of(arguments):
            write_model(folder / name, sized(name, arguments))
        return
    work = (folder, arguments.threads, 1 + arguments.iterations, sized(folder.name, arguments))
    side = arguments.child
    records, imported = run_trl(*work) if side == "trl" else run_ours(*work, *SETTINGS[side])
    result = {"records": records[1:], "peak_gb": peak_gb(), "imported_gb": imported}
    from benchmark_operations import SIZE, matrix_rate

    result["matrix_rate"] = matrix_rate(SIZE // 8 if arguments.smoke else SIZE)  # after the peak was read
    arguments.result.write_text(json.dumps(result))


def spawn(work: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `child` in its own process and return what it measured. Raises RuntimeError if it fails."""
    result = folder.parent / f"{work}.json"
    options = ["--child", work, "--folder", str(folder), "--result", str(result)]
    options += ["--workload", arguments.workload, "--threads", str(arguments.threads)]
    options += ["--iterations", str(arguments.iterations)]
    if arguments.smoke:  # in this process: importing torch takes longer than all else
        child(parse([*options, "--smoke"]))
        return {} if work == "write" else json.loads(result.read_text())
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, env=os.environ | quiet | threads, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{SIDES.get(work, work)} failed:\n{done.stderr[-3000:]}")
    return {} if work == "write" else json.loads(result.read_text())


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Record]:
    """The sides in turn, `repeats` times. -> side -> medians over all iterations"""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides_of(arguments)}
    for repeat in range(arguments.repeats):
        for side in runs if repeat % 2 == 0 else reversed(runs):
            runs[side].append(spawn(side, folder, arguments))
            times = ", ".join(f"{r['iteration']:.1f}" for r in runs[side][-1]["records"])
            print(f"{name}, {SIDES[side]}, repeat {repeat + 1}: {times} s", file=sys.stderr)
    return {side: summarize(results) for side, results in runs.items()}


def summarize(results: Sequence[dict[str, Any]]) -> Record:
    """Medians over the iterations of all repeats; the highest memory, and the tokens of all."""
    records = [r | shares(r, result["matrix_rate"]) for result in results for r in result["records"]]
    medians = {name: median(r[name] for r in records) for name in records[0]}
    totals = [r["iteration"] for r in records]
    return medians | {
        "tokens": sum(r["tokens"] for r in records),
        "mean_length": sum(r["mean_length"] for r in records) / len(records),
        "groups_skipped": max(r["groups_skipped"] for r in records),
        "fastest": min(totals),
        "slowest": max(totals),
        "peak_gb": max(result["peak_gb"] for result in results),
        "imported_gb": median(result["imported_gb"] for result in results),
        "matrix_rate": median(result["matrix_rate"] for result in results),
    }


def shares(record: Record, rate: float) -> Record:
    """Useful operations per second of scoring and of the update, as shares of `rate`, that of matrix
    products. 0 where a side has no such pass."""
    return {
        f"{stage}_share": record[f"{stage}_operations"] / record[stage] / rate
        if record[stage] >= NO_PASS
        else 0.0
        for stage in ("score", "update")
    }


def unequal_work(trained: Mapping[str, float], expected: int | None) -> str | None:
    """Why the speeds of these sides mean nothing, in a sentence; None where they can be compared.

    `trained` has the tokens that each side trained on. They must be `expected`, or where lengths are drawn
    (None) above 0 and within DRAWN_TOLERANCE of each other."""
    counts = ", ".join(f"{SIDES[side]} trained on {count:.0f} tokens" for side, count in trained.items())
    fewest, most = min(trained.values()), max(trained.values())
    if expected is not None and (fewest, most) != (expected, expected):
        return f"{counts}; answers of fixed length are {expected}"
    if fewest == 0:
        return f"{counts}; without tokens nothing is measured"
    if most - fewest > DRAWN_TOLERANCE * most:
        return f"{counts}; they may differ by {DRAWN_TOLERANCE:.0%}: average over more --iterations"
    return None


def table(found: dict[str, Record]) -> list[list[str]]:
    """Rows of a label and a column per side; with TRL, how many times it needs what each of ours needs."""
    sides = list(found.values())
    ours = [SIDES[side] for side in found if side != "trl"] if "trl" in found else []
    rows = [["", *(SIDES[side] for side in found), *(f"TRL / {side}" for side in ours)]]

    def row(label: str, values: Sequence[float | str], form: str = "{}", ratio: bool = False) -> None:
        ratios = [_times(values[-1], value) if ratio else "" for value in values[: len(ours)]]
        rows.append([label, *(form.format(value) for value in values), *ratios])

    def values(name: str) -> list[float]:
        return [side[name] for side in sides]

    for stage, label in {"iteration": "iteration", **LABELS}.items():
        row(f"{label}, s", values(stage), "{:.2f}", ratio=stage != "other")
    for stage in ("score", "update"):
        parts = [f"{share:.0%}" if share else "–" for share in values(f"{stage}_share")]
        row(f"{LABELS[stage]}, of matrix rate", parts)
    row("matrix rate, GFLOP/s", [rate / 1e9 for rate in values("matrix_rate")], "{:.0f}")
    row("fastest and slowest iteration, s", [f"{s['fastest']:.1f} to {s['slowest']:.1f}" for s in sides])
    row("processor time of an iteration, s", values("cpu"), "{:.2f}", ratio=True)
    row("answer tokens per second", values("tokens_per_second"), "{:.0f}")
    row("peak memory, GB", values("peak_gb"), "{:.2f}", ratio=True)
    row("of which above the imports, GB", [s["peak_gb"] - s["imported_gb"] for s in sides], "{:.2f}", True)
    row("mean answer, tokens", values("mean_length"), "{:.1f}")
    row("zero-variance groups", values("groups_skipped"), "{:.0%}")
    return rows


def _times(theirs: float | str, ours: float | str) -> str:
    """How many times one takes what the other takes."""
    return f"{float(theirs) / float(ours):.2f}" if float(ours) >= SHORTEST else "–"


def show(rows: Sequence[Sequence[str]], markdown: bool) -> None:
    """Print the table in columns, or as Markdown."""
    if markdown:
        lines = [*rows[:1], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return
    for first, *others in rows:
        print(f"{first:34}" + "".join(f"{text:>19}" for text in others))


def sized(name: str, arguments: argparse.Namespace) -> Workload:
    """What an iteration of a workload does."""
    return smoke(WORKLOADS[name]) if arguments.smoke else WORKLOADS[name]


def workloads_of(arguments: argparse.Namespace) -> list[str]:
    """The workloads to measure."""
    if arguments.workload != "all":
        return [arguments.workload]
    return [name for name, workload in WORKLOADS.items() if workload.shape or not arguments.smoke]


def sides_of(arguments: argparse.Namespace) -> list[str]:
    """The sides to measure."""
    return list(SETTINGS) if arguments.ours_only else list(SIDES)


def parse(line: Sequence[str] | None = None) -> argparse.Namespace:
    """The options in `line`, or of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--ours-only", action="store_true", help="measure gspo-cli alone; needs no TRL")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes in one process: checks that it runs")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on each side")
    parser.add_argument("--repeats", type=int, default=3, help="processes per side")
    parser.add_argument("--iterations", type=int, default=2, help="measured in each process, after one more")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/benchmarks.md")
    parser.add_argument("--child", choices=["write", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(line)
    if not (arguments.ours_only or arguments.child or find_spec("trl")):
        parser.error("TRL is not installed: pip install -e '.[bench]', or measure gspo-cli with --ours-only")
    return arguments


def main() -> None:
    """Measure and print. Exits with 1 where the sides did not do the same work."""
    arguments = parse()
    if arguments.child:
        child(arguments)
        return
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES if find_spec(name))
    print(f"Python {platform.python_version()}, {packages}, {arguments.threads} thread(s)")
    iterations = arguments.repeats * arguments.iterations
    with tempfile.TemporaryDirectory() as folder:
        spawn("write", Path(folder), arguments)
        for name in workloads_of(arguments):
            found = measure(name, Path(folder) / name, arguments)
            workload = sized(name, arguments)
            expected = iterations * workload.sequences * workload.longest if workload.mean is None else None
            reason = unequal_work({side: record["tokens"] for side, record in found.items()}, expected)
            if reason:
                sys.exit(f"{name}: {reason}")
            print(f"\n{name}, medians of {iterations} iterations\n")
            show(table(found), arguments.markdown)


if __name__ == "__main__":
    main()
