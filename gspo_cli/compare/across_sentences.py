"""The sentences of a summary across tasks and models: its headline, its numbers, its methods. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gspo_cli.compare.contrasts import p_phrase
from gspo_cli.compare.result import ArmAcross, Comparison, Verdict, value_text
from gspo_cli.console.words import counted, number


def numbers_in_words(found: ArmAcross, values: Mapping[str, float], of: int) -> str:
    """What the sections say in numbers: mean, range, and in how many the arm is higher."""
    count = len(values)
    if count < 2:
        return f"{counted(count, 'section')} of {of} can be counted"
    low, high = min(values, key=lambda s: values[s]), max(values, key=lambda s: values[s])
    ends = f"go from {value_text(values[low])} ({low}) to {value_text(values[high])} ({high})"
    same = values[low] == values[high]
    parts = [f"the differences in held-out score {f'are all {value_text(values[low])}' if same else ends}"]
    if found.mean.value is not None:
        adjusted = "adjusted " * (found.p_adjusted != found.p)
        p = "the same in all: no interval" if found.p is None else f"{adjusted}{p_phrase(found.p_adjusted)}"
        parts.insert(0, f"the mean difference over {count} sections is {found.mean} ({p})")
    if found.further is not None:
        between = f"{value_text(found.further.low)} and {value_text(found.further.high)}"
        parts.append(f"a further section like these would show one between {between} (prediction interval)")
    signs = f"{found.arm_name} is higher in {found.higher} of {count} sections"
    signs += f" and lower in {found.lower}" if found.lower else ""
    return "; ".join([*parts, f"{signs} (exact sign test, p = {number(found.p_sign, 2)})"])


def headline(arms: Sequence[ArmAcross], single: Sequence[str], fewest: int, level: float) -> list[str]:
    """A verdict for each arm, then the numbers, and what a sign test over so few sections cannot do."""
    if not arms:
        return ["No two algorithms are compared in more than one section: each section stands alone."]
    verdicts = [_verdict(each) for each in arms if each.p_adjusted is not None]
    without: dict[tuple[str, str], list[str]] = {}
    for each in arms:
        if each.p_adjusted is None:
            without.setdefault((each.baseline_name, _no_average(each, fewest)), []).append(each.arm_name)
    verdicts += [
        f"{', '.join(names)} against {baseline}: {why}." for (baseline, why), names in without.items()
    ]
    found = [" ".join(verdicts)]
    found += [f"{each.arm_name} against {each.baseline_name}: {each.sentence}." for each in arms]
    needed = next(n for n in range(1, 10_000) if 2 * 0.5**n < 1 - level)
    if any(each.p_sign is not None and each.higher + each.lower < needed for each in arms):
        found.append(f"With fewer than {needed} sections no sign test can be significant at {1 - level:.2g}.")
    if single:
        found.append(f"In one section only: {', '.join(single)}.")
    return found


def _verdict(each: ArmAcross) -> str:
    arm, baseline, count = each.arm_name, each.baseline_name, len(each.sections)
    if each.verdict is Verdict.not_distinguishable:
        return f"{arm} and {baseline} are not distinguishable by held-out score over {count} sections."
    score = f"{each.verdict.value} held-out score"
    return f"{arm} has a {score} than {baseline} on average over {count} sections."


def _no_average(each: ArmAcross, fewest: int) -> str:
    """Why an arm has no verdict across sections."""
    count = len(each.sections)
    if each.mean.value is not None:
        return f"the same difference in all {count} sections, so no verdict"
    if each.p_sign is None and count > 1:
        return "no average over sections, as their settings differ"
    return f"no average over sections; {counted(count, 'section')} can be counted, and it takes {fewest}"


def title(comparisons: Sequence[Comparison]) -> str:
    """The arms of all sections, and how many tasks and models there are."""
    arms = list(dict.fromkeys(arm.name for each in comparisons for arm in each.arms))
    tasks = {each.task for each in comparisons}
    models = {each.title.partition(f" on {each.task}, model ")[2] for each in comparisons}
    return (
        f"{', '.join(arms[:-1])} and {arms[-1]} on {counted(len(tasks), 'task')} and "
        f"{counted(len(models), 'model')}"
    )


def methods(level: float, fewest: int, tuned: Sequence[str]) -> list[str]:
    """How the numbers across sections are computed. An average takes `fewest` sections; the settings `tuned`
    may differ between them."""
    return [
        "Each section is the comparison that its runs would give alone. Scores of different tasks or models "
        "are never pooled.",
        "Counted across sections: the difference in held-out score between the same two algorithms, where "
        f"the section has a verdict and something was learned. {', '.join(tuned)} may differ between "
        "sections, as they are tuned or calibrated for each; all other settings of the two algorithms must "
        "be the same.",
        f"The average takes {fewest} sections. They count alike and are the sample of a t test "
        "(scipy.stats.ttest_1samp; p adjusted over algorithms), so that what varies between tasks and models "
        "widens the interval. They are not weighted by their variances: a few seeds do not measure those "
        "well enough, and the interval would be too narrow.",
        f"The prediction interval, at level {level:g}, is where the difference of one more section of the "
        "same kind would lie. Sections that you chose are no random sample: the average is about tasks and "
        "models like these.",
        "Sign test: scipy.stats.binomtest over sections, not adjusted; equal scores are not counted.",
    ]
