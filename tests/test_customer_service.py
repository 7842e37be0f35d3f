"""customer_service: the oracle solves every problem, shortcuts solve none, the two sides share nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from functools import partial
from statistics import mean

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR, locate
from gspo_cli.errors import UserError
from gspo_cli.tasks.customer_service import oracle
from gspo_cli.tasks.customer_service.environment import ShopEnvironment
from gspo_cli.tasks.customer_service.scenario import from_json, to_json
from gspo_cli.tasks.customer_service.task import CustomerService
from gspo_cli.tasks.customer_service.tools import TOOLS
from gspo_cli.tasks.llm_user import LlmUser
from gspo_cli.tasks.tau.users import says_done
from gspo_cli.tasks.tools import ToolCall
from gspo_cli.types import Message
from tests.support.shop_conversations import CANCEL, MOVE, REFUND, STATUS, play, problem_of


def task_of(difficulty=2, **settings):
    small = {"problems": 60, "heldout": 30, "demonstrations_count": 20}
    return CustomerService("customer_service", "", "", difficulty=difficulty, **(small | settings))


TASKS = {difficulty: task_of(difficulty) for difficulty in (1, 2, 3, 4)}


def reward(trajectory):
    return TASKS[1].reward().compute_reward(trajectory, trajectory.messages[-1], {}).total_reward


# agents that take shortcuts


def silent(messages):
    return ""


def refuser(messages):
    return "sorry, i cannot help you with that."


def hasty(messages):
    """Never asks for consent."""
    text = oracle.answer(messages)
    return oracle.answer([*messages, Message("user", "yes")]) if "shall i" in text else text


def confirmer(messages):
    """Asks again and again, and never acts."""
    return oracle.answer([m for m in messages if m.content[:3] != "yes"])


def lister(messages):
    """Tells everything at once."""
    listing = [m.content for m in messages if m.role == "tool"]
    return listing[0].replace(",", " is") if listing else oracle.answer(messages)


def liar(messages):
    """Says that it is done, and does nothing."""
    text = hasty(messages)
    if not text.startswith("/") or "find" in text:
        return text
    order = text.split()[1]
    return f"your order {order} is cancelled, moved to rome, 40 dollars are refunded."


def guesser(messages):
    """Answers without looking."""
    order = oracle.ORDER.search(" ".join(m.content for m in messages if m.role == "user")).group()
    return f"your order {order} is delivered."


@pytest.mark.parametrize("difficulty", TASKS)
@pytest.mark.parametrize("side", ["train_problems", "heldout_problems"])
def test_the_oracle_solves_every_problem_within_the_shortest_number_of_turns(difficulty, side):
    task = TASKS[difficulty]
    for seed, problem in enumerate(getattr(task, side)()):
        trajectory = play(problem, oracle.answer, seed, 2 + 3 * difficulty)
        assert trajectory.outcome.solved, trajectory.messages
        assert trajectory.progress[-1] == {"outcome": 1, "facts": 1, "policy": 0}
        assert trajectory.outcome.counts["tool_errors"] == trajectory.outcome.counts["clarifications"] == 0
        assert reward(trajectory) > 0.95


@pytest.mark.parametrize(("request_", "turns"), [(STATUS, 3), (CANCEL, 5), (REFUND, 5), (MOVE, 5)])
def test_conversations_are_short(request_, turns):
    assert len(play(problem_of(request_), oracle.answer).progress) == turns


@pytest.mark.parametrize("agent", [silent, refuser, hasty, confirmer, lister, liar, guesser])
def test_shortcuts_solve_nothing_and_earn_less(agent):
    problems = [*TASKS[2].train_problems(), *TASKS[2].heldout_problems()]
    if agent in (hasty, confirmer, liar):  # elsewhere these are honest
        problems = [p for p in problems if any(w in p.answer for w in ("cancel", "refund", "move"))]
    played = [play(problem, agent) for problem in problems]
    assert not any(trajectory.outcome.solved for trajectory in played)
    honest = [reward(play(problem, oracle.answer)) for problem in problems]
    assert all(reward(t) < best for t, best in zip(played, honest, strict=True))
    assert mean(map(reward, played)) < mean(honest) - 0.1


@pytest.mark.parametrize("agent", [silent, refuser])
@pytest.mark.parametrize("difficulty", TASKS)
def test_doing_nothing_reaches_nothing(agent, difficulty):
    for problem in TASKS[difficulty].train_problems():
        trajectory = play(problem, agent)
        assert trajectory.progress[-1] == {"outcome": 0, "facts": 0, "policy": 0}
        assert trajectory.outcome.solved is False


def test_a_seed_gives_the_same_conversation_in_whatever_order():
    problems = TASKS[3].train_problems()
    forward = [play(problem, oracle.answer, seed=7) for problem in problems]
    backward = [play(problem, oracle.answer, seed=7) for problem in reversed(problems)][::-1]
    assert [t.messages for t in forward] == [t.messages for t in backward]
    others = [play(problem, oracle.answer, seed=8).messages for problem in problems]
    same = [other == t.messages for other, t in zip(others, forward, strict=True)]
    assert sum(same) < len(same) / 10  # two seeds may draw the same words


def test_the_two_sides_share_no_customer_no_opening_and_no_chance():
    first, again = task_of(problems=500, heldout=200), task_of(problems=500, heldout=200)
    train, heldout = first.train_problems(), first.heldout_problems()
    assert (list(train), list(heldout)) == (list(again.train_problems()), list(again.heldout_problems()))
    people = [{email for p in side for email in p.metadata["customers"]} for side in (train, heldout)]
    assert people[0].isdisjoint(people[1])
    openings = [[p.messages[0].content for p in side] for side in (train, heldout)]
    assert len({*openings[0], *openings[1]}) == 700
    # pinned: if these move, a resumed run is evaluated on problems that it was trained on
    assert [p.answer for p in heldout[:2]] == ["move 663 to cairo", "tell 986 shipped"]


def test_a_problem_is_plain_json_and_says_what_a_good_answer_is():
    for problem in TASKS[4].train_problems():
        assert json.loads(json.dumps(problem.metadata)) == problem.metadata
        world = from_json(problem.metadata)
        assert to_json(world) == problem.metadata
        assert problem.answer == world.goal()
        shop = ShopEnvironment()
        assert problem.messages == shop.reset(problem, 0)
        shop.finish()
        assert len({request.order for request in world.requests}) == len(world.requests) <= 4
        assert all(world.orders_by_id[request.order].customer == world.customer for request in world.requests)


def test_all_kinds_of_requests_and_refusals_are_asked_for():
    answers = " ".join(problem.answer for problem in task_of(4, problems=300).train_problems())
    assert all(word in answers for word in ("cancel", "refund", "move", "pending", "shipped", "delivered"))


def test_demonstrations_are_solved_conversations_that_end_with_the_agent():
    task = task_of(careless=0.0)
    demonstrations = task.demonstrations()
    assert len(demonstrations) == 20
    for seed, (problem, shown) in enumerate(zip(task.train_problems()[:20], demonstrations, strict=True)):
        told = [m.content for m in shown.messages if m.role == "assistant"]
        turns = iter(told)
        assert shown.messages[-1].role == "assistant"
        assert play(problem, lambda _, turns=turns: next(turns), seed, len(told)).outcome.solved


@pytest.mark.parametrize("difficulty", TASKS)
@pytest.mark.parametrize("habit", oracle.Habit)
def test_a_bad_habit_ends_conversations_unsolved_wherever_it_shows(difficulty, habit):
    shown = 0
    for problem in TASKS[difficulty].train_problems():
        good = play(problem, oracle.answer)
        bad = play(problem, partial(oracle.answer, habits=frozenset({habit})))
        assert bad.messages[-1].role == "user"  # whatever its habits, it brings a conversation to an end
        if bad.messages != good.messages:
            shown += 1
            assert not bad.outcome.solved
            assert reward(bad) < reward(good) - 0.2 / difficulty
    assert shown > 0


def test_careless_demonstrations_are_of_mixed_quality_and_the_same_every_time():
    task = task_of(demonstrations_count=60)
    assert task.demonstrations() == task_of(demonstrations_count=60).demonstrations()
    solved = []
    for seed, (problem, shown) in enumerate(zip(task.train_problems(), task.demonstrations(), strict=True)):
        turns = iter([m.content for m in shown.messages if m.role == "assistant"])
        solved.append(play(problem, lambda _, turns=turns: next(turns), seed).outcome.solved)
    assert 0.05 < mean(solved) < 0.6


def test_the_briefing_has_policy_and_tools_unless_they_are_known_already():
    system = task_of().system_prompt_and_tools()
    assert "email" in system.text
    assert [tool.name for tool in system.tools] == list(TOOLS)
    assert task_of(system_prompt="Be brief.").system_prompt_and_tools().text == "Be brief."
    bare = task_of(instructions=False).system_prompt_and_tools()
    assert (bare.text, bare.announced) == ("", False)


def test_the_yaml_lists_every_setting():
    node = OmegaConf.load(CONF_DIR / "task" / "customer_service.yaml")
    assert locate(node.pop("_target_"), "task._target_") is CustomerService
    assert set(node) == {field.name for field in fields(CustomerService)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("difficulty", 0), ("difficulty", 5), ("problems", 0), ("problems", 10**6), ("heldout", 0)],
        *[("demonstrations_count", 0), ("max_turns", 7)],
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(name, value):
    with pytest.raises(UserError, match=rf"^task\.{name}="):
        task_of(**{name: value})


@pytest.mark.parametrize(
    ("text", "done"),
    [
        *[("I am not done", False), ("This cannot be done.", False), ("It isn't done", False)],
        *[("I could not find it, but the rest is done", True), ("Nothing was wrong. All done!", True)],
    ],
)
def test_what_is_not_done_ends_no_ticket(text, done):
    assert says_done(text) is done


class Replies:
    """An endpoint that answers what it was given."""

    def __init__(self, *texts):
        self.texts = iter(texts)

    async def complete(self, messages):
        return next(self.texts)


def test_one_yes_is_consent_to_one_change():
    call = ToolCall("cancel_pending_order", {"order_id": "#W1"})

    async def talk():
        user = LlmUser(Replies("Yes.", "Fine.", "yes, that too"), "x", "Hello.")
        agreed = []
        for text in ("Shall I?", "Wait.", "And this?"):
            await user.respond(text)
            agreed += [user.agrees(call), user.agrees(call)]  # to look is to use nothing up
            user.notice(call)
            agreed.append(user.agrees(call))
        return agreed

    assert asyncio.run(talk()) == [True, True, False, False, False, False, True, True, False]
