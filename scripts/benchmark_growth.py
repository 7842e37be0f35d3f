"""How time and memory of scoring and of an update grow with prompt, group, answers and vocabulary.

    make smollm2
    python scripts/benchmark_growth.py --axis prompt
    python scripts/benchmark_growth.py --threads 2 --json growth.json
    python scripts/benchmark_growth.py --axis prompt hardware.tokens_per_microbatch=4096

Around a base point, a group of 8 answers of 64 tokens to a prompt of 500 tokens, each size is varied alone,
with shared beginnings and without. An update is forward and backward of the group under GSPO, without the
optimizer's step; scoring is the pass before it. The model is SmolLM2-135M under LoRA as in model=smollm2, or
with --full all its weights. Where it is missing, or with --small, it is a Qwen3 shape of 3.7M parameters with
random weights. Further arguments override the configuration, as in gspo-train.

Each point runs in its own process (benchmark_point.py). Memory is the highest resident set of a pass, minus
what is resident before it with the model loaded; the gradients are part of it. Beside each time stands its
share of the matrix rate: useful operations (benchmark_operations.py) per second, over those of a large fp32
product in the same process.

The prompt axis ends with the time per useful operation for prompts of 100 to 1,000 tokens, whose spread is
slowest over fastest, less 1. Linux only. Left out: GPUs, several processes, generation."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from benchmark_memory import MALLOC, PACKAGES, dense, write
from benchmark_point import Point, Result, Setup, measure
from benchmark_sides import REAL

AXES = {
    "prompt": [100, 250, 500, 1000, 2000],
    "group": [2, 4, 8, 16, 32],
    "answer": [16, 32, 64, 128, 256],
    "vocabulary": [0.25, 0.5, 1, 2],  # times that of the model
}
TINY_AXES = {"prompt": [100, 120], "group": [2, 3], "answer": [4, 8], "vocabulary": [1, 2]}
BASE, TINY_BASE = {"prompt": 500, "group": 8, "answer": 64}, {"prompt": 100, "group": 2, "answer": 4}
SHAPE, TINY_SHAPE = dense(256, 4, 2048), dense(128, 2, 512)
SHORTEST, LONGEST, MOST = 100, 1000, 0.25  # prompts that are compared, and their largest spread
PARTS = {"update": "update", "score": "scoring"}
SHARING = {"on": [True], "off": [False], "both": [True, False]}

Results = dict[Point, Result]


def points(axis: str, arguments: argparse.Namespace) -> list[Point]:
    """The points of an axis, with shared beginnings, without, or both."""
    own = own_vocabulary(arguments)
    values = (TINY_AXES if arguments.smoke else AXES)[axis]
    if axis == "vocabulary":
        values = [round(factor * own) for factor in values]
    base = Point(**(TINY_BASE if arguments.smoke else BASE), vocabulary=own, share=True)
    return [
        replace(base, **{axis: value, "share": share})
        for value in values
        for share in SHARING[arguments.sharing]
    ]


def own_vocabulary(arguments: argparse.Namespace) -> int:
    """Tokens in the vocabulary of the model."""
    if arguments.model is None:
        return (TINY_SHAPE if arguments.smoke else SHAPE)["vocabulary"]
    values = json.loads((arguments.model / "config.json").read_text())
    return values.get("text_config", values)["vocab_size"]


def write_model(folder: Path, vocabulary: int, arguments: argparse.Namespace) -> None:
    """The model with another vocabulary, or the one with random weights."""
    if arguments.model is None:
        write(folder, (TINY_SHAPE if arguments.smoke else SHAPE) | {"vocabulary": vocabulary}, "qwen3")
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(arguments.model).save_pretrained(folder)


def child(arguments: argparse.Namespace) -> str:
    """What a subprocess does: write the model that a point needs, or measure the point (-> JSON)."""
    from benchmark_operations import SIZE

    point = Point(**json.loads(arguments.child))
    if arguments.write:
        write_model(arguments.folder, point.vocabulary, arguments)
        return "{}"
    setup = Setup(
        arguments.threads,
        arguments.repeats,
        arguments.full,
        arguments.overrides,
        matrix_size=SIZE // 8 if arguments.smoke else SIZE,
        alone=not arguments.smoke,
    )
    return json.dumps(measure(arguments.folder, point, setup))


def spawn(point: Point, folder: Path, arguments: argparse.Namespace, *options: str) -> Result:
    """Run `child` in its own process and return what it measured. Raises RuntimeError if it fails."""
    line = [*arguments.line, "--child", json.dumps(asdict(point)), "--folder", str(folder), *options]
    if arguments.smoke:  # in this process: importing torch takes longer than all else
        return json.loads(child(parse(line)))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, *line]
    done = subprocess.run(command, env=os.environ | quiet | threads | MALLOC, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{point} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(wanted: Sequence[Point], arguments: argparse.Namespace) -> Results:
    """All points, each once. What is found is written to --json after each of them."""
    found: Results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for point in dict.fromkeys(wanted):
            folder = Path(temporary) / str(point.vocabulary)
            if arguments.model is not None and point.vocabulary == own_vocabulary(arguments):
                folder = arguments.model
            elif not folder.exists():
                spawn(point, folder, arguments, "--write")
            found[point] = spawn(point, folder, arguments)
            print(f"{point}: update {found[point]['update_seconds']:.2f} s", file=sys.stderr)
            if arguments.json:
                arguments.json.write_text(json.dumps(report(found, arguments), indent=1) + "\n")
    return found


def report(found: Results, arguments: argparse.Namespace) -> dict[str, object]:
    """What was measured, and on what, as JSON."""
    return {
        "model": model_name(arguments),
        "trained": "all weights" if arguments.full else "LoRA",
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "overrides": arguments.overrides,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "points": [asdict(point) | result for point, result in found.items()],
    }


def model_name(arguments: argparse.Namespace) -> str:
    """The model in a word."""
    return "a small Qwen3 with random weights" if arguments.model is None else arguments.model.name


def rate_share(result: Mapping[str, float], part: str) -> float:
    """Useful operations per second, over the operations per second of a matrix product."""
    return result[f"{part}_operations"] / result[f"{part}_seconds"] / result["matrix_rate"]


def axis_table(axis: str, found: Results) -> list[list[str]]:
    """A row for each point of an axis."""
    titles = [f"{title}{column}" for title in PARTS.values() for column in (", s", ", of matrix rate")]
    rows = [[axis, "shared", "unique tokens", "computed", *titles]]
    rows[0] += [f"{title}, MiB" for title in PARTS.values()]
    for point, result in found.items():
        row = [f"{getattr(point, axis):,}", "yes" if point.share else "no"]
        row += [f"{result[f'{kind}_tokens']:,.0f}" for kind in ("unique", "computed")]
        for part in PARTS:
            row += [f"{result[f'{part}_seconds']:.2f}", f"{rate_share(result, part):.0%}"]
        rows.append(row + [f"{result[f'{part}_bytes'] / 2**20:.0f}" for part in PARTS])
    return rows


def constancy_table(found: Results) -> list[list[str]]:
    """Seconds per 10^12 useful operations for prompts of SHORTEST to LONGEST tokens, and their spreads. Those
    of the matrix product tell how steady the machine was."""
    columns: dict[str, dict[int, float]] = {}
    for point, result in found.items():
        if SHORTEST <= point.prompt <= LONGEST:
            times = {
                title: result[f"{part}_seconds"] / result[f"{part}_operations"]
                for part, title in PARTS.items()
            }
            for title, seconds in (times | {"matrix product": 1 / result["matrix_rate"]}).items():
                column = columns.setdefault(f"{title}, {'shared' if point.share else 'not shared'}", {})
                column[point.prompt] = 1e12 * seconds
    rows = [["prompt", *columns]]
    for prompt in next(iter(columns.values())):
        rows.append([f"{prompt:,}", *(f"{column[prompt]:.1f}" for column in columns.values())])
    spreads = [max(column.values()) / min(column.values()) - 1 for column in columns.values()]
    return [*rows, ["spread", *(f"{spread:.0%}" for spread in spreads)]]


def show(rows: Sequence[Sequence[str]], markdown: bool) -> None:
    """Print a table in columns, or as Markdown."""
    if markdown:
        lines = [*rows[:1], ["---:"] * len(rows[0]), *rows[1:]]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def parse(line: Sequence[str] | None = None) -> argparse.Namespace:
    """The options in `line`, or of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--axis", choices=[*AXES, "all"], default="all")
    parser.add_argument("--sharing", choices=list(SHARING), default="both", help="of common beginnings")
    parser.add_argument("--model", type=Path, help="a model folder; that of make smollm2 by default")
    parser.add_argument("--small", action="store_true", help="a small Qwen3 with random weights")
    parser.add_argument("--full", action="store_true", help="train all weights in place of LoRA")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes, whose median counts")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/benchmarks.md")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes in one process: checks that it runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    line = sys.argv[1:] if line is None else line
    arguments = parser.parse_intermixed_args(line)
    arguments.line = list(line)
    from gspo_cli.user_cache import fetched_model

    if arguments.small or arguments.smoke:
        arguments.model = None
    elif arguments.model is None:
        found = fetched_model(REAL)
        arguments.model = found if (found / "config.json").is_file() else None
    elif not (arguments.model / "config.json").is_file():
        parser.error(f"--model {arguments.model}: is not a model folder; make smollm2 brings one")
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.child:
        print(child(arguments))
        return
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}, {packages}, {arguments.threads} thread(s)")
    print(f"{model_name(arguments)}, {'all weights' if arguments.full else 'LoRA'}")
    axes = list(AXES) if arguments.axis == "all" else [arguments.axis]
    wanted = {axis: points(axis, arguments) for axis in axes}
    found = measured([point for axis in axes for point in wanted[axis]], arguments)
    for axis in axes:
        mine = {point: found[point] for point in wanted[axis]}
        print(f"\n{axis}, medians of {arguments.repeats} passes\n")
        show(axis_table(axis, mine), arguments.markdown)
        if axis == "prompt":
            print(f"\nseconds per 10^12 useful operations; target: a spread of at most {MOST:.0%}, shared\n")
            show(constancy_table(mine), arguments.markdown)


if __name__ == "__main__":
    main()
