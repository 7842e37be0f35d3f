"""The rules about answers, and about memory: see `rules` for those about rewards and updates.

Whether something is a collapse depends on the reward: a policy that becomes certain, long or far from its
reference while its reward rises is learning. Where no absolute bound makes sense, metrics are compared with
the first iteration, whose answers are those of the model before training."""

from __future__ import annotations

from statistics import fmean

from gspo_cli.config.choices import AdvantageParts
from gspo_cli.console.words import counted, number
from gspo_cli.diagnosis.history import (
    LASTING,
    WINDOW,
    Finding,
    History,
    Record,
    Severity,
    nearer,
    number_of,
    slower,
)

ENTROPY_LEFT = 0.1  # share of the first iteration's
ENTROPY_GONE = 0.05  # nats per token: nearly every token is certain
LONGER = 2.0  # times the first iteration's mean length
LONG = 256  # tokens: a length curriculum of shorter answers saves little
TRUNCATED = 0.5  # share of answers that were truncated: most rewards then depend on the cap
REPEATED = 0.5  # share of 4-grams; prose has under 0.1
KL_FAR = 1.0  # nats per token: the reference gives a sampled token a third of its probability
KL_GROWTH = 10.0  # times the mean of the window before
KL_SEEN = 0.1  # nats per token; below this, growth is the normal start from 0


def entropy_gone(run: History) -> Finding | None:
    """The policy is certain of nearly every token and has not learned: it no longer explores."""
    first = run.first("entropy")
    # on answers of others, entropy is not what is explored
    if first is None or run.reward_rises or run.config.algorithm.pairs is not None:
        return None
    bound = min(ENTROPY_GONE, ENTROPY_LEFT * first)
    since = run.since(lambda record: (value := number_of(record, "entropy")) is not None and value < bound)
    if since is None:
        return None
    return Finding(
        "entropy_gone",
        Severity.collapse,
        f"entropy fell from {number(first)} to {number(run.last('entropy'))} nats per token and the "
        "reward does not rise",
        f"use {slower(run)}; {nearer(run.config)} keeps the policy near its reference",
        since,
        (slower(run), nearer(run.config)) if run.config.algorithm.beta == 0 else (slower(run),),
    )


def length_runaway(run: History) -> Finding | None:
    """Answers are twice as long as at first and mostly truncated, without more reward."""
    first = run.first("completions/mean_length")
    if first is None or run.reward_rises or _cap_grows(run):
        return None

    def runs_away(record: Record) -> bool:
        length = number_of(record, "completions/mean_length") or 0.0
        return length >= LONGER * first and (_truncated_share(record) or 0.0) > TRUNCATED

    since = run.since(runs_away)
    if since is None:
        return None
    length, cut = run.last("completions/mean_length"), run.last("completions/clipped_ratio") or 0.0
    algorithm = run.config.algorithm
    penalized = algorithm.overlong_buffer > 0 or algorithm.advantage_parts is AdvantageParts.each
    settings = (slower(run), *([] if penalized else ["algorithm.truncated_completions=penalise"]))
    return Finding(
        "length_runaway",
        Severity.collapse,
        f"the mean length went from {number(first)} to {number(length)} tokens, {cut:.0%} of answers "
        "are truncated and the reward does not rise",
        f"use {' and '.join(settings)}",
        since,
        settings,
    )


def truncation(run: History) -> Finding | None:
    """Most answers are truncated."""
    since = run.above("completions/clipped_ratio", TRUNCATED)
    if since is None or _cap_grows(run) or length_runaway(run):
        return None
    cap = run.config.rollout.max_completion_length
    longer = f"rollout.max_completion_length={2 * cap}"
    grows = f"training.length_curriculum_start={cap // 4}"
    early = cap >= LONG and since <= LASTING and run.config.training.length_curriculum_start is None
    return Finding(
        "truncation",
        Severity.warning,
        f"{run.last('completions/clipped_ratio') or 0.0:.0%} of answers are truncated at {cap} "
        "tokens: they are scored before they end",
        f"use {longer}, or algorithm.truncated_completions=mask"
        + (f"; where answers need not be so long, {grows} makes the first iterations cheaper" * early),
        since,
        (longer,),
    )


def repetition(run: History) -> Finding | None:
    """Answers repeat themselves."""
    first = run.first("completions/repetition")
    if first is None:
        return None
    since = run.above("completions/repetition", max(REPEATED, 2 * first))
    if since is None:
        return None
    return Finding(
        "repetition",
        Severity.warning if run.reward_rises else Severity.collapse,
        f"{run.last('completions/repetition') or 0.0:.0%} of the 4-grams in answers are repeated, "
        f"up from {first:.0%} at first",
        f"use {slower(run)}, or a reward that does not reward repetition",
        since,
        (slower(run),),
    )


def kl_far(run: History) -> Finding | None:
    """The policy is far from its reference, or suddenly moves away from it. The KL is only logged with a
    penalty."""
    values = run.values("kl")
    since = run.above("kl", KL_FAR)
    before, newest = values[-WINDOW - LASTING : -LASTING], values[-LASTING:]
    jumps = len(before) == WINDOW and min(newest) > max(KL_SEEN, KL_GROWTH * fmean(before))
    if since is None and not jumps:
        return None
    beta = nearer(run.config)
    lost = since is not None and not run.reward_rises
    return Finding(
        "kl_far",
        Severity.collapse if lost else Severity.warning,
        f"the KL to the reference is {number(values[-1])} nats per token"
        + (f", {number(fmean(before))} shortly before" if jumps else ""),
        f"use {beta} or {slower(run)}",
        run.iteration - LASTING + 1 if since is None else since,
        (beta,),
    )


def excluded(run: History) -> Finding | None:
    """Answers without a reward, which are not trained on."""
    left_out = [record for record in run.records if number_of(record, "excluded")]
    if not left_out:
        return None
    count = round(sum(number_of(record, "excluded") or 0.0 for record in left_out))
    return Finding(
        "excluded",
        Severity.warning,
        f"some answers were left out of training ({count} in {len(left_out)} iterations)",
        "see `excluded` in samples.jsonl for the reason, and fix the reward or the environment",
        left_out[0]["iteration"],
    )


def out_of_memory(run: History) -> Finding | None:
    """Micro-batches had to be halved during training."""
    short = [record for record in run.everything if number_of(record, "oom_events")]
    if not short:
        return None
    count = round(sum(number_of(record, "oom_events") or 0.0 for record in short))
    asked = run.config.hardware.tokens_per_microbatch
    left = number_of(short[-1], "tokens_per_microbatch") or asked / 2**count
    setting = f"hardware.tokens_per_microbatch={max(1, int(left))}"
    return Finding(
        "out_of_memory",
        Severity.warning,
        f"memory ran out {counted(count, 'time')} in updates: micro-batches shrank from {asked} to "
        f"{left:.0f} tokens",
        f"use {setting} from the start",
        short[0]["iteration"],
        (setting,),
    )


def _truncated_share(record: Record) -> float | None:
    return number_of(record, "completions/clipped_ratio")


def _cap_grows(run: History) -> bool:
    """Whether the length curriculum is still in progress: its answers are meant to be truncated."""
    start = run.config.training.length_curriculum_start
    return start is not None and run.iteration <= run.config.training.length_curriculum_iterations
