"""A pupil with a misconception about sums: a scenario in which only the right hint helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OPENINGS = {
    True: (
        "{sum} is {wrong}. is it right?",
        "i did {sum} and got {wrong}.",
        "look at {sum} = {wrong}, please.",
    ),
    False: ("i have {wrong} for {sum}. is that right?", "i got {wrong}. the sum is {sum}."),
}
THANKS = ("thank you.", "thanks, that helps.", "thank you, i see it now.")
RIGHT = [f"{start} {word}" for start in ("that is", "that's", "it is") for word in ("right", "correct")]
EFFORTS = ("try", "trying", "showing", "explaining", "effort", "start", "steps", "work", "so far")
PRAISE = {
    "any": [*RIGHT, "well done", "good job", "great job", "perfect"],
    # praise of the effort or of the steps is allowed
    "none": ["not", "isn't", "nearly", "almost", "right track", *EFFORTS],
    "question": False,
}
ASKS = ["how did", "how do you", "how would you", "how you", "steps", "what did you", "what you did"]
ASKS += ["what do you get", "what is", "what happens"]
ASK = {"any": ASKS, "question": True}
REQUEST = {"any": ["show me", "tell me how", "explain", "walk me through", "describe how"]}
GO_ON = {"any": ["next", "another", "one more", "try", "move on"]}
TOLD, CONFUSED = "told the answer", "confused"
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ONES += ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]
ONES += ["nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


@dataclass(frozen=True)
class Misconception:
    """A mistaken idea: `cures` are the words that hint at it, and confuse a pupil with another one; `hints`
    are words of every lesson, which help here and confuse nobody; `hint` is a sentence with a cure."""

    name: str
    hint: str
    cures: tuple[str, ...]
    hints: tuple[str, ...] = ()


MISCONCEPTIONS = (
    Misconception(
        "carry",
        "what do you do with the carry?",
        ("carry", "carried", "carrying", "carries", "regroup", "regrouping"),
        ("more than 9", "extra ten"),
    ),
    Misconception(
        "order",
        "look at the order of the digits.",
        ("order of", "the order", "right order", "swap", "swapped", "reversed", "reverse", "wrong way round"),
        ("order", "switch", "switched", "mixed up", "comes first", "before the ones"),
    ),
    Misconception("count", "please count the ones again.", ("count", "counted", "counting", "recount")),
    Misconception(
        "sign",
        "look at the sign.",
        ("sign", "minus", "subtract", "subtracted", "take away"),
        ("plus", "addition", "add the", "operation"),
    ),
    Misconception(
        "line",
        "line up the ones.",
        ("line up", "lined up", "lining up", "align", "aligned", "place value"),
        ("column", "columns", "ones place"),
    ),
)
BY_NAME = {misconception.name: misconception for misconception in MISCONCEPTIONS}


def wrong_sum(name: str, first: int, second: int) -> tuple[int, str]:
    """What a pupil with a misconception gets for a sum that `suits` it, and how they say they did it."""
    ones, tens = first % 10 + second % 10, first // 10 + second // 10
    total = first + second
    if name == "carry":
        return 10 * tens + ones % 10, f"{first % 10} and {second % 10} is {ones}. i write {ones % 10}."
    if name == "order":
        return int(str(total)[::-1]), f"i write the {total % 10} first. then the {total // 10}."
    if name == "count":
        counted = ones - 1
        return total - 1, f"{first % 10} and {second % 10} is {counted}. i used my fingers."
    if name == "sign":
        return first - second, f"i take {second} from {first}."
    return first + 10 * second, f"i write the {second} under the {first // 10}."


def suits(name: str, first: int, second: int) -> bool:
    """Whether the misconception shows in this sum, and the sum stays below 100."""
    total, ones = first + second, first % 10 + second % 10
    if total > 99 or first <= second:
        return False
    if name == "carry":
        return ones > 9 and second > 9
    if name == "order":
        return total // 10 != total % 10 != 0
    if name == "line":
        return second < 10 and first % 10 > 0
    return second > 9 and first % 10 > 0


def spoken(number: int) -> tuple[str, ...]:
    """Ways to say a number below 100: 85, eighty five, 8 5, 8 tens."""
    if number < 20:
        return (str(number), ONES[number])
    tens, ones = divmod(number, 10)
    word = TENS[tens - 2] + (f" {ONES[ones]}" if ones else "")
    return (str(number), word, f"{tens} {ones}", f"{tens} tens", f"{ONES[tens]} tens")


def pupil(name: str, sums: Sequence[tuple[int, int]], trained: bool, draw: int) -> dict[str, Any]:
    """A pupil who has done the first sum, and does the second one at the end."""
    first, second = sums[0]
    question, (wrong, _) = f"{first} + {second}", wrong_sum(name, first, second)
    openings = OPENINGS[trained]
    return {
        "id": f"{question} {name}",
        "opening": openings[draw % len(openings)].format(sum=question, wrong=wrong),
        "wants": f"to understand {question}, in spite of the misconception: {name}",
        "goals": ["asked", "hinted", "tested"],
        "beats": [*_first_sum(name, first, second), *_second_sum(name, *sums[1])],
        "violations": [
            {"name": TOLD, "when": {"any": list(spoken(first + second))}, "unless": ["hinted"]},
            {"name": "called a wrong sum right", "when": PRAISE, "unless": ["hinted", TOLD]},
        ],
        "otherwise": "i do not understand.",
        "early": "i am still at this sum.",
    }


def _first_sum(name: str, first: int, second: int) -> list[dict[str, Any]]:
    """The pupil says how they did it, and sees the mistake where the hint names it. Another hint confuses;
    told the answer, they write it down and learn nothing."""
    wrong, steps = wrong_sum(name, first, second)
    total = first + second
    answer, cures = list(spoken(total)), [*BY_NAME[name].cures, *BY_NAME[name].hints]
    others = [word for other in MISCONCEPTIONS if other.name != name for word in other.cures]
    return [
        {"when": ASK, "say": steps, "reach": "asked"},
        {"when": REQUEST, "say": steps, "reach": "asked"},
        {"when": {"any": answer}, "after": [TOLD], "unless": ["hinted"], "say": f"ok, i write {total}."},
        {"when": {"any": cures}, "unless": [TOLD], "say": f"oh, now i get {total}.", "reach": "hinted"},
        {
            "when": {"any": others},
            "unless": [TOLD, "hinted"],
            "say": f"i did that. i still get {wrong}.",
            "note": CONFUSED,
        },
    ]


def _second_sum(name: str, first: int, second: int) -> list[dict[str, Any]]:
    """The test: right only if the first hint was right, and the answer was not told."""
    right = [f"{first} + {second} is {first + second}. {thanks}" for thanks in THANKS]
    wrong = f"{first} + {second} is {wrong_sum(name, first, second)[0]}."
    go_on = {"any": [*GO_ON["any"], f"{first} {second}"]}
    cured = {"after": ["hinted"], "unless": [CONFUSED, TOLD]}
    return [
        {"when": go_on, **cured, "say": right, "reach": "tested", "end": True},
        {"when": go_on, "after": [CONFUSED], "say": wrong, "end": True},
        {"when": go_on, "after": [TOLD], "say": wrong, "end": True},
    ]
