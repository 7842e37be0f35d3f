"""Single-turn tasks as a chat model reads them: a question says how to answer, and that answer scores."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR, build_task
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.training.cold_start import encode_demonstration
from gspo_cli.types import Message
from tests.support.tasks import gsm8k_file, score, write

SUMS = [{"prompt": f"What is {n} plus 1?", "answer": n + 1} for n in range(20)]
CHOICES = [{"prompt": f"Question {n}. A yes B no", "answer": "B"} for n in range(20)]
POWERS = [{"prompt": f"What is $x^{n} x$?", "answer": f"$x^{n + 1}$"} for n in range(2, 8)]
WORDS = [{"prompt": f"Say w{n}", "answer": f"w{n}"} for n in range(20)]


def asked(name, folder, **settings):
    """The task with instructions, as `gspo-train model=smollm2 task=<name>` builds it."""
    files = {"gsm8k": lambda: gsm8k_file(folder), "jsonl": lambda: write(folder / "rows.jsonl", *SUMS)}
    given = {"path": files[name](), "heldout": 5} if name in files else {}
    if name == "jsonl":
        given["verifier"] = "numeric"
    node = OmegaConf.load(CONF_DIR / "task" / f"{name}.yaml")
    return build_task(OmegaConf.merge(node, {"instructions": True}, given, settings))


@pytest.fixture(scope="module")
def chat(smollm2):
    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(smollm2), [2])


FORMS = {
    "arithmetic": ("What is 7 + 17?", "Reply with the number only."),
    "countdown": ("equal to 6 that uses each of the numbers 3, 4 and 8", "Reply with the expression only"),
    "gsm8k": ("What comes after", "End your reply with #### and the answer as a number."),
    "jsonl": ("plus 1?", "End your reply with the answer as a number."),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_rendered_prompt_asks_in_words_and_names_the_form(name, chat, tmp_path):
    task = asked(name, tmp_path)
    prompts = Prompts(chat, task.system_prompt_and_tools())
    rendered = chat.tokenizer.decode(prompts.ids(task.heldout_problems()[0].messages))
    question, form = FORMS[name]
    assert question in rendered
    assert rendered.index(form) > rendered.index(question)
    assert rendered.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("name", FORMS)
def test_the_gold_answer_in_that_form_earns_everything(name, tmp_path):
    task = asked(name, tmp_path)
    for problem in [*task.train_problems(), *task.heldout_problems()]:
        assert score(task, problem, task.model_answer(problem)).total_reward == 1
        for nonsense in (None, "", "nonsense", task.model_answer(problem) + "1"):
            assert score(task, problem, nonsense).total_reward == 0, (problem, nonsense)


@pytest.mark.parametrize(
    ("verifier", "rows", "form"),
    [
        ("exact", WORDS, "Reply with the exact answer only."),
        ("choice", CHOICES, "Reply with the capital letter of the right choice only."),
        ("maths", POWERS, "End your reply with the answer in \\boxed{}."),
    ],
)
def test_each_verifier_says_what_it_reads_and_accepts_it(verifier, rows, form, tmp_path):
    task = asked("jsonl", tmp_path, path=write(tmp_path / "r.jsonl", *rows), verifier=verifier, heldout=1)
    for problem in task.heldout_problems():
        assert problem.messages[-1].content.endswith(f"\n{form}")
        assert score(task, problem, task.model_answer(problem)).total_reward == 1


@pytest.mark.parametrize("answer", ["130", "130.", "45 + 85 = 130", "The answer is 130."])
def test_what_a_sane_model_says_about_a_sum_scores(answer, tmp_path):
    task = asked("arithmetic", tmp_path, digits=2)
    problem = next(p for p in [*task.train_problems(), *task.heldout_problems()] if p.id == "45+85=")
    assert problem.answer == "130"
    assert score(task, problem, answer).total_reward == 1
    assert score(task, problem, answer.replace("130", "131")).total_reward == 0


def test_the_default_sums_are_ones_that_a_small_chat_model_sometimes_solves(tmp_path):
    task = asked("arithmetic", tmp_path)
    problems = [*task.train_problems(), *task.heldout_problems()]
    assert max(max(problem.metadata["terms"]) for problem in problems) == 20
    assert (len(problems), len(task.heldout_problems())) == (440, 88)
    assert len(asked("arithmetic", tmp_path, largest=3).train_problems()) == 13


def test_the_same_problems_are_held_out_with_and_without_words(tmp_path):
    worded, terse = (asked("arithmetic", tmp_path, digits=2, instructions=words) for words in (True, False))
    assert [p.id for p in worded.heldout_problems()] == [p.id for p in terse.heldout_problems()]
    assert terse.heldout_problems()[0].messages == (Message("user", "52+88="),)


def test_reversed_digits_and_words_contradict(tmp_path):
    with pytest.raises(UserError, match=r"^task\.reversed_answer=true: .*task\.reversed_answer=null"):
        asked("arithmetic", tmp_path, reversed_answer=True)


@pytest.mark.parametrize("name", FORMS)
def test_examples_are_solved_training_problems_and_are_not_trained_on(name, tmp_path):
    plain, shown = asked(name, tmp_path), asked(name, tmp_path, examples=3)
    left = {problem.id for problem in shown.train_problems()}
    taken = [problem for problem in plain.train_problems() if problem.id not in left]
    first = taken[::2] if name == "arithmetic" else taken  # a sum stands beside its mirror image
    solved = [m for p in first for m in (*p.messages, Message("assistant", plain.model_answer(p)))]
    assert len(solved) == 6
    for problem in [*shown.train_problems(), *shown.heldout_problems()]:
        assert list(problem.messages[:-1]) == solved
    assert not {p.id for p in shown.heldout_problems()} & {p.id for p in taken}
    assert [p.id for p in shown.heldout_problems()] == [p.id for p in plain.heldout_problems()]


def test_an_example_is_not_a_training_problem_in_other_words(tmp_path):
    task = asked("arithmetic", tmp_path, examples=4)
    sums = {frozenset(problem.metadata["terms"]) for problem in task.train_problems()}
    shown = [message.content for message in task.train_problems()[0].messages[:-1:2]]
    assert len(shown) == 4
    assert not any(frozenset(map(int, re.findall(r"\d+", text))) in sums for text in shown)


def test_examples_stand_behind_a_system_message(tmp_path):
    rows = [
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": f"{n}?"}], "answer": n}
        for n in range(4)
    ]
    task = asked("jsonl", tmp_path, path=write(tmp_path / "s.jsonl", *rows), examples=1, heldout=1)
    roles = [message.role for message in task.train_problems()[0].messages]
    assert roles == ["system", "user", "assistant", "user"]


def test_a_demonstration_trains_the_last_answer_and_not_the_examples(chat, tmp_path):
    task = asked("arithmetic", tmp_path, examples=2, system_prompt="Add.")
    demonstration = task.demonstrations()[0]
    encoded = encode_demonstration(Prompts(chat, task.system_prompt_and_tools()), demonstration)
    trained = [token for token, acts in zip(encoded.token_ids, encoded.action_mask, strict=True) if acts]
    assert chat.tokenizer.decode(trained) == f"{task.train_problems()[0].answer}<|im_end|>"


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("arithmetic", {"examples": -1}, r"task\.examples=-1: must be 0 or more"),
        ("gsm8k", {"examples": 50}, r"task\.examples=50: takes all 15 training problems; use fewer"),
        ("jsonl", {"examples": 1, "verifier": "regex"}, r"task\.examples=1: .*set task\.examples=0"),
    ],
)
def test_examples_that_cannot_be_shown_are_refused(name, settings, said, tmp_path):
    with pytest.raises(UserError, match=f"^{said}"):
        asked(name, tmp_path, **settings).train_problems()
