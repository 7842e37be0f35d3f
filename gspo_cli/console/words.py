"""Human-readable texts about a run: numbers, a summary in sentences, the next commands. Pure, free of
torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from gspo_cli.config.trust import OBJECT
from gspo_cli.config.typed import override
from gspo_cli.run.summary import RunStatus, score_error

Record = Mapping[str, Any]

MISSING = "–"
BLOCKS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """45s, 1m 20s, 2h 05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def quantity(value: float) -> str:
    """912, 8.1k, 2.3M, 1.5B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def counted(count: int, noun: str) -> str:
    """1 job, 2 jobs."""
    return f"{count} {noun}{'s' * (count != 1)}"


def clean(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal would interpret."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def tail(text: str, width: int) -> str:
    """The end of `text` in at most `width` terminal cells, with … where something is missing."""
    if cell_len(text) <= width:
        return text
    text = text[-width:]
    while cell_len(text) > width - 1:
        text = text[1:]
    return "…" + text


def share(value: float | None) -> str:
    """Three decimals, or two digits where those are lost."""
    return number(value, 2) if value is not None and 0 < value < 0.01 else fixed(value)


def sparkline(values: Sequence[float], width: int) -> str:
    """The whole history, lowest value ▁ to highest █; means of bins where it is longer than `width`."""
    bins = min(width, len(values))
    edges = [i * len(values) // bins for i in range(bins + 1)] if bins else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without noise: 0.036, 12.3, 1e-4, 8.1k; – where there is none."""
    if value is None:
        return MISSING
    if abs(value) >= 1000:
        return quantity(value)
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}"


def fixed(value: float | None, decimals: int = 3) -> str:
    """A fixed number of decimals, or –."""
    return MISSING if value is None else f"{value:.{decimals}f}"


def at_level(record: Record) -> str:
    """The level of a curriculum and the score on its own problems; empty where there is none."""
    level = record.get("curriculum/level")
    return "" if level is None else f"level {level} {fixed(record.get('curriculum/score'))}"


def why_zero(metrics: Record) -> str:
    """Why this iteration's loss or clip share may be 0; empty if there is no reason. With a value
    head or pairs the loss is not 0 with one update either."""
    if metrics.get("frac_reward_zero_std") == 1:
        return "all groups have zero variance: nothing to learn from this batch"
    if metrics.get("updates") == 1 and not {"value/loss", "preference/pairs"} & metrics.keys():
        return "one update per rollout: the ratio is 1, nothing can clip"
    return ""


def describe(summary: Record) -> list[str]:
    """What happened, in one sentence each: how the run ended, held-out score, best evaluation, training
    reward, cost."""
    first, last = _scored(summary["initial_eval"]), _scored(summary["final_eval"])
    sentences = [_ending(summary), _held_out_change(first, last)]
    if first is not None and last is not None and first["iteration"] != last["iteration"]:
        sentences += _pass_at_k(first, last) + _best(first, last, _scored(summary["best_eval"]))
    sentences += _curriculum(summary["final_eval"] or {})
    before, after = summary["first_reward"], summary["last_reward"]
    if before is not None and after is not None:
        course = f"went from {before:.3f} to {after:.3f}" if summary["iterations"] > 1 else f"was {after:.3f}"
        sentences.append(f"Training reward {course}.")
    if summary.get("last_accuracy") is not None:
        before, after = summary["first_accuracy"], summary["last_accuracy"]
        sentences.append(f"The share of pairs in the right order went from {before:.3f} to {after:.3f}.")
    done = "were sampled" if summary.get("pairs") is None else "of the answers of pairs were trained on"
    tokens, time = quantity(summary["num_tokens"]), duration(summary["wall_seconds"])
    return [*sentences, f"{tokens} tokens {done}; the run took {time}."]


def next_commands(summary: Record) -> list[tuple[str, str]]:
    """(command, why) in the order of use, only those that make sense after a run that ended this way. No
    command can train with a reward object from a script; evaluation uses the task's own reward. None can find
    an agent that is an object of a script: what is left is to talk to the model."""
    run = _relative(Path(summary["run_folder"]))
    if any(OBJECT in text and "task.agent=" in text for text in summary.get("overrides") or ()):
        return [(f"gspo-chat {shlex.quote(run)}", "talk to the model")] if summary["iterations"] else []
    commands = []
    if summary["status"] == RunStatus.collapsed:
        commands.append((f"gspo-doctor {shlex.quote(run)}", "see what went wrong, and what to change"))
    if summary["iterations"] > 0:
        evaluate, why = f"gspo-eval {shlex.quote(run)}", "measure its checkpoints on held-out problems"
        if summary["reward_object"]:
            evaluate, why = f"{evaluate} reward=null", f"{why}, by the task's own reward"
        commands.append((evaluate, why))
        commands.append((f"gspo-chat {shlex.quote(run)}", "talk to it; --watch 3 shows three conversations"))
    if summary["reward_object"]:
        return commands
    return commands + _continue(summary, f"gspo-train {override('resume', run)}") + _partner(summary)


def _continue(summary: Record, resume: str) -> list[tuple[str, str]]:
    status, total = summary["status"], summary["total_iterations"]
    if status == RunStatus.completed:
        why = f"continue training, to iteration {2 * total}"
        return [(f"{resume} training.num_outer_iterations={2 * total}", why)]
    if status == RunStatus.stopped_early:
        why = f"continue training to iteration {total}, past where it stopped"
        return [(f"{resume} evaluation.stop_at_score=null", why)]
    if status == RunStatus.collapsed:
        why = "return to the checkpoint before the collapse and continue with a lower learning rate"
        return [(f"{resume} training.on_collapse=rollback", why)]
    cause = "once the cause is removed, " if status == RunStatus.failed else ""
    return [(resume, f"{cause}continue from its last checkpoint")]


def _partner(summary: Record) -> list[tuple[str, str]]:
    if summary["status"] not in (RunStatus.completed, RunStatus.stopped_early):
        return []
    algorithm, given = summary["algorithm"], summary.get("overrides")
    own = [override(key, str(summary[key])) for key in ("task", "model")] if given is None else given
    other = "gspo" if algorithm == "grpo" else "grpo"
    once = "training.updates_per_rollout=1" in own and not any(t.startswith("training.passes=") for t in own)
    if once and algorithm not in ("ppo", "a2c", "dpo"):
        return []  # algorithms that differ by their ratio do not differ then, and gspo-compare refuses
    if once or "training.num_generations=1" in own:  # which a value head alone allows
        other = "a2c" if algorithm == "ppo" else "ppo"
    why = f"compare it with {other} over 3 seeds each"
    if given is None:
        why += "; add your other settings"
    of_algorithm = [text for text in own if text.startswith(("algorithm=", "algorithm."))]
    named = [algorithm, *(t for t in of_algorithm if t.startswith("algorithm."))]
    sampled = [text for text in named if not text.startswith("algorithm.pairs=")]
    if sampled != named:
        other, why = " ".join(sampled), "compare it with pairs of the model's own answers over 3 seeds each"
    arms = ",".join(json.dumps(arm) if " " in arm else arm for arm in (" ".join(named), other))
    shared = [text for text in own if text not in of_algorithm]
    return [(" ".join(["gspo-compare", *shared, shlex.quote(f"compare.algorithms=[{arms}]")]), why)]


def _ending(summary: Record) -> str:
    run = f"{summary['algorithm']} on {summary['task']}, model {summary['model']}, seed {summary['seed']}"
    done = f"{summary['iterations']} of {summary['total_iterations']} iterations"
    return {
        RunStatus.completed: f"Completed {done}: {run}.",
        RunStatus.interrupted: f"Interrupted after {done}: {run}.",
        RunStatus.stopped_early: f"Stopped early after {done}: {run}.",
        RunStatus.collapsed: f"Stopped after {done}, because the policy collapsed: {run}.",
        RunStatus.failed: f"Failed after {done}: {run}.",
    }[summary["status"]]


def _held_out_change(first: Record | None, last: Record | None) -> str:
    """The change of the held-out score, compared with its sampling error."""
    known = first or last
    if known is None:
        return "There was no held-out evaluation: performance on problems outside training is unknown."
    if first is None or last is None or first["iteration"] == last["iteration"]:
        at = f"at iteration {known['iteration']}: {known['score']:.3f} on {known['num_problems']} problems"
        return f"One held-out evaluation, {at}; there is no other evaluation to compare it with."
    before, after, on = first["score"], last["score"], f"on {last['num_problems']} problems"
    if before == after:
        return f"Held-out score did not improve: {after:.3f} before and after, {on}."
    span = f"from {before:.3f} to {after:.3f} {on}"
    noise = 2 * math.hypot(score_error(first), score_error(last))
    if abs(after - before) <= noise:
        return f"Held-out score went {span}: within noise (two standard errors are {noise:.3f})."
    return f"Held-out score rose {span}." if after > before else f"Held-out score fell {span}: it got worse."


def _pass_at_k(first: Record, last: Record) -> list[str]:
    shared = [key for key in first if key.startswith("pass@") and None not in (first[key], last.get(key))]
    shared.sort(key=lambda key: int(key.removeprefix("pass@")))
    return [f"{key} went from {first[key]:.3f} to {last[key]:.3f}." for key in shared[-1:]]


def _best(first: Record, last: Record, best: Record | None) -> list[str]:
    if best is None:
        return []
    if best["score"] <= first["score"]:
        return [f"No held-out score was above the one before training, {first['score']:.3f}."]
    if best["score"] <= last["score"]:
        return [f"The last evaluation, at iteration {last['iteration']}, is the best."]
    return [f"The best evaluation was {best['score']:.3f} at iteration {best['iteration']}."]


def _curriculum(last: Record) -> list[str]:
    level, target = last.get("curriculum/level"), last.get("curriculum/target")
    if level is None:
        return []
    if level == target:
        return [f"The curriculum reached its last level, {target}."]
    score = fixed(last.get("curriculum/score"))
    return [f"The curriculum ended at level {level} of {target}, whose own held-out score is {score}."]


def _scored(record: Record | None) -> Record | None:
    return None if record is None or record["score"] is None else record


def _relative(folder: Path) -> str:
    folder, here = folder.absolute(), Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
