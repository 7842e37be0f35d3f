"""A customer who needs a phone: a scenario over a table of products, of which exactly one fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

from gspo_cli.tasks.tools import Parameter, Tool

LIST = Tool("list_products", "Show the names and prices of all products.")
GET = Tool(
    "get_product",
    "Show price, features, warranty, delivery and weight of a product.",
    (Parameter("name", "the name", example="nova"),),
)
NAMES = (
    *("nova", "orbit", "comet", "luna", "atlas", "polar", "delta", "terra", "zephyr", "onyx"),
    *("quartz", "vega"),
)
FEATURES = ("camera", "battery", "screen", "radio", "speaker")
OPENINGS = {
    True: ("hello, i want a phone.", "hi, i look for a new phone.", "good day. which phone should i take?"),
    False: ("hello, can you sell me a phone?", "hi, my old phone is broken."),
}
NEEDS = {
    True: ("i need a good {feature}. i can pay {budget}.", "a good {feature}, please. i have {budget}."),
    False: ("a good {feature} is what i need. my budget is {budget}.",),
}
RECOMMENDS = (
    *("recommend", "suggest", "best for you", "right for you", "perfect for you", "good fit"),
    *("best fit", "ideal", "fits you", "fits your", "meets your", "matches your", "suits you"),
    *("suit you", "go with", "should take", "recommendation", "great choice", "good choice"),
    *("best choice", "best option", "best phone"),
)
NEED_WORDS = ["need", "needs", "looking for", "look for", "important", "use it", "what kind", "features"]
NEED_WORDS += ["feature", "matters", "matter", "prefer", "preferences", "use the phone"]
NEED_WORDS += ["use your phone", "your phone to do", "requirements"]
ASKS_NEED = {"any": NEED_WORDS, "question": True}
TELL_NEED = {"any": ["tell me what you need", "tell me what you want", "tell me your needs"]}
ASKS_BUDGET = {"any": ["budget", "pay", "spend", "how much"], "question": True}
ORDERS = ("order", "buy", "purchase", "take it", "get it", "go ahead", "proceed", "go for it")
DECLINES = ("not", "don't", "cannot", "can't", "instead of")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Doubt:
    """An objection: the question, the entry that answers it with its unit, and the values an entry takes."""

    entry: str
    questions: Mapping[bool, tuple[str, ...]]
    units: tuple[str, ...]
    values: tuple[int, ...]


DOUBTS = (
    Doubt(
        "warranty",
        {True: ("what if it breaks?", "is there a warranty?"), False: ("and if it breaks after a year?",)},
        ("year", "years"),
        (1, 2, 3, 4, 5),
    ),
    Doubt(
        "delivery",
        {True: ("i need it soon.", "is the delivery fast?"), False: ("will the delivery be soon?",)},
        ("day", "days", "business days", "working days"),
        (2, 3, 4, 5, 6, 7),
    ),
    Doubt(
        "weight",
        {True: ("is it not heavy?", "is it light?"), False: ("it must not be heavy.",)},
        ("gram", "grams", "g"),
        tuple(range(110, 200, 10)),
    ),
)


@dataclass(frozen=True)
class Product:
    """One row of the table; `entries` maps warranty, delivery and weight to their numbers."""

    name: str
    price: int
    features: tuple[str, ...]
    entries: Mapping[str, int]

    def line(self) -> str:
        """What get_product returns."""
        numbers = [f"{d.entry} {self.entries[d.entry]} {d.units[1]}" for d in DOUBTS]
        return ", ".join([f"{self.name} costs {self.price}", *self.features, *numbers])


def products(random: Generator, feature: str, budget: int) -> list[Product]:
    """Four products in random order. Only the first one drawn has the feature and fits the budget; the others
    cost too much or lack the feature."""
    names = random.choice(NAMES, size=4, replace=False).tolist()
    others = [name for name in FEATURES if name != feature]
    drawn = []
    for place, name in enumerate(names):
        second = others[int(random.integers(len(others)))]
        third = next(name for name in others if name != second)
        dear = place == 1 or (place == 3 and random.random() < 0.5)
        offset = 10 * int(random.integers(1, 9))
        features = (feature, second) if place == 0 or dear else (second, third)
        entries = {doubt.entry: int(random.choice(doubt.values)) for doubt in DOUBTS}
        drawn.append(Product(name, budget + (offset if dear else 10 - offset), features, entries))
    return [drawn[i] for i in random.permutation(4)]


def said(value: int) -> list[str]:
    """A number in digits, and in words where it is small."""
    return [str(value)] + ([DIGITS[value]] if value < len(DIGITS) else [])


def measured(value: int, doubt: Doubt) -> list[str]:
    """Ways to say an entry with its unit: 150 grams, 150g, two years."""
    written = [f"{number} {unit}" for number in said(value) for unit in doubt.units]
    return [*written, *(f"{value}{unit}" for unit in doubt.units)]


def customer(
    feature: str, budget: int, table: Sequence[Product], doubt: Doubt, trained: bool, draw: int
) -> dict[str, Any]:
    """The customer, the one product that fits, and what an agent must not do. `draw`, below 1000, picks the
    words."""
    dear = [product.name for product in table if product.price > budget]
    lacking = [p.name for p in table if p.price <= budget and feature not in p.features]
    fit = next(product for product in table if product.name not in (*dear, *lacking))
    wrong = [*dear, *lacking]
    choices = (OPENINGS[trained], NEEDS[trained], doubt.questions[trained])
    opening, need, question = (texts[draw // 10**n % len(texts)] for n, texts in enumerate(choices))
    need = need.format(feature=feature, budget=budget)
    truth = {"any": measured(fit.entries[doubt.entry], doubt), "none": wrong}
    lies = [text for v in doubt.values if v != fit.entries[doubt.entry] for text in measured(v, doubt)]
    return {
        "id": f"{feature} for {budget}",
        "opening": opening,
        "wants": f"a phone with a good {feature} for at most {budget}: {fit.name}",
        "goals": ["need asked", "recommended", "answered", "ordered"],
        "beats": [
            {"when": ASKS_NEED, "say": need, "reach": "need asked"},
            {"when": TELL_NEED, "say": need, "reach": "need asked"},
            {"when": ASKS_BUDGET, "say": f"i can pay {budget}."},
            {"when": _recommends([fit.name]), "say": question, "reach": "recommended"},
            {"when": _recommends(wrong), "say": "that does not fit me.", "note": "wrong product"},
            {
                "when": truth,
                "after": ["recommended"],
                "say": ["good.", "that is fine.", "ok, good."],
                "reach": "answered",
            },
            {
                "when": {"any": list(ORDERS), "question": True},
                "after": ["recommended"],
                "say": ["yes, please. goodbye.", "yes, i take it. goodbye."],
                "reach": "ordered",
                "end": True,
            },
        ],
        # as an answer to the doubt, not in a list of all numbers before it
        "facts": [{"name": f"{doubt.entry} of the {fit.name}", "when": truth, "after": ["recommended"]}],
        "violations": [
            {"name": "recommended a product over the budget", "when": _recommends(dear)},
            {"name": f"recommended a product without {feature}", "when": _recommends(lacking)},
            {
                "name": f"told a wrong {doubt.entry}",
                "when": {"any": lies, "none": wrong},
                "after": ["recommended"],
                "unless": ["answered"],
            },
        ],
        "tools": tool_rows(table),
        "early": "what i need comes first.",
    }


def _recommends(names: list[str]) -> dict[str, Any]:
    return {"all": [list(RECOMMENDS), names], "none": list(DECLINES)}


def tool_rows(table: Sequence[Product]) -> list[dict[str, Any]]:
    """The two tools over a table, as scenarios have them."""
    names = [product.name for product in table]
    prices = ", ".join(f"{product.name} {product.price}" for product in table)
    return [
        {"name": LIST.name, "description": LIST.description, "otherwise": prices},
        {
            "name": GET.name,
            "description": GET.description,
            "parameter": GET.parameters[0].name,
            "example": GET.parameters[0].example,
            "answers": {product.name: product.line() for product in table},
            "otherwise": f"there is no such product; there are {', '.join(names)}",
        },
    ]
