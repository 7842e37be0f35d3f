"""Each verifier on answers as chat models write them: what passes, what does not, and what is hostile."""

from __future__ import annotations

import json
import time

import pytest

from gspo_cli.errors import UserError
from gspo_cli.rewards.verifiers import VERIFIERS, check_gold
from tests.support import verifier_rows as more
from tests.test_verifiers import needs_math_verify

# (answer, gold, whether it passes)
EXACT = [
    ("Paris", "Paris", 1),
    ("paris", "Paris", 1),
    ("Paris.", "Paris", 1),
    ("**Paris**", "Paris", 1),
    ("**Paris.**", "Paris", 1),
    ('"Paris"', "Paris", 1),
    ("`Paris`", "Paris", 1),
    ("The answer is Paris.", "Paris", 1),
    ("The answer is: **Paris**", "Paris", 1),
    ("The answer to the question is Paris.", "Paris", 1),
    ("The capital lies on the Seine.\n\n**Answer:** Paris", "Paris", 1),
    ("**Final Answer**\n\nI looked it up.\n\n**Answer: Paris**", "Paris", 1),
    ("Final answer:\n\nParis", "Paris", 1),
    (r"It must be \boxed{\text{Paris}}.", "Paris", 1),
    (r"$\boxed{Paris}$", "Paris", 1),
    ("<think>London? No.</think>\n\nParis", "Paris", 1),
    ("London? No.</think>Paris", "Paris", 1),
    ("<think>The answer is London.</think><answer>Paris</answer>", "Paris", 1),
    ("Answer: New   York\n", "new york", 1),
    ("Answer: Paris. Answer: Paris", "London", 0),
    ("", "Paris", 0),
    ("London", "Paris", 0),
    ("Paris or London", "Paris", 0),
    ("Paris, London", "Paris", 0),
    ("Paris\nLondon", "Paris", 0),
    ("The answer is Paris or London.", "Paris", 0),
    (r"\boxed{Paris} or \boxed{London}", "Paris", 0),
    (r"\boxed{London}, then \boxed{Paris}", "Paris", 0),
    ("Answer: London\nAnswer: Paris", "Paris", 0),
    ("<answer>Paris</answer><answer>London</answer>", "Paris", 0),
    ("<think>Paris", "Paris", 0),
    ("<think>Paris</think>", "Paris", 0),
    ("Paris is the capital of France", "Paris", 0),
    ("The answer is not Paris.", "Paris", 0),
    ("35", "3.5", 0),
    ("init", "__init__", 0),
]
NUMERIC = [
    ("72", "72", 1),
    ("She sold 48 + 24 = 72 clips.\n#### 72", "72", 1),
    ("The answer is 72.", "72", 1),
    ("**72**", "72", 1),
    ("**Answer: 72**", "72", 1),
    ("Answer: 72 clips (48 in April)\n\nThis took 2 months.", "48", 1),
    (r"Therefore \(48 + 24 = \boxed{72}\) clips over 2 months.", "72", 1),
    ("$1,200", "1200", 1),
    (r"\$1,200.00", "1200", 1),
    (r"\boxed{1{,}200}", "1200", 1),
    (r"$1\,200$", "1200", 1),
    ("72 km/h", "72", 1),
    ("The area is 12 cm^2.", "12", 1),
    ("The area is $12 \\text{ m}^2$, so the answer is 12 m^{2}", "12", 1),
    ("18%", "18", 1),
    (r"18\%", "18", 1),
    ("1/2", "0.5", 1),
    (r"\frac{3}{4}", "0.75", 1),
    (r"The probability is $\dfrac{1}{8}$.", "0.125", 1),
    ("-5 degrees", "-5", 1),
    ("It is \u22125.", "-5", 1),
    ("<think>70? 71?</think>So 72.", "72", 1),
    ("<think>70?</think><answer>72</answer> in 2 steps", "72", 1),
    ("Step 1: 48/2 = 24\nStep 2: 48 + 24 = 72", "72", 1),
    ("5.0", "5", 1),
    (r"\boxed{72} as above: \boxed{72.0}", "72", 1),
    ("", "72", 0),
    ("seventy-two", "72", 0),
    ("71 or 72", "72", 0),
    ("The answer is 71 or 72.", "72", 0),
    (r"$71$ or $72$", "72", 0),
    (r"\boxed{71} or \boxed{72}", "72", 0),
    ("The answer is 71. The answer is 72.", "72", 0),
    ("<think>72", "72", 0),
    ("<think>72</think>", "72", 0),
    ("1/2", "2", 0),
    (r"\frac{1}{2}", "2", 0),
    ("7.2", "72", 0),
    ("1,200", "200", 0),
    ("The area is 12 cm^2", "2", 0),
]
CHOICE = [
    ("B", "B", 1),
    ("(B)", "B", 1),
    ("B.", "B", 1),
    ("B) Paris", "B", 1),
    ("**B. Paris**", "B", 1),
    ("**Answer:** B", "B", 1),
    ("Answer: **(B)** Paris", "B", 1),
    ("The correct answer is **B**.", "B", 1),
    ("The answer is **B: Paris**", "B", 1),
    ("The correct answer is option B.", "B", 1),
    ("Option B is correct.", "B", 1),
    ("(B) is the right answer, as A is too small.", "B", 1),
    (r"$\boxed{B}$", "B", 1),
    (r"\boxed{\text{B}}", "B", 1),
    (r"\boxed{\textbf{(B)}\ 12}", "B", 1),
    ("<answer>B</answer>", "B", 1),
    ("<think>Is it A? The answer is A. No.</think>The answer is B", "B", 1),
    ("A) is too small.\nC) is too large.\n\nB", "B", 1),
    ("We compare all of them.\n\n**B) Paris**", "B", 1),
    ("The answer is B, because A is too small", "B", 1),
    ("", "B", 0),
    ("b", "B", 0),
    ("A", "B", 0),
    ("A or B", "B", 0),
    ("Answer: A or B", "B", 0),
    ("A. Paris\nB. London\nC. Rome", "A", 0),
    (r"\boxed{A} \boxed{B}", "B", 0),
    (r"\boxed{A, B}", "B", 0),
    ("<answer>A</answer> The answer is B", "B", 0),
    ("<think>The answer is B", "B", 0),
    ("<think>B</think>", "B", 0),
    ("Option A is correct. Option B is correct.", "B", 0),
    ("Paris", "P", 0),
    ("A good question", "A", 0),
    ("I do not know", "I", 0),
]
MATHS = [
    (r"\boxed{\frac{1}{2}}", "1/2", 1),
    (r"\boxed{\frac12}", "0.5", 1),
    (r"$\boxed{0.5}$", "1/2", 1),
    ("The answer is $\\frac{1}{2}$.", "1/2", 1),
    ("Final answer: 0.5", "1/2", 1),
    (r"So \[x = \boxed{5}\] is the only root.", "5", 1),
    ("$x = 5$", "5", 1),
    (r"**Answer:** $2\sqrt{3}$", r"2\sqrt{3}", 1),
    (r"\boxed{\sqrt{12}}", r"2\sqrt{3}", 1),
    (r"\boxed{x^2+2x+1}", "$(x+1)^2$", 1),
    (r"\boxed{1,200}", "1200", 1),
    (r"\boxed{72\text{ apples}}", "72", 1),
    (r"\boxed{\{1, 2\}}", r"\{1,2\}", 1),
    (r"$x=1$ or $x=2$", r"\{1,2\}", 1),
    (r"\boxed{(3, \frac{\pi}{2})}", r"(3, \frac{\pi}{2})", 1),
    ("<think>\\boxed{3}</think>The answer is $4$.", "4", 1),
    (r"<answer>\frac{3}{4}</answer>", "3/4", 1),
    (r"\boxed{5} as said, \boxed{5.0}", "5", 1),
    ("Since 48/2 = 24, the sum is 72", "72", 1),
    (r"\boxed{-5}", "-5", 1),
    ("", "5", 0),
    ("no idea", "5", 0),
    (r"\boxed{}", "5", 0),
    (r"\boxed{6}", "5", 0),
    ("5 or 6", "6", 0),
    ("The answer is 5 or 6", "5", 0),
    (r"$5$ or $6$", "5", 0),
    (r"\boxed{5} or \boxed{6}", "6", 0),
    (r"\boxed{5, 6}", "6", 0),
    (r"\boxed{5 \text{ or } 6}", "5", 0),
    ("<think>\\boxed{5}", "5", 0),
    ("<think>\\boxed{5}</think>", "5", 0),
    (r"\boxed{\frac{1}{3}}", "0.33", 0),
    (r"\boxed{x^2+1}", "$(x+1)^2$", 0),
    ("3", r"2\sqrt{3}", 0),
]
OBJECT = '{"name": "Ada", "age": 36, "tags": ["x", "y"]}'
SCHEMA = json.dumps(
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
JSON = [
    (OBJECT, OBJECT, 1),
    ('{"tags":["x","y"],"age":36,"name":"Ada"}', OBJECT, 1),
    ('{"name": "Ada", "age": 36.0, "tags": ["x", "y"]}', OBJECT, 1),
    (f"```json\n{OBJECT}\n```", OBJECT, 1),
    (f"```\n{OBJECT}\n```", OBJECT, 1),
    (f"Here is the JSON:\n\n```json\n{OBJECT}\n```\nI hope it helps [1].", OBJECT, 1),
    (f"Here it is: {OBJECT}", OBJECT, 1),
    (f"As in {{x}}: {OBJECT} (see above)", OBJECT, 1),
    (f'<think>{{"name": "Bob"}}</think>{OBJECT}', OBJECT, 1),
    (f"<answer>{OBJECT}</answer>", OBJECT, 1),
    (f"<answer>\n```json\n{OBJECT}\n```\n</answer>", OBJECT, 1),
    (f"{OBJECT}\nAgain: {OBJECT}", OBJECT, 1),
    ("[1, 2]", "[1, 2]", 1),
    ("true", "true", 1),
    ('{"name": "Ada", "age": 36}', SCHEMA, 1),
    ('```json\n{"age": 0, "name": ""}\n```', SCHEMA, 1),
    ("", OBJECT, 0),
    ("Ada, 36", OBJECT, 0),
    ('{"name": "Ada", "age": 36}', OBJECT, 0),
    (OBJECT.replace("36", '"36"'), OBJECT, 0),
    (OBJECT.replace("36", "37"), OBJECT, 0),
    (OBJECT.replace('"x", "y"', '"y", "x"'), OBJECT, 0),
    (OBJECT.replace("}", ', "more": 1}'), OBJECT, 0),
    (OBJECT.replace("36", '35, "age": 36'), OBJECT, 0),
    (OBJECT.replace('"', "'"), OBJECT, 0),
    (OBJECT[:-1], OBJECT, 0),
    (f'{OBJECT} or {{"name": "Bob"}}', OBJECT, 0),
    (f'```json\n{OBJECT}\n```\n```json\n{{"name": "Bob"}}\n```', OBJECT, 0),
    (f'{{"person": {OBJECT}', OBJECT, 0),
    (f"[{OBJECT}", OBJECT, 0),
    (f"<think>{OBJECT}", OBJECT, 0),
    ("1", "true", 0),
    ("[2, 1]", "[1, 2]", 0),
    ('{"a": NaN}', '{"a": 1}', 0),
    ('{"name": "Ada"}', SCHEMA, 0),
    ('{"name": "Ada", "age": "36"}', SCHEMA, 0),
    ('{"name": "Ada", "age": -1}', SCHEMA, 0),
    ('{"name": "Ada", "age": 36, "more": 1}', SCHEMA, 0),
    ("name: Ada", SCHEMA, 0),
]
DATE, WORD = r"\d{4}-\d{2}-\d{2}", r"(?i)yes|no"
REGEX = [
    ("2024-05-01", DATE, 1),
    ("  2024-05-01\n", DATE, 1),
    ("2024-05-01.", DATE, 1),
    ("**2024-05-01**", DATE, 1),
    ("`2024-05-01`", DATE, 1),
    ("The answer is 2024-05-01.", DATE, 1),
    ("It was a Wednesday.\n\nAnswer: 2024-05-01", DATE, 1),
    ("**Answer:** 2024-05-01", DATE, 1),
    (r"\boxed{2024-05-01}", DATE, 1),
    (r"\boxed{\text{2024-05-01}}", DATE, 1),
    ("<answer>2024-05-01</answer>", DATE, 1),
    ("<think>2023?</think>2024-05-01", DATE, 1),
    ("Yes", WORD, 1),
    ("no.", WORD, 1),
    ("Final answer:\nYes", WORD, 1),
    ("Answer: yes", "Answer: (yes|no)", 1),
    ("", DATE, 0),
    ("2024-5-1", DATE, 0),
    ("on 2024-05-01", DATE, 0),
    ("2024-05-01 or 2024-05-02", DATE, 0),
    ("2024-05-01\n2024-05-02", DATE, 0),
    ("The answer is 2024-05-01 or so.", DATE, 0),
    (r"\boxed{2024-05-01} or \boxed{May}", DATE, 0),
    ("<think>2024-05-01", DATE, 0),
    ("<think>2024-05-01</think>", DATE, 0),
    ("Yes and no", WORD, 0),
    ("maybe", WORD, 0),
    ("yesno", WORD, 0),
    ("yes, no", WORD, 0),
    ("Answer: yes\nAnswer: perhaps", WORD, 0),
]
TABLES = {
    "exact": EXACT + more.EXACT,
    "numeric": NUMERIC + more.NUMERIC,
    "choice": CHOICE + more.CHOICE,
    "json": JSON + more.JSON,
    "regex": REGEX + more.REGEX,
}
ROWS = [(name, *row) for name, table in TABLES.items() for row in table]


def test_every_table_has_thirty_answers_of_both_kinds():
    for table in [*TABLES.values(), MATHS]:
        passing = sum(passes for _, _, passes in table)
        assert len(table) >= 30
        assert min(passing, len(table) - passing) >= 14


@pytest.mark.parametrize(("name", "answer", "gold", "passes"), ROWS)
def test_answers_of_chat_models(name, answer, gold, passes):
    assert VERIFIERS[name](answer, gold) == passes


@needs_math_verify
@pytest.mark.parametrize(("answer", "gold", "passes"), MATHS + more.MATHS)
def test_answers_of_chat_models_to_mathematics(answer, gold, passes):
    assert VERIFIERS["maths"](answer, gold) == passes


ODD = ["the answer is 5", "Let me see. 2+2 is 4.\nThe answer is 4.", "A or B", "not defined", '"a" and "b"']


@pytest.mark.parametrize("gold", ODD)
@pytest.mark.parametrize("name", ["exact", pytest.param("maths", marks=needs_math_verify)])
def test_every_gold_that_is_read_is_an_answer(name, gold):
    check_gold(name, gold, "train.jsonl:3")
    assert VERIFIERS[name](gold, gold) == 1


def test_a_gold_that_no_answer_can_earn_names_its_place():
    with pytest.raises(UserError, match=r"^train\.jsonl:3: gold answer '<think>.*: is not accepted as"):
        check_gold("exact", "<think>s</think>y", "train.jsonl:3")


GOLDS = {"exact": "Paris", "numeric": "72", "choice": "B", "maths": "72", "json": SCHEMA, "regex": "(a+)+b"}
PIECES = [
    "[",
    "{",
    "\\boxed{",
    "<answer>",
    "<think>",
    "(",
    "\n",
    "9",
    "1/",
    "1,",
    "$1$ ",
    "A ",
    "Answer: ",
    " ",
]
PIECES += ["answer to ", "**", '{"a":', "[1,", "```json\n", "\\frac{", "or 1 ", "a", "#### ", "\\text{", "x^"]
PIECES += [
    "## Answer\n",
    "```\n",
    "Answer: A or ",
    "3 1/2 ",
    "is 5. The cat ",
    "\u0301\u0316",
    "2^",
    "not ",
    "## answer  ",
]


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param("maths", marks=needs_math_verify), *TABLES])
def test_hostile_text_is_scored_zero_and_soon(name):
    VERIFIERS[name]("1", GOLDS[name])  # imports and the worker's start do not count
    for piece in PIECES:
        for text in (piece * (100_000 // len(piece)), "x " + piece * (100_000 // len(piece)) + "}"):
            start = time.monotonic()
            assert VERIFIERS[name](text, GOLDS[name]) == 0, piece
            assert time.monotonic() - start < 20, piece


@pytest.mark.long
def test_a_schema_does_not_make_a_verifier_slow():
    schema = '{"$schema": "https://json-schema.org/draft/2020-12/schema", "uniqueItems": true}'
    start = time.monotonic()
    assert VERIFIERS["json"](json.dumps([{"a": n} for n in range(10_000)]), schema) == 0  # too long
    assert VERIFIERS["json"](json.dumps([{"a": n} for n in range(1500)]), schema) == 1
    assert time.monotonic() - start < 5


def test_a_gold_of_json_that_cannot_be_used_names_its_place():
    broken = {
        "{'a': 1}": "is not JSON",
        '{"a": 1, "a": 2}': "given twice",
        '{"a": NaN}': "not a finite number",
        "[" * 100_000: "is not JSON",
        SCHEMA.replace("integer", "integr"): "is not a JSON schema",
    }
    for gold, reason in broken.items():
        with pytest.raises(UserError, match=rf"^train\.jsonl:3: gold answer .*{reason}"):
            check_gold("json", gold, "train.jsonl:3")


def test_a_schema_downloads_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *given: asked.append(given))
    gold = '{"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": "http://localhost:9/a.json"}'
    with pytest.raises(UserError, match=r'"\$ref" in its JSON schema leads nowhere'):
        VERIFIERS["json"]("{}", gold)
    assert asked == []
