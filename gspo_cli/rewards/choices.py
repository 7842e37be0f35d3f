"""The capital letters that a text gives as its answer to a question with choices.

Every function takes time linear in the length of the text.
"""

from __future__ import annotations

import re

from gspo_cli.rewards.answers import HEDGE, PHRASE

# A capital on its own. "I think", "A cat" and "A Tale" are words; "X-ray" and "I'm" are parts of words.
LETTER = (
    r"(?<!\w)(?![AI]\s+(?!(?:is|are|or|and|because|since|as|for|due|by|with)\b)[^\W\d_])"
    r"[A-Z](?!\w|['’-]\w)"
)
# What joins letters: "A or B", "A, B", "(A) or maybe (B)", "A/B", "A. Or B"
JOIN = (
    r"(?:[^\w.]{0,6}(?:or|and|nor|maybe|perhaps|possibly|also|even|either|not|sure)\b"
    r"|\W{1,6}(?i:or|maybe|perhaps|possibly)\b){1,4}[^\w.]{0,6}"
)
MARKS = r"[^\w]{1,6}"
LABEL = r"(?:(?i:the\s+)?(?i:option|choice|letter|answer)\b\W{0,6})?"
OPENING = re.compile(rf"\W*(?:(?:text|math)\w*\{{\W*)?{LABEL}({LETTER})")
# After marks alone a letter is one more choice unless it begins a choice's own text: "B) E. coli"
NEXT = re.compile(rf"(?:{JOIN}{LABEL}({LETTER})|{MARKS}({LETTER})(?![^\w\n]*\s(?!(?:or|and)\b|[A-Z]\b)\w))")
# An alternative further on: "B) Paris or C) Rome", "B, maybe it is C"
LATER = re.compile(
    rf"{HEDGE}\W{{1,3}}(?:[a-z]+\s){{0,3}}\(?({LETTER})[).:]"
    rf"|\b(?:maybe|perhaps|possibly)\b\W{{1,3}}(?:[a-z]+\s){{0,3}}\(?({LETTER})"
)
CHOSEN = re.compile(r"\b(?:option|choice)\s+(?:is|(?:should|must|would)\s+be)\b:?", re.IGNORECASE)
ALONE = re.compile(rf"^[^\w\n]*(?i:answer)[^\w\n]{{1,6}}(?={LETTER}[^\w\n]{{0,6}}$)", re.MULTILINE)
# "option B is correct", "(B) is the right answer"
CALLED_RIGHT = re.compile(r"\bis\s+(?:the\s+)?(?:correct|right|best|answer)\b")
SUBJECT = re.compile(rf"((?:{LETTER}(?:{JOIN}|[^\w.;]{{1,6}}))*{LETTER})[^\w.;]*$")
# "B", "(B)", "B. Paris", "**B**" at the start of a line; "\text{B}" in a box
FOLLOWED = re.compile(r"\s*(?:$|[)\].:,;}*\"'’”`$/-]|(?:or|and|maybe|perhaps)\b)")
LONE = re.compile(rf"\W*{LABEL}[A-Z]\W*")


def given_letters(text: str) -> set[str]:
    """The letters after phrases such as "Answer: B", or said to be correct; without such phrases those that
    begin its lines, or its last line alone where this is nothing but a letter."""
    ends = sorted({found.end() for pattern in (PHRASE, CHOSEN, ALONE) for found in pattern.finditer(text)})
    pieces = [text[start:end] for start, end in zip(ends, [*ends[1:], len(text)], strict=False)]
    letters = set().union(*map(_letters, pieces), _called_right(text))
    if letters:
        return letters
    lines = text.splitlines()
    if lines and LONE.fullmatch(lines[-1]):
        lines = lines[-1:]
    return set().union(*map(leading_letters, lines))


def leading_letters(line: str) -> set[str]:
    """The letters that a line begins with, as "B. Paris" does; none where it begins with prose."""
    found = OPENING.match(line)
    return _letters(line) if found and FOLLOWED.match(line, found.end()) else set()


def _letters(text: str) -> set[str]:
    """The letter that the text begins with, and those joined to it; a choice's own text is not read."""
    found = OPENING.match(text)
    if not found:
        return set()
    letters, place = {found[1]}, found.end()
    while following := NEXT.match(text, place):
        letters.add(following[1] or following[2])
        place = following.end()
    rest = text[place:].lstrip().partition("\n")[0]
    return letters.union(*(later.groups() for later in LATER.finditer(rest))) - {None}


def _called_right(text: str) -> set[str]:
    """Letters right before "is correct" and the like."""
    before = [text[max(0, found.start() - 40) : found.start()] for found in CALLED_RIGHT.finditer(text)]
    subjects = [found[1] for each in before if (found := SUBJECT.search(each))]
    return {letter for subject in subjects for letter in re.findall(r"\b[A-Z]\b", subject)}
