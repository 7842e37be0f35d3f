"""The telecom world: repairs show as they should, policy counts, and no text harms it."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from gspo_cli.randomness import generator
from gspo_cli.tasks.tau.users import TICKET_ANSWER, says_done
from gspo_cli.tasks.tau2.tools import TOOLS
from tests.support.tau2_files import (
    built,
    opened,
    problems_of,
    write_domains,
)

TRANSFER = "/transfer_to_human_agents 'I cannot fix it'"


@pytest.fixture
def folder(tmp_path):
    return write_domains(tmp_path)


def test_a_repair_that_waits_for_a_reboot_shows_only_after_it(folder):
    environment = opened(folder, "apn")
    assert environment.step("/reset_apn_settings").progress["outcome"] == 0
    assert "no service" in environment.step("/check_status_bar").messages[0].content
    assert environment.step("/reboot_device").progress["outcome"] == 1
    assert "signal good" in environment.step("/check_status_bar").messages[0].content


def test_damage_counts_against_the_outcome(folder):
    environment = opened(folder, "airplane")
    environment.step("/toggle_airplane_mode")
    assert environment.step("/toggle_airplane_mode").progress["outcome"] == 0
    locked = opened(folder, "lock")
    assert locked.step(TRANSFER).progress["outcome"] == 1
    used_up = opened(folder, "data")
    assert used_up.step("/toggle_data").progress["outcome"] == 1
    assert used_up.step("/toggle_airplane_mode").progress["outcome"] == 0


def test_lifting_a_suspension_before_payment_or_after_the_contract_breaks_the_policy(folder):
    unpaid = opened(folder, "bill")
    assert unpaid.step("/resume_line C1 L1").progress["policy"] == -0.25
    assert unpaid.step("/send_payment_request C1 B9").progress["policy"] == -0.25
    assert unpaid.step("/make_payment").progress["policy"] == -0.25  # allowed by the ticket
    ended = opened(folder, "ended")
    ended.step("/send_payment_request C1 B9")
    ended.step("/make_payment")
    ended.step("/resume_line C1 L1")
    assert ended.finish().details["violations"] == ["resume_line: the contract of the line is over"]
    assert opened(folder, "data").step("/send_payment_request C1 B1").progress["policy"] == -0.25


def test_the_required_action_must_be_called_with_the_arguments_that_are_compared(folder):
    environment = opened(folder, "lock")
    assert not environment.finish().solved
    step = environment.step("/transfer_to_human_agents 'in my own words'")
    assert step.done
    assert environment.finish().solved


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("Done.", True),
        ("It is done", True),
        ("all DONE!!", True),
        ("I have not done it yet", False),
        ("", False),
    ],
)
def test_work_ends_where_words_begin_or_end_with_done(text, done):
    assert says_done(text) == done


@pytest.mark.parametrize(
    "text",
    [
        "", "\x00\ud800", "x" * 100_000, "so done x " * 20_000, "<tool_call>{",
        '{"name": "refuel_data"' * 9000,
        "/refuel_data C1 L1 1e308", "/refuel_data C1 L1 nan", "/refuel_data C1 L1 -2",
        "/refuel_data C1 L1 2.1",
        "/set_apn_settings " + "a" * 900 + " b", "/set_apn_settings '<|im_end|>' '\x1b'",
        "/grant_app_permission messaging root", "/check_app_permissions ''", "/get_details_by_id ''",
        "/get_customer_by_name '; DROP TABLE customers' x", "/change_plan C1 L1 P999", "/resume_line C1 L1",
        "/make_payment", "/set_network_mode_preference 6g", "<|im_start|>system",
    ],
)  # fmt: skip
def test_hostile_text_gets_an_answer_and_is_not_repeated(folder, text):
    environment = opened(folder, "airplane")
    for _ in range(3):
        step = environment.step(text)
        assert (step.progress["outcome"], step.done) == (0, False)
        (message,) = step.messages
        assert message.content.startswith("error: ") or message.content == TICKET_ANSWER
        assert len(message.content) < 1500
        assert "<|im" not in message.content
    assert environment.finish().solved is False


def test_random_agents_never_break_the_world_or_each_other(folder):
    task = built(folder)
    problems = problems_of(task)
    before = deepcopy((task._telecom.tables, task._telecom.phone))
    pool = [
        "C1",
        "L1",
        "B1",
        "B9",
        "P1",
        "555-1",
        "2",
        "2.0",
        "-1",
        "messaging",
        "sms",
        "4g_only",
        "",
        "\ud800",
    ]
    succeeded = 0
    for seed in range(300):
        random, environment = generator(seed, "fuzz"), task.environment()
        environment.reset(problems[seed % len(problems)], seed)
        for _ in range(15):
            tool = TOOLS[str(random.choice(list(TOOLS)))]
            values = {p.name: pool[int(random.integers(len(pool)))] for p in tool.parameters}
            step = environment.step(json.dumps({"name": tool.name, "arguments": values}))
            assert all(-1 <= value <= 1 for value in step.progress.values())
        world = environment.world
        succeeded += len(world.calls)
        assert all(line["data_refueling_gb"] >= 0 for line in world.tables["lines"].values())
        assert sum(b["status"] == "Awaiting Payment" for b in world.tables["bills"].values()) <= 1
        assert json.dumps(environment.finish().details)
    assert succeeded > 1000
    assert (task._telecom.tables, task._telecom.phone) == before
