"""The prompts of conversational tasks as a pretrained chat model reads them: complete, and true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gspo_cli.policy.chat import ChatFormat
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.tasks.customer_service.task import CustomerService
from gspo_cli.tasks.customer_service.tools import POLICY as SHOP_POLICY
from gspo_cli.tasks.sales.task import POLICY as SALES_POLICY
from gspo_cli.tasks.sales.task import Sales
from gspo_cli.tasks.scenarios.task import Scenarios
from gspo_cli.tasks.scripted import converse, fixed_agent
from gspo_cli.tasks.tau.oracle import ASK_WHO, REPORT
from gspo_cli.tasks.tau_retail.scripted_user import USER_NOTE
from gspo_cli.tasks.technical_support.environment import Mode
from gspo_cli.tasks.technical_support.phone import VALUES
from gspo_cli.tasks.technical_support.speech import SCREENS, understand
from gspo_cli.tasks.technical_support.task import POLICY as SUPPORT_POLICY
from gspo_cli.tasks.technical_support.task import TechnicalSupport
from gspo_cli.tasks.tools import BadCall, Speech, ToolCall, read_turn
from gspo_cli.tasks.tutoring.pupil import MISCONCEPTIONS
from gspo_cli.tasks.tutoring.task import POLICY as TUTORING_POLICY
from gspo_cli.tasks.tutoring.task import Tutoring
from tests.support import retail_files, tau2_files
from tests.support.shop_conversations import (
    CANCEL,
    MIA,
    MOVE,
    REFUND,
    REFUSED_CANCEL,
    STATUS,
    problem_of,
)
from tests.test_scenarios import ROW

DATA = Path(__file__).parents[2] / "shared" / "data"
BEST = {"outcome": 1.0, "facts": 1.0, "policy": 0.0}
TYPES = {"string": "text", "number": "number", "integer": "integer", "boolean": "boolean", "array": "list"}
PYTHON_TYPES = {"string": str, "number": float, "integer": int, "boolean": bool, "array": list}
FEW_TOKENS = 800  # of a generated task's prompt: a model of 1,024 positions has room for a conversation


def scenarios(folder):
    rows = [{**ROW, "id": f"card-{n}"} for n in range(4)]
    (folder / "mine.json").write_text(json.dumps(rows))
    return Scenarios("scenarios", "", "", path=str(folder / "mine.json"), heldout=1)


def published(folder):
    if not folder.is_dir():
        pytest.skip(f"the published files are not in {folder}")
    return folder


MADE = {
    "customer_service": lambda folder: CustomerService(
        "shop", "", "", difficulty=2, problems=40, careless=0.0
    ),
    "technical_support": lambda folder: TechnicalSupport("support", "", ""),
    "technical_support scripted": lambda folder: TechnicalSupport("support", "", "", mode=Mode.scripted),
    "sales": lambda folder: Sales("sales", "", "", problems=40),
    "tutoring": lambda folder: Tutoring("tutoring", "", "", problems=40),
    "scenarios": scenarios,
}
BENCHMARKS = {
    "tau_retail": lambda folder: retail_files.built(retail_files.write_folder(folder)),
    "tau_retail ticket": lambda folder: retail_files.built(retail_files.write_folder(folder), user="ticket"),
    "tau2 retail": lambda folder: tau2_files.built(tau2_files.write_domains(folder), "retail"),
    "tau2 telecom": lambda folder: tau2_files.built(tau2_files.write_domains(folder), split="small"),
    "tau_retail published": lambda folder: retail_files.built(published(DATA / "tau_bench_retail")),
    "tau2 telecom published": lambda folder: tau2_files.built(
        published(DATA / "tau2_bench" / "domains"), split="small"
    ),
}
TASKS = MADE | BENCHMARKS


@pytest.fixture(scope="module")
def chat(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return ChatFormat(tokenizer, [tokenizer.eos_token_id])


@pytest.fixture
def task(request, tmp_path):
    return TASKS[request.param](tmp_path)


def prompt_ids(chat, task):
    opening = task.environment().reset(task.train_problems()[0], 0)
    return Prompts(chat, task.system_prompt_and_tools()).ids(opening)


def tools_of(task):
    return {tool.name: tool for tool in task.system_prompt_and_tools().tools}


@pytest.mark.parametrize("task", TASKS, indirect=True)
def test_the_prompt_names_every_tool_with_types_and_allowed_values(chat, task):
    prompt = chat.tokenizer.decode(prompt_ids(chat, task))
    system = prompt.partition("<|im_end|>")[0]
    assert system.startswith("<|im_start|>system\n")
    assert ("write one line like the examples" in system) == bool(tools_of(task))
    for tool in tools_of(task).values():
        shape = tool.schema()["function"]
        assert f"\n/{tool.name}" in system
        assert shape["description"] in system
        for name, value in shape["parameters"]["properties"].items():
            explained = rf"^{name}(?: of [\w, ]*\b{tool.name}\b[\w, ]*)? \({TYPES[value['type']]}[,)].*$"
            (line,) = re.findall(explained, system, re.MULTILINE)
            allowed = value.get("enum") or value.get("items", {}).get("enum") or []
            assert line.endswith(", ".join(allowed))
            assert ("optional" in line) == (name not in shape["parameters"]["required"])


@pytest.mark.parametrize("task", TASKS, indirect=True)
def test_the_examples_of_the_guide_are_calls_of_their_tools(chat, task):
    prompt = chat.tokenizer.decode(prompt_ids(chat, task))
    tools = tools_of(task)
    examples = dict(re.findall(r"^/(\w+).* Example: (/.*)$", prompt.partition("<|im_end|>")[0], re.MULTILINE))
    assert set(examples) == {name for name, tool in tools.items() if tool.parameters}
    for name, tool in tools.items():
        call = read_turn(examples.get(name, f"/{name}"), tools)
        assert isinstance(call, ToolCall), call
        assert call.name == name
        for place, value in tool.schema()["function"]["parameters"]["properties"].items():
            assert isinstance(call.arguments[place], PYTHON_TYPES[value["type"]])


@pytest.mark.parametrize("task", MADE, indirect=True)
def test_a_generated_task_leaves_room_for_the_conversation_in_a_small_model(chat, task):
    assert len(prompt_ids(chat, task)) < FEW_TOKENS


def announced(text, tools):
    """A turn with its call written by the rules of the guide alone."""
    call = read_turn(text, tools)
    if isinstance(call, Speech):
        return text
    assert not isinstance(call, BadCall), call
    values = [",".join(value) if isinstance(value, list) else str(value) for value in call.arguments.values()]
    quoted = [f'"{value}"' if " " in value or not value else value for value in values]
    last = [values[-1]] if values and values[-1] else quoted[-1:]  # the last text needs no quotes
    return " ".join([f"/{call.name}", *quoted[:-1], *last])


@pytest.mark.parametrize("task", TASKS, indirect=True)
def test_gold_behavior_in_the_announced_form_earns_everything(task):
    tools = tools_of(task)
    problems = task.train_problems()[:20]
    for seed, (problem, shown) in enumerate(zip(problems, task.demonstrations(), strict=False)):
        turns = [announced(m.content, tools) for m in shown.messages if m.role == "assistant"]
        talk = converse(task.environment(), problem, fixed_agent(turns), seed)
        assert (talk.outcome.solved, talk.progress) == (True, BEST), talk.messages
    assert seed + 1 == len(problems)


# ---- the sentences that prompts quote are understood


def quoted(policy, *words):
    """The sentence in quotation marks that has these words."""
    return next(text for text in re.findall(r'"([^"]+)"', policy) if all(word in text for word in words))


@pytest.mark.parametrize(
    ("request_", "turns"),
    [
        (CANCEL, [("Shall I cancel",), "/cancel_order 482", ("is cancelled", "refunded")]),
        (REFUND, [("Shall I refund",), "/refund_order 517", ("Your 30 dollars",)]),
        (MOVE, [("Shall I move",), "/change_address 482 paris", ("is moved",)]),
        (STATUS, [("Your order 700 is shipped",)]),
        (REFUSED_CANCEL, [("Sorry, order 700 is shipped",)]),
    ],
)
def test_the_shop_understands_the_sentences_of_its_policy(request_, turns):
    facts = {"700": str(request_.order), "30": "15" if request_ is REFUND else "40", "Rome": "Paris"}

    def said(turn):
        text = turn if isinstance(turn, str) else quoted(SHOP_POLICY, *turn)
        return re.sub("|".join(facts), lambda found: facts[found[0]], text)

    opening = [quoted(SHOP_POLICY, "email"), f"/find_customer {MIA}"]
    agent = fixed_agent([*opening, *map(said, turns)])
    talk = converse(CustomerService("shop", "", "").environment(), problem_of(request_), agent, seed=0)
    assert (talk.outcome.solved, talk.progress, talk.ended) == (True, BEST, True), talk.messages


def test_the_owner_of_a_phone_understands_the_sentences_of_the_policy():
    policy = SUPPORT_POLICY[Mode.scripted]
    for screen, names in SCREENS.items():
        assert understand(quoted(policy, names[0], "say")).looks == [screen]
    changes = {"vpn": ("vpn", "off"), "sim card": ("sim_card", "in"), "network mode": ("network_mode", "5g")}
    for words, instruction in changes.items():
        assert understand(quoted(policy, "Please", words)).instructions == [instruction]
    assert understand(quoted(policy, "reboot")).reboot
    for policy in SUPPORT_POLICY.values():
        assert understand(quoted(policy, "The problem was")).claimed == ["vpn"]
        assert understand(quoted(policy, "The problems were")).claimed == ["wifi", "apn"]
        named = policy.lower().replace("_", " ")
        assert all(name.replace("_", " ") in named for name in VALUES)


def test_policies_quote_what_the_solving_agents_say():
    for hint in (m.hint for m in MISCONCEPTIONS):
        assert hint in TUTORING_POLICY.lower()
    for text in ("how did you do it?", "now try the next sum."):
        assert text in TUTORING_POLICY.lower()
    for text in (
        "what do you need?",
        "i recommend the nova. it has a good camera.",
        "do you want to order it?",
    ):
        assert text in SALES_POLICY.lower()
    for text in (ASK_WHO, REPORT):
        assert text in USER_NOTE


def test_the_retail_user_says_yes_to_the_question_of_the_note(tmp_path):
    task = retail_files.built(retail_files.write_folder(tmp_path))
    problem = retail_files.problem_of(
        retail_files.wish(0, "Cancel order #W0 because no longer needed. ", retail_files.cancel("#W0"))
    )
    environment = task.environment()
    environment.reset(problem, 0)
    for text in (quoted(USER_NOTE, "email"), quoted(USER_NOTE, "anything else")):
        environment.step(text)
    answer = environment.step(quoted(USER_NOTE, "confirm").replace("#W0000000", "#W0")).messages[0].content
    assert answer.startswith("Yes")
