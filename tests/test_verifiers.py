"""Verifiers accept the right answer in the forms people write it, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time

import pytest

from gspo_cli.errors import UserError
from gspo_cli.rewards.verifiers import (
    VERIFIERS,
    VerifierReward,
    check_gold,
    choice,
    exact,
    maths,
    numeric,
    regex,
    resolve_verifier,
)
from gspo_cli.types import FinishReason, Message, Problem, Trajectory

GOLDS = {"exact": "yes", "numeric": "5", "regex": ".*", "choice": "B"}
needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="the extra `math` is not installed"
)


def judge(reward, answer, gold):
    messages = [Message("user", "?"), Message("assistant", "first try"), Message("user", "sure?")]
    messages.append(Message("assistant", answer))
    problem = Problem("p", (messages[0],), gold)
    trajectory = Trajectory(problem, [], [], [], [], messages, FinishReason.stop)
    return reward.compute_reward(trajectory, messages[-1], {})


def test_exact_ignores_case_whitespace_and_a_final_period():
    assert exact(" New  York\n", "New York") == exact("new york.", "New York") == 1
    assert exact("NewYork", "New York") == exact("New York!", "New York") == 0
    assert exact("", "") == 0


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("She pays $1,200.", "1200"),
        ("1200", "1,200"),
        ("It is 18%", "18"),
        ("18", "18%"),
        ("#### 5", "5"),
        ("5.0", "5"),
        ("5.", "5"),
        (".50", "0.5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("the result is \u22125", "-5"),
        ("47-85=-38", "-38"),
        ("10-3", "3"),
        ("first 1, then 2,345,678", "2345678"),
        ("any of 3,4,5", "5"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("0.1", "0.10"),
    ],
)
def test_numeric_accepts_the_last_number_however_it_is_written(text, gold):
    assert numeric(text, gold) == 1


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("", "5"),
        ("five", "5"),
        ("5 or 6", "5"),
        ("-5", "5"),
        ("10-5", "-5"),
        ("12345678901234567890123", "12345678901234567890124"),  # equal as floats
        ("1,2345", "12345"),
        ("0.3", "0.30000001"),
    ],
)
def test_numeric_refuses_every_other_number(text, gold):
    assert numeric(text, gold) == 0


def test_regex_has_to_match_the_whole_answer():
    assert regex(" 42 \n", r"\d+") == 1
    assert regex("42 apples", r"\d+") == 0
    assert regex("  ", ".*") == 0


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(B)",
        "**B**",
        "B. Paris",
        "B) a city",
        "Answer: B",
        "answer:\n(B)",
        "The answer is (B).",
        "The correct option is B",
        r"so \boxed{B}",
        "(A) is too small. Answer: B",
        "The answer is B because A is too small",
        "Answer: B, I think",
        "Answer: B. The answer is B",
    ],
)
def test_choice_reads_the_letter_that_is_given_as_the_answer(text):
    assert choice(text, "B") == choice(text, "(B)") == 1
    assert choice(text, "A") == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "AB",
        "A or B",
        "A, B, C, D",
        "A B C D",
        "(A) (B)",
        "A/B",
        "Answer: A. Answer: B",
        "Answer: A or B",
        "The answer is B and C",
        "I think so",
        "A city",
    ],
)
@pytest.mark.parametrize("gold", list("ABCI"))
def test_choice_refuses_several_letters_and_prose(text, gold):
    assert choice(text, gold) == 0


@pytest.mark.parametrize("name", GOLDS)
@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_scores_zero(name, answer):
    result = judge(VerifierReward(name), answer, GOLDS[name])
    assert (result.total_reward, result.component_rewards) == (0, {name: 0})


def test_the_reward_judges_the_last_answer_and_names_its_verifier():
    assert judge(VerifierReward("numeric"), "so 5", "5").component_rewards == {"numeric": 1.0}
    assert judge(VerifierReward("exact"), "second try", "first try").total_reward == 0


@pytest.mark.parametrize(
    ("name", "gold", "reason"),
    [
        ("numeric", "1/0", "not a single number"),
        ("numeric", "1 2", "not a single number"),
        ("regex", "(", "not a regular expression"),
        ("choice", "BC", "not a single letter"),
        ("choice", "", "not a single letter"),
    ],
)
def test_a_gold_answer_that_a_verifier_cannot_use_is_an_error_that_names_its_place(name, gold, reason):
    with pytest.raises(UserError, match=reason):
        VERIFIERS[name]("7", gold)
    with pytest.raises(UserError, match=rf"^train\.jsonl:3: gold answer .*{reason}"):
        check_gold(name, gold, "train.jsonl:3")


def test_an_unknown_verifier_is_an_error_that_lists_the_choices():
    with pytest.raises(UserError, match=r"^task\.verifier=nmeric: .*exact, numeric, .*python:module"):
        resolve_verifier("nmeric")


def test_a_function_of_the_user_is_found_by_its_path_and_goes_by_its_name(tmp_path, monkeypatch):
    code = "def shout(text, gold):\n    return text == gold.upper()\n\ndef one(text): pass\nLEVEL = 3\n"
    (tmp_path / "my_grader.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    reward = VerifierReward("python:my_grader.shout")
    assert judge(reward, "YES", "yes").component_rewards == {"shout": 1.0}
    assert judge(reward, "", "").total_reward == 0
    with pytest.raises(UserError, match=r"task\.verifier=.*not a function"):
        resolve_verifier("python:my_grader.LEVEL")
    for wrong in ("python:os.getcwd", "python:my_grader.one"):
        with pytest.raises(UserError, match=r"task\.verifier=.*does not take two arguments; give"):
            resolve_verifier(wrong)
    for wrong in ("python:my_grader.absent", "python:absent_module.f", "python:f", "python:"):
        with pytest.raises(UserError, match=r"task\.verifier=.*cannot be imported"):
            resolve_verifier(wrong)


def test_maths_without_its_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"pip install 'math-verify>=0\.9'"):
        resolve_verifier("maths")


@needs_math_verify
@pytest.mark.parametrize(
    ("text", "gold"),
    [("so $\\frac{2}{4}$", "1/2"), ("$1+x^2$", "x^2+1"), ("0.5", r"\frac{1}{2}"), ("72 apples", "72")],
)
def test_maths_compares_values_not_spelling(text, gold):
    assert maths(text, gold) == 1
    assert maths("$x+7$", gold) == maths("", gold) == 0


@needs_math_verify
def test_maths_gives_up_on_an_answer_that_would_never_end(monkeypatch):
    assert maths("1", "1") == 1
    monkeypatch.setattr("gspo_cli.rewards.maths_worker.SECONDS", 1)
    start = time.monotonic()
    assert maths("$9^{9^{9^{9}}}$", "12") == 0
    assert time.monotonic() - start < 3
    monkeypatch.undo()
    assert maths("1", "1") == 1


def test_tasks_and_verifiers_do_not_load_torch():
    modules = ["rewards.verifiers", "tasks.arithmetic", "tasks.countdown", "tasks.gsm8k", "tasks.jsonl"]
    code = "".join(f"import gspo_cli.{name}\n" for name in modules)
    code += "import sys\nsys.exit(bool({'torch', 'transformers', 'math_verify'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
