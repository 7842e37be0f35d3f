"""A person in the user's place: tools answer as in a conversation, words do not reach them, changes show."""

from __future__ import annotations

import pytest

from gspo_cli.tasks.base import SingleTurn, ToolEnvironment
from gspo_cli.tasks.changes import LONGEST, differences
from gspo_cli.tasks.scenarios.environment import ScenarioEnvironment
from gspo_cli.tasks.technical_support.environment import Mode, SupportEnvironment
from gspo_cli.types import AgentTurn, Message, Problem, RequestedCall
from tests.support.retail_files import built as retail
from tests.support.retail_files import cancel, problem_of, wish, write_folder
from tests.support.shop_conversations import CANCEL, opened
from tests.support.tau2_files import opened as telecom
from tests.support.tau2_files import write_domains

CARD = {
    "id": "card",
    "opening": "my card is gone.",
    "goals": ["blocked"],
    "beats": [{"when": {"any": ["block"]}, "say": "thank you.", "reach": "blocked"}],
    "tools": [{"name": "find_card", "description": "Find it.", "parameter": "name", "otherwise": "no card"}],
}


def open_shop(tmp_path):
    return opened(CANCEL)


def open_solo(tmp_path):
    return open_phone(Mode.solo)


def open_scripted(tmp_path):
    return open_phone(Mode.scripted)


def open_phone(mode):
    phone = SupportEnvironment(mode)
    problem = Problem("p", (Message("user", "help"),), metadata={"faults": ["vpn", "apn"], "abroad": False})
    phone.reset(problem, 0)
    return phone


def open_scenario(tmp_path):
    scenario = ScenarioEnvironment()
    scenario.reset(Problem("card", (), metadata={"scenario": CARD}), 0)
    return scenario


def open_retail(tmp_path):
    environment = retail(write_folder(tmp_path)).environment()
    environment.reset(problem_of(wish(0, "Cancel order #W0 because no longer needed. ", cancel("#W0"))), 0)
    return environment


def open_telecom(tmp_path):
    return telecom(write_domains(tmp_path), "apn")


LOOKS = {
    open_shop: "/get_order 482",
    open_solo: "/get_status",
    open_scenario: "/find_card ann",
    open_retail: "/get_order_details #W0",
    open_telecom: "/check_status_bar",
}
WRITES = {
    open_shop: ("/cancel_order 482", "order 482: status pending -> cancelled, refunded 0 -> 40"),
    open_solo: ("/set vpn off", "vpn: on -> off"),
    open_retail: (
        "/cancel_pending_order #W0 'no longer needed'",
        "orders/#W0: status: pending -> cancelled",
    ),
    open_telecom: ("/toggle_data", "phone.data_enabled: True -> False"),
}


@pytest.mark.parametrize("open_world", [*LOOKS, open_scripted])
def test_every_conversational_environment_is_a_world_and_nothing_has_changed_at_first(open_world, tmp_path):
    world = open_world(tmp_path)
    assert isinstance(world, ToolEnvironment)
    assert world.changes() == []


def test_a_single_answer_has_no_world():
    assert not isinstance(SingleTurn(), ToolEnvironment)


@pytest.mark.parametrize("open_world", LOOKS)
@pytest.mark.parametrize("call", ["look", "/no_such_tool", "<tool_call>{"])
def test_tools_answer_a_person_as_they_answer_in_a_conversation(open_world, call, tmp_path):
    call = LOOKS[open_world] if call == "look" else call
    (tmp_path / "other").mkdir()
    world, other = open_world(tmp_path), open_world(tmp_path / "other")
    [observation] = world.observe(call)
    assert (Message("tool", observation),) == other.step(call).messages
    assert world.finish().counts == other.finish().counts


@pytest.mark.parametrize("open_world", [*LOOKS, open_scripted])
def test_words_are_for_the_person(open_world, tmp_path):
    world = open_world(tmp_path)
    assert world.observe("hello, how may i help?") is None
    assert world.changes() == []


def test_an_agent_without_tools_only_speaks(tmp_path):
    assert open_scripted(tmp_path).observe("/set vpn off") is None


@pytest.mark.parametrize("open_world", WRITES)
def test_what_a_call_changes_is_said_in_words(open_world, tmp_path):
    world = open_world(tmp_path)
    call, line = WRITES[open_world]
    world.observe(LOOKS[open_world])
    assert world.changes() == []
    world.observe(call)
    assert line in world.changes()


def test_a_reset_and_a_reboot_of_a_phone_are_changes(tmp_path):
    phone = open_solo(tmp_path)
    phone.observe("/set apn default")
    phone.observe("/reboot")
    assert phone.changes() == ["apn: custom -> default", "apn in use: custom -> default"]
    phone.observe("/factory_reset")
    assert "everything else is gone" in phone.changes()


def test_differences_name_the_field_and_keep_values_short():
    before = {"items": [{"price": 5.0}], "address": {"city": "rome"}, "same": 1}
    after = {"items": [{"price": 7.5}, {"price": None}], "address": {"city": "x" * 1000}, "same": 1}
    price, city = differences(before, after)
    assert price == "items[0].price: 5.0 -> 7.5"
    assert city == f"address.city: rome -> {'x' * (LONGEST - 1)}…"


def test_calls_of_a_turn_are_answered_one_by_one_or_refused_where_the_policy_wants_one(tmp_path):
    calls = (RequestedCall("find_customer", {"email": "nobody@mail.com"}), RequestedCall("get_order", {}))
    step = open_shop(tmp_path).step(AgentTurn("", "", "", calls))
    assert [message.role for message in step.messages] == ["tool", "tool"]
    assert "takes order_id" in step.messages[1].content
    retail = (RequestedCall("get_order_details", {"order_id": "#W1"}),) * 2
    step = open_retail(tmp_path).step(AgentTurn("", "", "", retail))
    assert [message.content for message in step.messages] == ["error: make one tool call at a time"]
    assert open_shop(tmp_path).observe(AgentTurn("", "Hello", "They said hello.", ())) is None
