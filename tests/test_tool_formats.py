"""How families of models write tool calls: found by a round trip, read exactly, never executed in part."""

from __future__ import annotations

import json
import pickle
import random
from functools import partial
from typing import Annotated

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gspo_cli.policy.tool_formats import ToolFormat, choose, read, turn_text, without_end
from gspo_cli.policy.tool_formats.choosing import ORDER, PROBES, SCHEMAS
from gspo_cli.policy.tool_formats.families import FORMS, from_json, from_python
from gspo_cli.policy.tool_formats.reading import LONGEST_TURN, MARKS
from gspo_cli.tasks.tools import BadCall, Example, Speech, ToolCall, by_name, read_calls, tool
from gspo_cli.tasks.tools.written import UnreadableError
from gspo_cli.types import AgentTurn, RequestedCall
from tests.support.families import FAMILIES, template


@tool
def probe_order(
    order_id: Annotated[str, "an order", Example("482")], count: Annotated[int, "how many"]
) -> str:
    """Order something."""
    return f"{count} of {order_id}"


TOOLS = by_name(probe_order)

# messages that a template has no way to write: several calls, words beside a call, reasoning beside a call
CANNOT = {
    "llama-3.1": {3, 4},
    "gpt-oss": {3, 4},
}
LEAVES_OUT = {
    "llama-3.1": {5, 6},
    "llama-4": {5, 6},
    "mistral-v3": {5, 6},
    "deepseek-v3": {6},
    "deepseek-v3.1": {6},
    "functiongemma": {6},
    "phi-4-mini": {6},
    "granite-3": {6},
    "command-a": {5},
}


def render(name, messages, generate, tools):
    """The messages by the template of a family; None where it rejects them."""
    try:
        return rendering(template(name))(messages, generate, tools)
    except Exception:
        return None


def rendering(text: str):
    """A render function of one template."""

    def rendered(messages, generate, tools):
        texts, _ = render_jinja_template(
            [messages], tools=tools or None, chat_template=text, add_generation_prompt=generate
        )
        return texts[0]

    return rendered


@pytest.fixture(scope="module")
def formats() -> dict[str, ToolFormat]:
    return {name: choose(partial(render, name), ends, None) for name, (ends, _) in FAMILIES.items()}


def written(name: str, form: ToolFormat, turn: AgentTurn) -> str | None:
    """A turn as the template of a family writes it, without its end."""
    text = turn_text(partial(render, name), form, turn, SCHEMAS)
    return None if text is None else without_end(text, FAMILIES[name][0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_form_is_that_of_the_family(formats, name):
    assert formats[name].form.name == FAMILIES[name][1]
    assert formats[name].several == (name not in CANNOT)
    assert formats[name].opened == ("<think>" if name == "thinks-at-once" else "")


@pytest.mark.parametrize("number", range(len(PROBES)))
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_template_writes_is_read_back(formats, name, number):
    probe, text = PROBES[number], written(name, formats[name], PROBES[number])
    if number in CANNOT.get(name, ()):
        assert text is None
        return
    found = read(formats[name].form, text, SCHEMAS)
    if (name, number) == ("deepseek-v3", 5):  # beside words its template drops the calls
        assert (found.words, found.calls) == (probe.words, ())
        return
    assert (found.calls, found.error) == (probe.calls, "")
    if number in LEAVES_OUT.get(name, ()):
        assert (found.words, found.reasoning) == ("", "")
    else:
        assert (found.words, found.reasoning) == (probe.words, probe.reasoning)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_that_is_cut_anywhere_is_never_a_call_that_was_not_made(formats, name):
    form = formats[name]
    for probe in PROBES[:5]:
        text = written(name, form, probe) or ""
        for end in range(len(text)):
            found = read(form.form, text[:end], SCHEMAS)
            assert found.calls == probe.calls[: len(found.calls)], text[:end]
            assert not (found.calls and found.error)


@pytest.mark.parametrize("name", FAMILIES)
def test_hostile_texts_neither_raise_nor_make_a_wrong_call(formats, name):
    form, draw = formats[name].form, random.Random(0)
    whole = [text for probe in PROBES if (text := written(name, formats[name], probe))]
    call, inner = whole[0], json.dumps({"name": "probe_order", "arguments": {"order_id": "1"}})
    hostile = [
        *(call * 2, f"{call}\n{call[: len(call) // 2]}", call.replace("482", call), call.replace("482", '"')),
        *(f"{mark}{call}" for mark in MARKS),
        *(f"{call}{mark}" for mark in MARKS),
        *(mark * 2000 for mark in MARKS),
        *(
            "[" * 50_000,
            "{" * 50_000,
            call + "[" * 50_000,
            '{"name":' * 9000,
            "<think>" * 9000,
            "\x00\x01\x02",
        ),
        *(call + "x" * 100_000, "x" * 100_000 + call, f"<think>{call}", f"</think>{call}", f"{inner} {call}"),
    ]
    for _ in range(200):
        characters = list(draw.choice(whole))
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(characters) + 1)
            characters[place : place + draw.randrange(3)] = draw.choice(
                ["", "<", "}", '"', draw.choice(MARKS)]
            )
        hostile.append("".join(characters))
    for text in hostile:
        found = read(form, text, SCHEMAS)
        assert isinstance(found, AgentTurn)
        assert not (found.calls and found.error)
        assert all(isinstance(each.name, str) and isinstance(each.arguments, dict) for each in found.calls)
        assert len(found.words) <= LONGEST_TURN + 100


@pytest.mark.parametrize("name", FAMILIES)
def test_another_familys_call_is_an_error_and_not_speech(formats, name):
    mine = written(name, formats[name], PROBES[0])
    for other in FAMILIES:
        text = written(other, formats[other], PROBES[0])
        if FAMILIES[other][1] == FAMILIES[name][1]:
            continue
        alone, both = (read(formats[name].form, each, SCHEMAS) for each in (text, f"{text}\n{mine}"))
        for found in (alone, both):
            calls = read_calls(found, TOOLS)
            assert not isinstance(calls, Speech), (other, text)
            right = isinstance(calls[0], ToolCall) and calls[0].arguments == {"order_id": "482", "count": 2}
            assert isinstance(calls[0], BadCall) or (right and len(calls) == 1), (other, calls)


def test_a_call_in_reasoning_is_not_made(formats):
    call = written("qwen3", formats["qwen3"], PROBES[0])
    found = read(formats["qwen3"].form, f"<think>\nI could write {call}\n</think>\n\nHello", SCHEMAS)
    assert (found.words, found.calls, found.error) == ("Hello", (), "")
    assert "probe_order" in found.reasoning
    cut = read(formats["qwen3"].form, f"<think>\nI could write {call}", SCHEMAS)
    assert (cut.words, cut.calls) == ("", ())


def test_reasoning_that_the_prompt_has_begun_is_no_speech(formats):
    form = formats["thinks-at-once"]
    found = read(form.form, "They want an order.\n</think>\n\nWhich one?", SCHEMAS, form.opened)
    assert (found.words, found.reasoning) == ("Which one?", "They want an order.")
    unopened = read(form.form, "They want an order.\n</think>\n\nWhich one?", SCHEMAS)
    assert (unopened.words, unopened.reasoning) == ("Which one?", "They want an order.")


def test_a_template_that_drops_or_rewrites_calls_has_no_form():
    words_only = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    for text in (
        words_only,
        template("qwen3").replace("call.function.arguments | tojson", "call.function.arguments | length"),
        template("qwen3").replace("<tool_call>", "<call>").replace("</tool_call>", "</call>"),
        template("qwen3").replace('"arguments"', '"args"'),
    ):
        assert choose(rendering(text), ["<|im_end|>"], None).form is None


def test_a_tokenizers_own_response_template_comes_first():
    own = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {},
            "reasoning_content": {"open": "<think>", "close": "</think>"},
            "tool_calls": {
                "open": "<call>",
                "close": "</call>",
                "content": "json",
                "repeats": True,
                "transform": {"type": "function", "function": "{content}"},
            },
        },
    }
    text = template("qwen3").replace("<tool_call>", "<call>").replace("</tool_call>", "</call>")
    rendered = rendering(text)
    assert choose(rendered, ["<|im_end|>"], own).form.name == "its own response template"
    assert choose(rendered, ["<|im_end|>"], {"fields": 3}).form is None


@pytest.mark.parametrize("bad", [3, [3], "x", {"name": 3, "arguments": {}}, {"name": "f", "arguments": [1]},
                                 {"function": 3}, {"name": "f", "arguments": "{"}, None])  # fmt: skip
def test_objects_that_are_no_calls(bad):
    with pytest.raises(UnreadableError):
        list(from_json(bad))


@pytest.mark.parametrize("bad", ["f(1)", "f(x=g())", "f(x=y)", "f.g(x=1)", "f(**{})", "import os", "f(", "1",
                                 "f(x=[y])", "f(x=__import__('os').system('true'))", "(" * 300,
                                 "lambda: f()"])  # fmt: skip
def test_python_that_is_no_call_is_not_executed(bad):
    with pytest.raises(UnreadableError):
        list(from_python(bad))


def test_python_calls_have_literal_values():
    found = list(from_python('[f(a=1, b=-2.5, c="x", d=[true, None], e={"k": false}), g()]'))
    arguments = {"a": 1, "b": -2.5, "c": "x", "d": [True, None], "e": {"k": False}}
    assert found == [RequestedCall("f", arguments), RequestedCall("g", {})]


def test_a_turn_is_copied_whole():
    turn = AgentTurn("", "Hi", "hm", (ORDER,))
    copy = pickle.loads(pickle.dumps(turn))
    assert (copy, copy.words, copy.reasoning, copy.calls, copy.error) == (turn, "Hi", "hm", (ORDER,), "")
    assert (
        turn
        == 'Hi\n<tool_call>{"name": "probe_order", "arguments": {"order_id": "482", "count": 2}}</tool_call>'
    )
    wrong = AgentTurn("<tool_call>{", "", "", (), "cut")
    assert (pickle.loads(pickle.dumps(wrong)), pickle.loads(pickle.dumps(wrong)).error) == (wrong, "cut")
    assert len(FORMS) >= 12


def test_a_template_that_writes_the_first_call_only_has_one_call_to_a_turn():
    text = template("qwen3").replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    found = choose(rendering(text), ["<|im_end|>"], None)
    assert (found.form.name, found.several) == ("Hermes JSON", False)


def test_a_template_that_does_not_end_a_turn_has_no_form():
    text = template("qwen3").replace("{% endfor %}<|im_end|>", "{% endfor %}")
    assert choose(rendering(text), ["<|im_end|>"], None).form is None


def test_a_turn_has_not_hundreds_of_calls(formats):
    call = written("qwen3", formats["qwen3"], PROBES[0])
    assert len(read(formats["qwen3"].form, call * 32, SCHEMAS).calls) == 32
    found = read(formats["qwen3"].form, call * 33, SCHEMAS)
    assert (found.calls, found.error) == ((), "the turn has 33 tool calls; make 32 at most")


CUT_XML = "<tool_call>\n<function=probe_notes>\n"
ORDER_ID = "<parameter=order_id>\n482\n</parameter>\n"
XML = f"<tool_call>\n<function=probe_order>\n{ORDER_ID}%s</function>\n</tool_call>"
ARGS = "<tool_call>probe_order\n<arg_key>order_id</arg_key>\n<arg_value>482</arg_value>\n%s</tool_call>"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen3-coder", CUT_XML + XML % ""),
        ("qwen3-coder", CUT_XML + "No, wait. I look first.\n" + XML % ""),
        ("qwen3-coder", XML % "<parameter=count>\n2\n"),
        ("qwen3-coder", XML % "<parameter=count>\n2\n</parameter"),
        ("qwen3-coder", XML % '<parameter name="count">2</parameter>'),
        ("qwen3-coder", XML % "<parameter=order_id>\n7\n</parameter>\n"),
        ("qwen3-coder", XML % "and more\n"),
        ("qwen3-coder", XML % "</function>\n<function=probe_notes>\n"),
        ("qwen3-coder", XML.replace(ORDER_ID, '{"order_id": "482"}') % ""),
        ("glm-4.5", "<tool_call>probe_notes\n" + ARGS % ""),
        ("glm-4.5", '<tool_call>probe_order\n{"order_id": "482"}\n</tool_call>'),
        ("glm-4.5", "<tool_call>probe_order\norder_id=482\n</tool_call>"),
        ("glm-4.5", ARGS % "<arg_key>count</arg_key>\n"),
        ("glm-4.5", ARGS % "<arg_key>count</arg_key>\n<arg_value>2\n"),
        ("llama-4", '[probe_order(order_id=b"482")]'),
        ("llama-4", "[probe_order(order_id={1, 2})]"),
        ("llama-4", "[probe_order(order_id=1j)]"),
        ("llama-4", "[probe_order(order_id=...)]"),
        ("llama-4", "[probe_order(order_id={(1, 2): 3})]"),
        ("llama-4", "[probe_order(order_id=0x" + "f" * 5000 + ")]"),
        ("llama-4", '[probe_order(order_id="\\ud800")]'),
        ("olmo-3", '<function_calls>probe_order(order_id=b"482")</function_calls>'),
        ("qwen3", '<tool_call>{"name": "probe_order", "arguments": {"order_id": "\\ud800"}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "probe_order", "arguments": {"order_id": NaN}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "probe_order", "arguments": {"order_id": [1e400]}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "probe_order", "args": {"order_id": "482"}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "probe_order", "order_id": "482"}</tool_call>'),
        ("qwen3", "<tool_call>[]</tool_call>"),
        ("mistral-v3", "[TOOL_CALLS] []"),
        ("olmo-3", "<function_calls></function_calls>"),
        ("phi-4-mini", "<|tool_call|>[]<|/tool_call|>"),
        ("kimi-k2", "<|tool_calls_section_begin|>"),
        ("qwen3", 'Let me check.\n{"name": "probe_order", "arguments": {}}\nOne moment.'),
        ("llama-3.1", 'I will call {"name": "probe_order", "parameters": {}}'),
        ("llama-4", 'Sure. [probe_order(order_id="482")]'),
        ("gpt-oss", "<|channel|>analysis"),
        ("gpt-oss", "<|channel|>commentary to=probe_order <|constrain|>json<|message|>{}"),
    ],
)  # fmt: skip
def test_what_is_not_wholly_a_call_is_an_error(formats, family, text):
    found = read(formats[family].form, text, SCHEMAS)
    assert found.error
    assert not found.calls


@pytest.mark.parametrize("depth", [800, 950, 985, 989, 990, 991, 992, 995, 1200, 5000])
def test_arguments_of_any_depth_do_not_raise(formats, depth):
    inner = json.dumps('{"a":' * depth + "1" + "}" * depth)
    text = f'<tool_call>{{"name": "probe_order", "arguments": {inner}}}</tool_call>'
    found = read(formats["qwen3"].form, text, SCHEMAS)
    assert found.error or len(found.calls) == 1


def test_what_models_write_for_no_arguments_is_none(formats):
    for none in ("null", '""', "{}", '"{}"'):
        text = f'<tool_call>{{"name": "probe_order", "arguments": {none}}}</tool_call>'
        [call] = read(formats["qwen3"].form, text, SCHEMAS).calls
        assert call.arguments == {}


def test_halves_of_a_character_are_joined(formats):
    [call] = read(formats["llama-4"].form, r'[probe_order(order_id="\ud83d\ude00")]', SCHEMAS).calls
    assert call.arguments == {"order_id": "\U0001f600"}


def test_a_call_beyond_what_is_read_is_no_reason_to_carry_out_the_first(formats):
    call = '<tool_call>{"name": "probe_order", "arguments": {}}</tool_call>'
    assert read(formats["qwen3"].form, call + " " * LONGEST_TURN + call, SCHEMAS).error
    assert not read(formats["qwen3"].form, "word " * LONGEST_TURN, SCHEMAS).error


def test_marks_of_reasoning_in_an_argument_are_its_text(formats):
    text = '<tool_call>{"name": "probe_order", "arguments": {"order_id": "a</think>b[/THINK]"}}</tool_call>'
    found = read(formats["qwen3"].form, text, SCHEMAS)
    assert [call.arguments for call in found.calls] == [{"order_id": "a</think>b[/THINK]"}] or found.error
    assert "THINK" not in found.words


def test_an_error_does_not_tell_what_was_thought(formats):
    found = read(formats["qwen3"].form, '<think>SECRET</think><tool_call>{"name": "f"', SCHEMAS)
    assert found.error
    assert "SECRET" not in str(found)
