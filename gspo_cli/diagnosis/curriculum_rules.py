"""The rules about curricula: whether a level of difficulty rises when it should, and whether answers should
have been shorter at first. Pure; see `rules`."""

from __future__ import annotations

from gspo_cli.console.words import number
from gspo_cli.diagnosis.answer_rules import LONG, TRUNCATED
from gspo_cli.diagnosis.history import (
    WINDOW,
    Finding,
    History,
    Record,
    Severity,
    mean_of,
    number_of,
)
from gspo_cli.run.summary import score_error

EVALUATIONS = 4  # at a level, before it is called stuck
NEWEST = 2  # of them, which are no better than those before
NEAR = 0.5  # share of the threshold from which on a lower one helps
LEARNED = 0.5  # share of the threshold that a new level should reach
HIGHEST = 0.95  # threshold that is suggested
SHORTER = 0.5  # of the first lengths

SCORE, LEVEL, TARGET = "curriculum/score", "curriculum/level", "curriculum/target"


def curriculum_stuck(run: History) -> Finding | None:
    """The level does not rise: the score on its own held-out problems is below the threshold, and no longer
    improves."""
    scored = _at_level(run)
    if len(scored) < EVALUATIONS or scored[-1][LEVEL] == number_of(scored[-1], TARGET):
        return None
    before, newest = scored[:-NEWEST], scored[-NEWEST:]
    best = max(before, key=lambda record: record[SCORE])
    reached = max(record[SCORE] for record in newest)
    if reached > best[SCORE] + score_error({**best, "score": best[SCORE]}):
        return None
    level, wanted = scored[-1][LEVEL], run.config.training.difficulty_curriculum_raise_at
    top = max(reached, best[SCORE])
    if top >= NEAR * wanted:
        settings = [f"training.difficulty_curriculum_raise_at={int(90 * top) / 100:g}"]
        fix = f"use {settings[0]}, which it reaches"
    else:
        settings = [f"training.num_generations={2 * run.config.training.num_generations}"]
        cold = run.config.model.cold_start
        if cold.stop_score is not None:
            settings.append(f"model.cold_start.stop_score={min(0.9, 2 * cold.stop_score):g}")
        fix = f"the level itself is not learned: use {', '.join(settings)}, or a lower level to start with"
    return Finding(
        "curriculum_stuck",
        Severity.warning,
        f"the curriculum is stuck at level {level}: in {len(scored)} evaluations its held-out score was at "
        f"most {top:.3f}, below training.difficulty_curriculum_raise_at={wanted:g}, and it does not improve",
        fix,
        best["iteration"],
        tuple(settings),
    )


def curriculum_ahead(run: History) -> Finding | None:
    """The level rose too early: the new one is not learned."""
    scored, records = _at_level(run), run.level_records
    wanted = run.config.training.difficulty_curriculum_raise_at
    higher = min(HIGHEST, (1 + wanted) / 2)
    if len(records) < 2 * WINDOW or len(records) == len(run.records) or not scored or higher <= wanted:
        return None
    first, last = records[:WINDOW], records[-WINDOW:]
    chance = run.reward_error(first) + run.reward_error(last)
    before, after = mean_of(first, "reward"), mean_of(last, "reward")
    if after > before + chance or scored[-1][SCORE] >= LEARNED * wanted:
        return None
    setting = f"training.difficulty_curriculum_raise_at={higher:.2g}"
    return Finding(
        "curriculum_ahead",
        Severity.warning,
        f"the curriculum rose too early: {len(records)} iterations after it rose to level "
        f"{scored[-1][LEVEL]}, the reward there does not rise ({number(before)} to {number(after)}) and the "
        f"held-out score of the level is {scored[-1][SCORE]:.3f}",
        f"use {setting}, so that a level is learned before the next",
        records[0]["iteration"],
        (setting,),
    )


def long_start(run: History) -> Finding | None:
    """At first most answers were long and truncated, and those of today are short: shorter ones would have
    done from the start."""
    cap, first, last = run.config.rollout.max_completion_length, run.records[:WINDOW], run.records[-WINDOW:]
    if run.config.training.length_curriculum_start is not None or cap < LONG or len(run.records) < 2 * WINDOW:
        return None
    cut, length = "completions/clipped_ratio", "completions/mean_length"
    if any(number_of(record, name) is None for record in (*first, *last) for name in (cut, length)):
        return None
    short = mean_of(last, length)
    if mean_of(first, cut) <= TRUNCATED or mean_of(last, cut) > TRUNCATED / 2:
        return None
    if short > SHORTER * mean_of(first, length) or not run.reward_rises:
        return None
    settings = (
        f"training.length_curriculum_start={max(LONG // 4, round(2 * short))}",
        f"training.length_curriculum_iterations={max(WINDOW, run.iteration // 2)}",
    )
    return Finding(
        "long_start",
        Severity.note,
        f"{mean_of(first, cut):.0%} of the first answers were truncated at {cap} tokens, and those of today "
        f"have {number(short)}: most of the sampling of the first iterations was wasted",
        f"use {' '.join(settings)}",
        first[0]["iteration"],
        settings,
    )


def _at_level(run: History) -> list[Record]:
    """The newest evaluations at one level, with the score on its problems."""
    found: list[Record] = []
    for record in reversed(run.evals):
        if number_of(record, SCORE) is None or (found and record[LEVEL] != found[-1][LEVEL]):
            break
        found.append(record)
    return found[::-1]
