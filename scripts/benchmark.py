"""One iteration of gspo-cli and of TRL's GRPOTrainer set up as GSPO, side by side on this machine's CPU.

    pip install -e '.[bench]'
    python scripts/benchmark.py

A Qwen3 shape of 3.7M parameters with random weights answers 16 prompts 4 times and takes 4 updates on the
answers. `fixed`: nothing ends an answer before 128 tokens. `geometric`: 64 of 2,048 token ids end it, so that
lengths are about geometric with mean 32, cut at 128. Each side runs in a process of its own, in turn, with an
iteration to warm up. Left out: models whose products fill the machine, several processes, vLLM, GPUs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

PROMPTS, ANSWERS, UPDATES = 16, 4, 4
MAX_NEW, MEAN_LENGTH = 128, 32
VOCABULARY, END_ID = 2048, 2048  # the tokenizer's end token is an id that the model has no row for
SHAPE = {"hidden_size": 256, "layers": 4, "heads": 4, "key_value_heads": 2, "head_dim": 64}
LEARNING_RATE, CLIP_LEFT, CLIP_RIGHT = 1e-5, 3e-4, 4e-4
STAGES = ("rollout", "score", "update", "other")
LABELS = {"rollout": "rollout", "score": "old log-probs", "update": "update", "other": "rewards, batching"}
SIDES = {"ours": "gspo-cli", "trl": "TRL"}
PACKAGES = ("torch", "transformers", "trl", "accelerate")

Record = dict[str, float]


def prompts(count: int) -> list[str]:
    """Random words, 24 to 40 of them; one word is one token, none of them ends an answer."""
    rng = random.Random(0)
    return [
        " ".join(f"w{rng.randrange(100, VOCABULARY)}" for _ in range(rng.randint(24, 40)))
        for _ in range(count)
    ]


def token_sum_reward(completion_ids: Sequence[int]) -> float:
    """Cheap, and different for nearly every answer, so that no group is without spread."""
    return sum(completion_ids) % 101 / 100


def write_model(folder: Path, lengths: str) -> None:
    """A model folder that both sides load; its generation config says what ends an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from gspo_cli.config.model_schema import Shape
    from gspo_cli.policy.embedded import build_model

    words = {"<pad>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)} | {"<end>": END_ID}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    model = build_model(Shape(**SHAPE, intermediate_size=768), VOCABULARY, seed=0)
    if lengths == "geometric":
        # nearly uniform at random weights: one id in MEAN_LENGTH ends an answer
        model.generation_config.eos_token_id = list(range(1, 1 + VOCABULARY // MEAN_LENGTH))
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def run_ours(folder: Path, threads: int, iterations: int) -> tuple[list[Record], float]:
    """The body of `Trainer`'s iteration, without its log lines. -> records, GB before the model is loaded"""
    import torch
    from hydra import compose, initialize_config_dir

    from gspo_cli.config.compose import CONF_DIR, build_config, register
    from gspo_cli.policy.loading import load_policy
    from gspo_cli.randomness import generator
    from gspo_cli.rewards.base import RewardFunction
    from gspo_cli.rollout.prompts import Prompts
    from gspo_cli.rollout.transformers_engine import TransformersEngine
    from gspo_cli.training.collecting import Collector, ConversationRunner, ProblemOrder
    from gspo_cli.training.credit import trainable, with_advantages
    from gspo_cli.training.metrics import Clock
    from gspo_cli.training.update import Updater
    from gspo_cli.types import Message, Problem, RewardResult

    class TokenSum(RewardFunction):
        def compute_reward(self, trajectory, turn, context):
            pairs = zip(trajectory.token_ids, trajectory.action_mask, strict=True)
            return RewardResult(token_sum_reward([token for token, sampled in pairs if sampled]))

    torch.set_num_threads(threads)
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = build_config(compose("train", overrides=overrides(folder, iterations)))
    imported = peak_gb()
    policy = load_policy(config.model.name, config.model, config.hardware)
    problems = [
        Problem(str(i), (Message("user", text),)) for i, text in enumerate(prompts(PROMPTS * iterations))
    ]
    engine = TransformersEngine(policy, config.rollout.batch_size)
    order = ProblemOrder(problems, config.seed)
    runner = ConversationRunner(config, TokenSum(), engine, Prompts(policy.chat))
    collector = Collector(config, runner, order)
    updater = Updater(policy, config)
    records, cursor = [], 0
    for iteration in range(iterations):
        clock, started = Clock(), time.process_time()
        sampled = collector.collect(iteration, cursor, clock)
        samples = trainable(sampled.groups, config.algorithm)
        samples = with_advantages(samples, sampled.groups, config.algorithm)
        updater.run(samples, generator(config.seed, "minibatches", iteration), clock)
        cursor += sampled.problems_drawn
        records.append(
            record(clock.seconds, clock.total, started, [t.num_actions for t in sampled.trajectories])
            | {"groups_skipped": sampled.metrics["frac_reward_zero_std"]}
        )
    return records, imported


def overrides(folder: Path, iterations: int) -> list[str]:
    """What the benchmark changes of the shipped configuration."""
    return [
        "algorithm=gspo",
        f"model.name={folder}",
        f"rollout.max_completion_length={MAX_NEW}",
        f"algorithm.learning_rate={LEARNING_RATE}",
        f"algorithm.clip_range_left={CLIP_LEFT}",
        f"algorithm.clip_range_right={CLIP_RIGHT}",
        f"training.num_generations={ANSWERS}",
        f"training.generations_per_iteration={PROMPTS * ANSWERS}",
        f"training.updates_per_rollout={UPDATES}",
        f"training.num_outer_iterations={iterations}",
    ]


def run_trl(folder: Path, threads: int, iterations: int) -> tuple[list[Record], float]:
    """TRL's own loop, with its methods timed from outside. -> records, GB before the model is loaded"""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from gspo_cli.training.metrics import Clock

    torch.set_num_threads(threads)
    imported = peak_gb()
    state = {"clock": Clock(), "started": 0.0, "lengths": [], "skipped": 0.0}
    records = []

    def begin():
        state["clock"], state["started"] = Clock(), time.process_time()

    def reward(prompts, completions, completion_ids, **_):
        state["lengths"] = [len(ids) for ids in completion_ids]
        values = [token_sum_reward(ids) for ids in completion_ids]
        groups = [values[i : i + ANSWERS] for i in range(0, len(values), ANSWERS)]
        state["skipped"] = sum(max(group) == min(group) for group in groups) / len(groups)
        return values

    class IterationEnd(TrainerCallback):
        def on_train_begin(self, args, trainer_state, control, **_):
            begin()

        def on_step_end(self, args, trainer_state, control, **_):
            if trainer_state.global_step % UPDATES:
                return
            total, seconds = state["clock"].total, state["clock"].seconds
            seconds["update"] = total - seconds["prepare"]
            records.append(
                record(seconds, total, state["started"], state["lengths"])
                | {"groups_skipped": state["skipped"]}
            )
            begin()

    args = GRPOConfig(**trl_settings(), output_dir=str(folder / "trl"), max_steps=UPDATES * iterations)
    dataset = Dataset.from_list([{"prompt": text} for text in prompts(PROMPTS * iterations)])
    trainer = GRPOTrainer(
        model=str(folder), reward_funcs=reward, args=args, train_dataset=dataset, callbacks=[IterationEnd()]
    )

    def timing(stage):
        return state["clock"].timing(stage)

    time_method(trainer, "_prepare_inputs", lambda: timing("prepare"))
    time_method(trainer, "_generate", lambda: timing("rollout"))
    # under gradient the same method is the update's forward pass
    time_method(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda: nullcontext() if torch.is_grad_enabled() else timing("score"),
    )
    trainer.train()
    return records, imported


def trl_settings() -> dict[str, Any]:
    """GSPO as TRL documents it, with everything else as in `overrides` and our defaults."""
    return {
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        "epsilon": CLIP_LEFT,
        "epsilon_high": CLIP_RIGHT,
        "beta": 0.0,
        "num_generations": ANSWERS,
        "per_device_train_batch_size": PROMPTS * ANSWERS // UPDATES,
        "steps_per_generation": UPDATES,
        "gradient_accumulation_steps": 1,
        "max_completion_length": MAX_NEW,
        "temperature": 1.0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def time_method(owner: Any, name: str, block: Callable[[], Any]) -> None:
    """Run `owner.name` inside `block()` from now on."""
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with block():
            return method(*args, **kwargs)

    setattr(owner, name, timed)


def record(seconds: dict[str, float], total: float, started: float, lengths: Sequence[int]) -> Record:
    """One iteration: seconds by stage and in all, processor seconds since `started`, tokens generated."""
    known = {stage: seconds[stage] for stage in STAGES[:-1]}
    return {
        **known,
        "other": total - sum(known.values()),
        "iteration": total,
        "cpu": time.process_time() - started,
        "tokens_per_second": sum(lengths) / total,
        "mean_length": sum(lengths) / len(lengths),
    }


def peak_gb() -> float:
    """Highest memory of this process so far."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def child(arguments: argparse.Namespace) -> None:
    """What a subprocess does: write the model, or run one side and leave its numbers in a file."""
    if arguments.child == "write":
        write_model(arguments.folder, arguments.lengths)
        return
    side = run_ours if arguments.child == "ours" else run_trl
    records, imported = side(arguments.folder, arguments.threads, 1 + arguments.iterations)
    result = {"records": records[1:], "peak_gb": peak_gb(), "imported_gb": imported}
    arguments.result.write_text(json.dumps(result))


def spawn(work: str, folder: Path, lengths: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `child` in a process of its own and return what it measured. Raises RuntimeError if it fails."""
    result = folder.parent / f"{work}.json"
    command = [sys.executable, __file__, "--child", work, "--folder", str(folder), "--result", str(result)]
    command += ["--lengths", lengths, "--threads", str(arguments.threads)]
    command += ["--iterations", str(arguments.iterations)]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=os.environ | quiet | threads, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{SIDES.get(work, work)} failed:\n{done.stderr[-3000:]}")
    return {} if work == "write" else json.loads(result.read_text())


def measure(lengths: str, arguments: argparse.Namespace) -> dict[str, Record]:
    """Both sides in turn, `repeats` times. -> side -> medians over all iterations"""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        spawn("write", folder, lengths, arguments)
        for repeat in range(arguments.repeats):
            for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
                runs[side].append(spawn(side, folder, lengths, arguments))
                times = ", ".join(f"{r['iteration']:.1f}" for r in runs[side][-1]["records"])
                print(f"{lengths}, {SIDES[side]}, repeat {repeat + 1}: {times} s", file=sys.stderr)
    return {side: summarize(results) for side, results in runs.items()}


def summarize(results: Sequence[dict[str, Any]]) -> Record:
    """Medians over the iterations of all repeats; the highest memory of any."""
    records = [r for result in results for r in result["records"]]
    medians = {name: median(r[name] for r in records) for name in records[0]}
    medians["mean_length"] = sum(r["mean_length"] for r in records) / len(records)
    medians["groups_skipped"] = max(r["groups_skipped"] for r in records)
    totals = [r["iteration"] for r in records]
    return medians | {
        "fastest": min(totals),
        "slowest": max(totals),
        "peak_gb": max(result["peak_gb"] for result in results),
        "imported_gb": median(result["imported_gb"] for result in results),
    }


def table(found: dict[str, Record]) -> list[list[str]]:
    """Rows of label, ours, TRL, and how many times TRL needs what we need."""
    ours, trl = found["ours"], found["trl"]
    rows = [["", *SIDES.values(), "TRL / gspo-cli"]]
    for stage, label in {"iteration": "iteration", **LABELS}.items():
        rows.append(row(f"{label}, s", ours[stage], trl[stage], "{:.2f}", ratio=stage != "other"))
    spans = [f"{side['fastest']:.1f} to {side['slowest']:.1f}" for side in (ours, trl)]
    rows.append(["fastest and slowest iteration, s", *spans, ""])
    rows.append(row("processor time of an iteration, s", ours["cpu"], trl["cpu"], "{:.2f}"))
    name = "tokens_per_second"
    rows.append(["answer tokens per second", *(f"{side[name]:.0f}" for side in (ours, trl)), ""])
    rows.append(row("peak memory, GB", ours["peak_gb"], trl["peak_gb"], "{:.2f}"))
    above = [side["peak_gb"] - side["imported_gb"] for side in (ours, trl)]
    rows.append(row("of which above the imports, GB", *above, "{:.2f}"))
    rows.append(row("mean answer, tokens", ours["mean_length"], trl["mean_length"], "{:.1f}", ratio=False))
    rows.append(row("groups without spread", ours["groups_skipped"], trl["groups_skipped"], "{:.0%}", False))
    return rows


def row(label: str, ours: float, trl: float, form: str, ratio: bool = True) -> list[str]:
    """One line of the table."""
    return [label, form.format(ours), form.format(trl), f"{trl / ours:.2f}" if ratio else ""]


def show(rows: Sequence[Sequence[str]], markdown: bool) -> None:
    """Print the table in columns, or as Markdown."""
    if markdown:
        lines = [*rows[:1], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return
    for first, *others in rows:
        print(f"{first:34}" + "".join(f"{text:>16}" for text in others))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lengths", choices=["fixed", "geometric", "both"], default="both")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on each side")
    parser.add_argument("--repeats", type=int, default=3, help="processes per side")
    parser.add_argument("--iterations", type=int, default=2, help="measured in each process, after one more")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/benchmarks.md")
    parser.add_argument("--child", choices=["write", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.child:
        child(arguments)
        return
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}, {packages}, {arguments.threads} thread(s)")
    for lengths in ["fixed", "geometric"] if arguments.lengths == "both" else [arguments.lengths]:
        found = measure(lengths, arguments)
        print(f"\n{lengths} lengths, medians of {arguments.repeats * arguments.iterations} iterations\n")
        show(table(found), arguments.markdown)


if __name__ == "__main__":
    main()
