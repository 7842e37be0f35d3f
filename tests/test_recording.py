"""What an agent's requests amount to: ids go on where an agent goes on, and begin anew where it does not."""

from __future__ import annotations

import copy
import json

import pytest

from gspo_cli.agents.recording import Recorder
from gspo_cli.agents.requests import RequestError, read_request
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.rollout.engine import Completion
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.types import AgentTurn, FinishReason, Message, Problem, RequestedCall
from tests.support.families import family_chat

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_order",
            "description": "Looks an order up.",
            "parameters": {
                "type": "object",
                "properties": {
                    "order_id": {"type": "string"},
                    "lines": {"type": "array", "items": {"type": "object"}},
                },
                "required": ["order_id"],
            },
        },
    }
]
OPENING = [{"role": "system", "content": "You help."}, {"role": "user", "content": "Where is 482?"}]
CALL = AgentTurn("", "One moment.", "", (RequestedCall("get_order", {"order_id": "482"}),))


@pytest.fixture(params=["qwen3", "lines"])
def chat(request, load):
    """The calls of a family, or the line form, which models without a template have."""
    if request.param == "qwen3":
        return family_chat(load("qwen3").tokenizer, "qwen3")
    return load("gpt2").chat


def recorder(chat):
    return Recorder(lambda tools: TurnFormat(chat, SystemPrompt(tools=tools)))


def request(messages, tools=TOOLS, **more):
    return read_request({"model": "policy", "messages": messages, "tools": tools, **more})


def say(made, asked, turn):
    """Sample a turn's own ids, and deliver it."""
    ids = asked.turns.ids(turn)
    made.answered(asked, Completion(ids, [-0.5] * len(ids), FinishReason.stop), turn)
    return ids


def as_sent(turn, **changes):
    """A turn as clients send it back."""
    calls = [
        {
            "id": f"call{place:05d}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
        }
        for place, call in enumerate(turn.calls)
    ]
    return {"role": "assistant", "content": turn.words, "tool_calls": calls} | changes


ANSWER = {"role": "assistant", "content": "Yes."}
BROKEN = {"function": {"name": "f", "arguments": "{"}}


def _declared(parameters):
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


RESULT = {"role": "tool", "tool_call_id": "call00000", "content": "482: sent"}


def test_an_agent_that_goes_on_is_one_sequence_with_the_ids_that_were_sampled(chat):
    made = recorder(chat)
    first = made.ask(request(OPENING))
    opening, sampled = first.prompt_ids, say(made, first, CALL)
    second = made.ask(request([*OPENING, as_sent(CALL), RESULT]))
    assert second.prompt_ids[: len(opening) + len(sampled)] == [*opening, *sampled]
    assert (first.turn, second.turn, first.branch, second.branch) == (0, 1, (), ())
    end = say(made, second, "It was sent.")
    found = made.trajectory(Problem("p", ()))
    assert found.token_ids == [*second.prompt_ids[: -len(end)], *end] == second.segment.token_ids
    assert [turn for turn in found.turn_ids if turn >= 0] == [0] * len(sampled) + [1] * len(end)
    assert found.action_mask == [turn >= 0 for turn in found.turn_ids]
    assert [p for p, mine in zip(found.sampling_logprobs, found.action_mask, strict=True) if mine] == (
        [-0.5] * (len(sampled) + len(end))
    )
    assert (found.segments, found.num_turns, made.cause) == ([], 2, "")
    # an environment that writes the same is recorded alike
    turns = first.turns
    ids = [*opening, *sampled]
    ids += turns.after(CALL, (Message("tool", "482: sent"),), ids[-1])
    assert second.segment.token_ids[: len(ids)] == ids


@pytest.mark.parametrize(
    "sent",
    [
        as_sent(CALL),
        as_sent(CALL, content="  One moment.\n"),
        as_sent(CALL, content=[{"type": "text", "text": "One "}, {"type": "text", "text": "moment."}]),
        as_sent(CALL, reasoning_content="hm", refusal=None, annotations=[], audio=None, name="bot"),
        as_sent(CALL) | {"tool_calls": [as_sent(CALL)["tool_calls"][0] | {"index": 0, "id": "other"}]},
        as_sent(CALL, function_call=None),
    ],
)
def test_what_comes_back_may_be_written_otherwise(chat, sent):
    made = recorder(chat)
    say(made, made.ask(request(OPENING)), CALL)
    result = RESULT | {"tool_call_id": sent["tool_calls"][0]["id"]}
    made.ask(request([*OPENING, sent, result]))
    assert made.cause == ""
    assert len(made._segments) == 1


@pytest.mark.parametrize("content", [None, "", "missing"])
def test_no_words_are_no_words_however_they_are_written(chat, content):
    silent = AgentTurn("", "", "", CALL.calls)
    sent = as_sent(silent, content=content)
    if content == "missing":
        del sent["content"]
    made = recorder(chat)
    say(made, made.ask(request(OPENING)), silent)
    made.ask(request([*OPENING, sent, RESULT]))
    assert len(made._segments) == 1


EDITED = [{"role": "system", "content": "It is 9:01."}, OPENING[1]]


@pytest.mark.parametrize(
    ("messages", "tools", "cause"),
    [
        (
            [*EDITED, as_sent(CALL), RESULT],
            TOOLS,
            "its message 0 (system) changed: 'You help.' became 'It is 9:01.'",
        ),
        ([*OPENING, as_sent(CALL), RESULT], [], "its tools changed: "),
        ([*OPENING, as_sent(CALL, content="Wait."), RESULT], TOOLS, "its message 2 (assistant) changed: "),
        ([OPENING[0], {"role": "user", "content": "Sum up."}], TOOLS, "its message 1 (user) changed: "),
        (OPENING, TOOLS, "it left out what was said before"),
        (
            [*OPENING, as_sent(CALL), RESULT, {"role": "assistant", "content": "Hm."}, OPENING[1]],
            TOOLS,
            "it has an answer of the assistant that was not sampled here",
        ),
    ],
)  # fmt: skip
def test_anything_else_begins_a_sequence_and_says_why(chat, messages, tools, cause):
    made = recorder(chat)
    first = made.ask(request(OPENING))
    sampled = say(made, first, CALL)
    other = made.ask(request(messages, tools))
    assert made.cause == ""
    assert other.segment is not first.segment
    assert (other.turn, len(other.branch)) == (0, 3)
    again = say(made, other, "Yes.")
    assert made.cause.startswith(cause)
    found = made.trajectory(Problem("p", ()))
    begins = len(first.segment.token_ids)
    assert found.segments == [0, begins]
    assert found.turn_ids.count(0) == len(sampled)
    assert found.turn_ids.count(1) == len(again)
    assert found.token_ids[begins:] == other.segment.token_ids
    # the first goes on all the same
    assert made.ask(request([*OPENING, as_sent(CALL), RESULT])).segment is first.segment


def test_requests_at_the_same_time_are_branches_and_equal_ones_draw_anew(chat):
    made = recorder(chat)
    first = made.ask(request(OPENING))
    second, third = made.ask(request(OPENING)), made.ask(request(OPENING))
    assert first.branch == ()
    assert second.branch[:2] == third.branch[:2]
    assert (second.branch[2], third.branch[2]) == (0, 1)
    for asked in (third, first, second):
        say(made, asked, "Yes.")
    assert made.cause == "it asked again before it had its answer"
    assert len(made.trajectory(Problem("p", ())).spans) == 3


def test_a_cancelled_branch_is_drawn_again_as_it_was(chat):
    made = recorder(chat)
    first, second = made.ask(request(OPENING)), made.ask(request(EDITED))
    made.cancelled(second)
    assert made.ask(request(EDITED)).branch == second.branch
    made.cancelled(first)
    assert made.ask(request(OPENING)).branch == (), "the first again"
    assert made.cause == ""


def test_a_cancelled_request_leaves_no_trace(chat):
    made = recorder(chat)
    gone = made.ask(request(EDITED))
    made.cancelled(gone)
    first = made.ask(request(OPENING))
    before = len(first.prompt_ids), say(made, first, CALL)
    held = copy.deepcopy(vars(first.segment))
    made.cancelled(made.ask(request([*OPENING, as_sent(CALL), RESULT])))
    assert vars(first.segment) == held
    again = made.ask(request([*OPENING, as_sent(CALL), RESULT]))
    assert (again.turn, again.segment) == (1, first.segment)
    made.cancelled(again)
    found = made.trajectory(Problem("p", ()))
    assert (len(found.token_ids), found.num_turns) == (before[0] + len(before[1]), 1)


def test_results_stand_in_the_order_of_their_calls():
    two = AgentTurn("", "", "", (CALL.calls[0], RequestedCall("get_order", {"order_id": "7"})))
    results = [
        {"role": "tool", "tool_call_id": f"call0000{place}", "content": str(place)} for place in (1, 0)
    ]
    found = request([*OPENING, as_sent(two), *results]).messages
    assert [message.content for message in found[-2:]] == ["0", "1"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "body: must be a JSON object"),
        ({"messages": []}, "messages: must be a list of messages that is not empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]: has no role of system"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]: its content must be a"),
        ({"messages": OPENING, "n": 2}, "n: must be 1"),
        ({"messages": OPENING, "response_format": {"type": "json_object"}}, "response_format: is not"),
        ({"messages": OPENING, "tool_choice": "required"}, "tool_choice: must be auto or none"),
        ({"messages": OPENING, "max_tokens": 0}, "max_tokens: must be an integer above 0"),
        ({"messages": OPENING, "max_tokens": True}, "max_tokens: must be an integer above 0"),
        ({"messages": OPENING, "stop": [""]}, "stop: must be up to 4 texts"),
        ({"messages": OPENING, "stop": 3}, "stop: must be up to 4 texts"),
        ({"messages": OPENING, "tools": [{"type": "function"}]}, "tools: must be of the form"),
        ({"messages": OPENING, "tools": [*TOOLS, *TOOLS]}, "tools: must have different names"),
        ({"messages": [*OPENING, ANSWER]}, "messages: must end with a message"),
        ({"messages": [*OPENING, RESULT]}, "messages[2]: tool_call_id must be that of a call"),
        ({"messages": [*OPENING, as_sent(CALL), RESULT, RESULT]}, "messages[4]: is a second result"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0]: a part of type image_url is not supported",
        ),
        (
            {"messages": [*OPENING, {"role": "assistant", "tool_calls": 3}, OPENING[1]]},
            "messages[2]: its tool_calls must be a list",
        ),
        (
            {"messages": OPENING, "tools": [_declared({"required": 1})]},
            "tools: the required parameters of f must be a list of names",
        ),
        (
            {"messages": OPENING, "tools": [_declared({"properties": {"a": {"enum": 3}}})]},
            "tools: the parameters of f must be a JSON schema of an object",
        ),
        (
            {"messages": [*OPENING, {"role": "assistant", "tool_calls": [BROKEN]}, OPENING[1]]},
            "messages[2]: has a tool call whose arguments are not JSON",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(body, reason):
    with pytest.raises(RequestError) as error:
        read_request(body)
    assert str(error.value).startswith(reason)
    assert error.value.status == 400


def test_a_request_says_what_is_the_runs_to_decide():
    found = request(
        OPENING, temperature=0.2, top_p=None, frequency_penalty=0, seed=7, stop="END", max_tokens=9
    )
    assert [name for name, _ in found.sampling] == ["temperature", "seed"]
    assert (found.stops, found.max_tokens) == (("END",), 9)
    assert request(OPENING, max_completion_tokens=5, max_tokens=9).max_tokens == 5
    assert request(OPENING, max_completion_tokens=None, max_tokens=9).max_tokens == 9
    streamed = request(OPENING, stream=True, stream_options={"include_usage": True}, logprobs=True)
    assert (streamed.stream, streamed.with_usage, streamed.with_logprobs) == (True, True, True)
    assert request(OPENING, tool_choice="none").tools == ()


def test_the_policy_reads_the_tools_as_they_were_declared(chat):
    made = recorder(chat)
    asked = made.ask(request(OPENING))
    text = chat.tokenizer.decode(asked.prompt_ids)
    assert "get_order" in text
    assert "Looks an order up." in text
    [tool] = request(OPENING).tools
    assert tool.schema() == TOOLS[0]


ODD = [
    {},
    {"type": "object"},
    {"properties": {"a": {}, "b": {"type": ["integer", "null"]}, "c": {"anyOf": [{"type": "array"}]}}},
    {"properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "object", "additionalProperties": True}}},
    {"properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"const": 3}}}}}},
    {"properties": {"a": {"enum": [1, "x"], "default": [], "description": None}}, "required": ["a"]},
]


@pytest.mark.parametrize("parameters", ODD, ids=range(len(ODD)))
def test_any_schema_can_be_announced(chat, parameters):
    tool = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    asked = recorder(chat).ask(request(OPENING, [tool]))
    assert "odd" in chat.tokenizer.decode(asked.prompt_ids)


def test_calls_that_an_agent_shows_stand_as_the_guide_says(load):
    """A history that was not sampled here, as examples or after a summary."""
    made = recorder(load("gpt2").chat)
    shown = AgentTurn("", "One moment.", "", (RequestedCall("get_order", {"lines": [1], "order_id": "482"}),))
    alone = AgentTurn("", "", "", (RequestedCall("get_order", {"lines": [1]}),))
    history = [
        *OPENING,
        as_sent(shown),
        RESULT,
        as_sent(alone),
        RESULT,
        {"role": "user", "content": "Thanks"},
    ]
    text = load("gpt2").chat.text(made.ask(request(history)).prompt_ids)
    assert "One moment.\n/get_order lines=1 order_id=482\n" in text
    assert "\n/get_order lines=1\n" in text
    assert "<tool_call>" not in text
