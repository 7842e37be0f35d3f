"""README.md of an exported model: what was trained, how, with which result, and how to use it.

It is written from what the run stored. Folders of the machine that trained it are named by their last part
only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gspo_cli.config.compose import load_saved
from gspo_cli.config.formulas import advantage_formula, formula, mean_formula, ratio_formula, value_formula
from gspo_cli.config.schema import RunConfig
from gspo_cli.console.words import number
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import read_summary
from gspo_cli.sources import EMBEDDED, ModelSource, is_run, run_of
from gspo_cli.training.export import Fidelity
from gspo_cli.user_cache import cache_folder

EMBEDDED_NAME = "an embedded model of gspo-cli"
SHOWN = 1500  # characters of the example prompt
PLAIN_USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")"""
ADAPTER_USE = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")"""


def model_card(
    source: ModelSource,
    config: RunConfig | None,
    run: RunFolder | None,
    fidelity: Fidelity | None,
    prompt: str | None,
) -> str:
    """The card of an export of `source`, made by `run` where there is one; `fidelity` None for an adapter
    alone."""
    base = base_name(source, config)
    parts = [_front_matter(base, fidelity), f"# {_title(config, base)}\n"]
    if config is not None and run is not None:
        parts += [_trained(config, run, source, base), _results(run, source)]
    else:
        parts.append(
            f"A LoRA adapter over {base}, exported by gspo-cli; what trained it is not recorded here.\n"
        )
    if fidelity is not None:
        parts.append(_fidelity(fidelity))
    parts.append(_use(base, fidelity, prompt))
    return "\n".join(parts)


def base_name(source: ModelSource, config: RunConfig | None) -> str:
    """The pretrained model in public words: a hub id, or the last part of a path."""
    return _pretrained(source.base if config is None else config.model.base or config.model.name)


def _pretrained(name: str) -> str:
    """`name`, or what the run that made a folder of this name started from."""
    path = Path(name)
    run = path.parent if path.name == "initial_model" and is_run(path.parent) else run_of(path)
    if name == EMBEDDED:
        return EMBEDDED_NAME
    if path.exists() and run is not None:
        model = load_saved(run / "config.yaml").model
        return _pretrained(str(model.get("base") or model.name))
    fetched = path.parent == cache_folder("models")
    return path.name.replace("--", "/", 1) if fetched else path.name if path.exists() else name


def _front_matter(base: str, fidelity: Fidelity | None) -> str:
    lines = ["---", f"library_name: {'peft' if fidelity is None else 'transformers'}"]
    if "/" in base:
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join(
        [*lines, "pipeline_tag: text-generation", "tags: [gspo-cli, reinforcement-learning]", "---\n"]
    )


def _title(config: RunConfig | None, base: str) -> str:
    return base if config is None else f"{base}, trained with {config.algorithm.name} on {config.task.name}"


def _trained(config: RunConfig, run: RunFolder, source: ModelSource, base: str) -> str:
    algorithm, training, model = config.algorithm, config.training, config.model
    summary = read_summary(run.path) or {}
    earlier = run_of(Path(model.name))
    lora = f"LoRA, rank {model.lora_r}, alpha {model.lora_alpha}" if model.use_lora else "all weights"
    cold = model.cold_start.steps
    passes = f" in {training.passes} passes" if training.passes > 1 else ""
    passes += f", ended early at a KL of {training.target_kl:g}" if training.target_kl else ""
    facts = {
        "base model": base,
        "started from": "the base model's weights" if earlier is None else _earlier(earlier, model.name),
        "cold start": f"{cold} steps on demonstrations, at most" if cold else "none",
        "weights trained": lora,
        "algorithm": algorithm.name,
        "maximized": f"{formula(algorithm)} ({mean_formula(algorithm)})",
        "ratio": ratio_formula(algorithm),
        "clip calibration": f"to {algorithm.clip_fraction:g} of tokens" if algorithm.is_calibrated else "",
        "advantage": advantage_formula(algorithm),
        "value head": f"{value_formula(algorithm)}; not exported" if algorithm.has_critic else "",
        "learning rate": f"{algorithm.learning_rate:g}",
        "KL coefficient": "" if algorithm.in_pairs else f"{algorithm.beta:g}",
        "iteration": f"{training.prompts_per_iteration} prompts x {training.num_generations} answers, "
        f"{training.updates_per_iteration} updates{passes}",
        "checkpoint": _checkpoint(source),
        "sampled tokens": number(summary.get("num_tokens") or 0),
        "seed": str(config.seed),
        "task": config.task.name,
        "task data": f"{config.task.source} (license: {config.task.license})",
        "versions": _versions(summary),
    }
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items() if value)
    licensed = "" if base == EMBEDDED_NAME else "\nThe license of the base model applies.\n"
    return f"## Training\n\n| what | value |\n|---|---|\n{rows}\n{licensed}"


def _earlier(run: Path, name: str) -> str:
    saved = load_saved(run / "config.yaml")
    return f"{Path(name).name} of an earlier run, {saved.algorithm.name} on {saved.task.name}"


def _checkpoint(source: ModelSource) -> str:
    name = Path(source.place).name
    return f"iteration {int(name.rpartition('-')[2])}" if name.startswith("iteration-") else "before training"


def _versions(summary: Mapping[str, Any]) -> str:
    found = summary.get("versions") or {}
    return ", ".join(f"{name} {value}" for name, value in found.items() if value) or "not recorded"


def _results(run: RunFolder, source: ModelSource) -> str:
    records = {record["iteration"]: record for record in run.read("evals.jsonl")}
    name = Path(source.place).name
    reached = int(name.rpartition("-")[2]) if name.startswith("iteration-") else 0
    if 0 not in records and reached not in records:
        return "## Results\n\nNo held-out evaluation of this checkpoint was recorded.\n"
    before, after = records.get(0, {}), records.get(reached, {})
    measures = [
        key for key in {**before, **after} if key == "score" or key.startswith("pass@") or key == "kl"
    ]
    names = {"score": "held-out score, greedy", "kl": "KL to the model before training, nats per token"}
    rows = [
        f"| {names.get(key, f'held-out {key}')} | {_value(before.get(key))} | {_value(after.get(key))} |"
        for key in measures
    ]
    problems = (after or before).get("num_problems", 0)
    return (
        f"## Results\n\n| on {problems} held-out problems | before | this checkpoint |\n|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _fidelity(fidelity: Fidelity) -> str:
    return (
        "## Export\n\n"
        f"Saved in {fidelity.dtype}. Against the policy in fp32, over {fidelity.tokens} tokens of its greedy "
        f"answers to {fidelity.answers} prompts: KL {fidelity.kl:.2g} nats per token, the same most likely "
        f"token at {fidelity.same_tokens} places, the same greedy answer to {fidelity.same_answers} prompts. "
        f"Merged in fp32, its logits differ by at most {fidelity.merge_error:.1g} of their range.\n"
    )


def _use(base: str, fidelity: Fidelity | None, prompt: str | None) -> str:
    code = ADAPTER_USE.format(base=base) if fidelity is None else PLAIN_USE
    text = f"## Use\n\n```python\n{code}\n```\n"
    if prompt is not None:
        shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]} [...]"
        fence = "`" * max(3, 1 + max((len(run) for run in _backticks(shown)), default=0))
        text += f"\nA prompt as the model knows it from training:\n\n{fence}text\n{shown}\n{fence}\n"
    return text


def _backticks(text: str) -> list[str]:
    return ["".join(part) for part in "".join(c if c == "`" else " " for c in text).split()]


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "not measured"


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")
