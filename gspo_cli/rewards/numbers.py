r"""Numbers as people and models write them: `$1,200`, `1 200`, `3\frac{1}{2}`, `5 \times 10^3`, `1e-5`.

A number is read whole or not at all: no digits of an exponent, of a unit such as m2, or of a fraction's half
are a number of their own. Every function takes time linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from gspo_cli.errors import UserError
from gspo_cli.rewards.answers import HEDGE

LONGEST = 1_000  # characters of one number
DIGITS = 5_000  # of a power
COMMANDS = r"(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)"
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
# (pattern, replacement), in this order: LaTeX and Unicode become plain text
PLAIN_FORMS = (
    (re.compile("[⁰¹²³⁴-⁹⁻]+"), lambda found: f"^{found[0].translate(SUPERSCRIPTS)}"),
    (re.compile("[¼-¾⅐-⅞]"), lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("⁄", "/")),
    (re.compile(rf"(\\{COMMANDS}\s?\{{[^{{}}]*[A-Za-z]\s?\}})\s?\^\s?\{{?-?[0-9]+\}}?"), r"\1 "),  # of a unit
    (re.compile(r"([A-Za-z])(?:\^\{?-?[0-9]+\}?|\*\*[0-9](?![0-9*]))"), r"\1 "),  # of a unit or a variable
    (re.compile(r"\\(?=[$%])"), ""),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!: ]|~|['’])(?=[0-9]{3}(?![0-9]))"), ","),
    (
        re.compile(r"([0-9])?\\[dtc]?frac\s?(?:\{([^{}]*)\}|([0-9]))\s?(?:\{([^{}]*)\}|([0-9]))"),
        lambda found: f"{found[1] + ' ' if found[1] else ''}{found[2] or found[3]}/{found[4] or found[5]}",
    ),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "×"),
    (re.compile(r"\\[A-Za-z]+"), " "),
    (re.compile(r"\A(\W{0,3})[-\u2010-\u2013\u2212]\s+(?=[$€£¥₹]?[0-9])"), r"\1-"),  # "- 5" alone
)
# A minus after a digit or a bracket is a subtraction: "10-3" ends in 3. A comma or a space belongs to a
# number only before three digits: "3,4,5" ends in 5. Digits right after a letter are part of a name: m2.
MINUS = "[-\u2010-\u2013\u2212]"
NUMBER = (
    rf"(?:(?<![0-9)\]]){MINUS})?(?:[$€£¥₹]{MINUS}?)?(?<![A-Za-z0-9])"
    "(?:[0-9]{1,3}(?:(?:,[0-9]{3})+|(?:[ \u00a0\u2009\u202f][0-9]{3})+)(?![0-9])(?:\\.[0-9]+)?"
    r"|[0-9]*\.[0-9]+|[0-9]+)"
    rf"(?:[eE](?:\+|{MINUS})?[0-9]{{1,3}}(?![A-Za-z0-9]))?"
)
POWER = rf"\s?(?:\^|\*\*)\s?[{{(]?\s?((?:\+|{MINUS})?[0-9]{{1,3}})(?![0-9./])\s?[}})]?"
WRITTEN = re.compile(
    rf"({NUMBER})(?:{POWER})?"
    r"(?:\s{1,2}(?P<top>[0-9]{1,9})\s?/\s?(?P<bottom>[0-9]{1,9})(?![0-9.,]*[0-9])"
    rf"|\s{{0,3}}/\s{{0,3}}(?P<over>{NUMBER})"
    rf"|\s{{0,3}}(?:[×*·]|x(?=\s?10))\s{{0,3}}(?P<base>[0-9.]{{1,20}}){POWER})?"
)
CUT = re.compile(r"\s?(?:\^|\*\*\s?[0-9({]|/\s?[0-9])")  # the number goes on in a way that is not read
POWER_OF = re.compile(r"(?:\^|[0-9)}]\*\*)\s?[{(]?\s?\Z")
BETWEEN = re.compile(rf"\W*(?:\w+\W+){{0,2}}?{HEDGE}\W*(?:[^\W\d_]{{2,}}\W+){{0,3}}", re.IGNORECASE)


def gold_number(gold: str) -> Fraction:
    """`gold` as a number. Raises UserError if it is not exactly one."""
    value = whole_number(gold)
    if value is None:
        raise UserError(
            f"gold answer {gold.strip()!r:.80}: is not a single number; use another task.verifier"
        )
    return value


def whole_number(text: str) -> Fraction | None:
    """The number that `text` is as a whole, without a percent sign or a final period; None for other text."""
    if len(text) > LONGEST:
        return None
    found = WRITTEN.fullmatch(_plain(text.strip().rstrip(".%").rstrip("\\").strip()))
    return _value(found) if found else None


def last_number(text: str) -> set[Fraction | None]:
    """The last number of a text: none without a number, several for "2 or 3", {None} for one that cannot be
    read."""
    text = _plain(text)
    last = before = None
    for found in WRITTEN.finditer(text):
        last, before = found, last
    if last is None:
        return set()
    part = CUT.match(text, last.end()) or POWER_OF.search(text[max(0, last.start() - 6) : last.start()])
    halved = before is not None and text[before.end() : last.start()].strip() == "/"
    value = None if part or halved else _value(last)
    if before and BETWEEN.fullmatch(text[before.end() : last.start()][:200]):
        return {value, _value(before)}
    return {value}


def _plain(text: str) -> str:
    for pattern, replacement in PLAIN_FORMS:
        text = pattern.sub(replacement, text)
    return text


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found[0]) > LONGEST:
        return None
    first = _powered(_decimal(found[1]), found[2])
    if found["base"] and first is not None:
        factor = _powered(_decimal(found["base"]), found[found.re.groups])
        return None if factor is None else first * factor
    if found["top"] and first is not None:  # a mixed number
        if int(found["bottom"]) == 0 or first.denominator != 1:
            return None
        part = Fraction(int(found["top"]), int(found["bottom"]))
        return (
            first - part if found[1].lstrip("$€£¥₹")[0] in "-\u2010\u2011\u2012\u2013\u2212" else first + part
        )
    if found["over"] and first is not None:
        below = _decimal(found["over"])
        return first / below if below else None
    return first


def _powered(base: Fraction | None, power: str | None) -> Fraction | None:
    """`base` to a power, which a minus before the base does not belong to: -2^2 is -4."""
    if power is None or base is None:
        return base
    exponent = int(re.sub(MINUS, "-", power))
    size = max(len(str(abs(base.numerator))), len(str(base.denominator)))
    if size * abs(exponent) > DIGITS or (base == 0 and exponent < 0):
        return None
    value = abs(base) ** exponent
    return -value if base < 0 else value


def _decimal(text: str) -> Fraction | None:
    try:
        return Fraction(Decimal(re.sub(MINUS, "-", re.sub("[,$€£¥₹\\s]", "", text))))
    except ArithmeticError:
        return None
