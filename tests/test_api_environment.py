"""Environments as the guide writes them: lists of scenarios, queries to train on, and rewards by domain."""

from __future__ import annotations

import asyncio
import json

import pytest

from gspo_cli import (
    CONVERSATION_CONFIGS,
    ConversationEnvironment,
    RewardFunction,
    RewardResult,
    UserError,
    create_customer_service_reward,
    create_domain_reward,
    train_with_gspo,
)
from gspo_cli.rewards.conversation import DOMAINS
from gspo_cli.run.folder import RunFolder
from tests.support.api_runs import CARDS, quick_config, tiny_agent

GUIDE = [  # as the guide writes scenarios
    {"topic": "refund", "user_goal": "get the money back", "context": "The parcel came broken."},
    {"topic": "delivery", "context": "Where is my parcel?"},
    {"user_goal": "cancel the order"},
    {"topic": "chat", "context": "a bored user", "user_responses": ["hello.", "how are you?"]},
]


class Words(RewardFunction):
    """Remembers what users said first, by side."""

    def __init__(self):
        self.openings = set()

    def compute_reward(self, trajectory, turn, context):
        said = [message.content for message in trajectory.messages if message.role == "user"]
        self.openings.add(said[0])
        return RewardResult((sum(trajectory.token_ids) % 7) / 7)


def openings(problems):
    return {problem.messages[-1].content for problem in problems}


def train(folder, reporter, environment, reward, **more):
    changes = {"num_outer_iterations": 1, "max_turns": 2}
    config = quick_config(folder, "model.cold_start.steps=0", **changes)
    return asyncio.run(train_with_gspo(config, tiny_agent(), environment, reward, reporter, **more))


def test_scenarios_in_the_guides_form_are_what_users_say():
    environment = ConversationEnvironment(scenarios=GUIDE, persona="You are kind.", max_turns=3)
    assert len(environment.scenarios) == len(GUIDE)
    task = environment.task()
    assert (len(task.train_problems()), len(task.heldout_problems())) == (3, 1)
    assert openings([*task.train_problems(), *task.heldout_problems()]) == {
        "The parcel came broken.",
        "Where is my parcel?",
        "cancel the order",
        "hello.",
    }
    assert (task.system_prompt, task.max_turns) == ("You are kind.", 3)
    assert environment.scenarios[0]["wants"] == "get the money back"
    assert GUIDE[0].keys() == {"topic", "user_goal", "context"}  # the script's own list is as it was


@pytest.mark.long
def test_the_environments_of_the_guide_list_their_scenarios():
    for name, settings in CONVERSATION_CONFIGS.items():
        environment = ConversationEnvironment(**settings.copy())
        problems = environment.task().train_problems()
        assert len(environment.scenarios) == len(problems) > 0
        assert environment.scenarios[0] == {
            "task": name,
            "id": problems[0].id,
            "context": problems[0].messages[-1].content,
        }


def test_held_out_scenarios_take_the_place_of_a_share():
    environment = ConversationEnvironment(scenarios=GUIDE[:2], heldout_scenarios=GUIDE[2:3])
    task = environment.task()
    assert openings(task.train_problems()) == {"The parcel came broken.", "Where is my parcel?"}
    assert openings(task.heldout_problems()) == {"cancel the order"}


def test_queries_are_trained_on_in_place_of_the_environments_problems(tmp_path, reporter):
    reward, queries = Words(), [f"where is parcel {n}?" for n in range(10)]
    environment = ConversationEnvironment(**CONVERSATION_CONFIGS["customer_service"])
    agent = train(tmp_path, reporter, environment, reward, train_queries=queries)
    assert reward.openings <= set(queries)
    [line] = RunFolder(agent.run_folder).read("metrics.jsonl")
    assert line["num_turns"] == 1  # the answer ends the conversation
    rows = json.loads((agent.run_folder / "scenarios.json").read_text())
    assert [row["user_responses"] for row in rows] == [[query] for query in queries]


def test_queries_over_scenarios_are_measured_on_the_scenarios_that_are_held_out(tmp_path, reporter):
    reward, queries = Words(), ["where is parcel 1?", {"query": "where is parcel 2?", "topic": "parcels"}]
    environment = ConversationEnvironment(scenarios=CARDS)
    train(tmp_path, reporter, environment, reward, train_queries=queries)
    held = openings(environment.task().heldout_problems())
    assert reward.openings == {"where is parcel 1?", "where is parcel 2?"} | held


def test_scenarios_with_goals_as_queries_need_no_reward(tmp_path, reporter):
    agent = train(tmp_path, reporter, ConversationEnvironment("sales"), None, train_queries=CARDS)
    assert agent.summary["task"] == "scenarios"
    assert agent.summary["status"] == "completed"


@pytest.mark.parametrize(
    ("queries", "sentence"),
    [
        ("where?", "^train_queries: is a str; give a list of texts or dicts"),
        ([], "^train_queries: is empty; give at least two"),
        (["where?"], "^train_queries: has 1; give at least two, one of which is held out"),
        (["where?", "when?"], "^train_queries: have no goals that could be scored; give a reward_model"),
        ([1, 2], "scenario 1: is not a JSON object"),
        (["a", {"topic": "x"}], 'needs "opening"'),
    ],
)
def test_queries_that_cannot_be_trained_on_are_refused(queries, sentence, tmp_path, reporter):
    reward = None if "reward_model" in sentence else create_customer_service_reward()
    with pytest.raises(UserError, match=sentence):
        train(tmp_path, reporter, ConversationEnvironment("sales"), reward, train_queries=queries)


def test_problems_of_a_task_are_no_queries(tmp_path, reporter):
    environment = ConversationEnvironment("sales", problems=10)
    with pytest.raises(
        UserError, match=r"^train_queries: train-0 is a problem of sales, whose user and tools"
    ):
        train(tmp_path, reporter, environment, None, train_queries=environment.scenarios)


@pytest.mark.parametrize("domain", [*DOMAINS, "support", "IT", " helpdesk", "Marketing"])
def test_a_domain_of_the_guide_has_a_reward(domain):
    reward = create_domain_reward(domain)
    assert reward.parts.keys() == create_customer_service_reward().parts.keys() == {"standing", "manner"}
    assert create_domain_reward(domain, weights={"outcome": 0.5}).parts["standing"][1].weights == {
        "outcome": 0.5
    }


def test_an_unknown_domain_is_one_sentence_with_the_known_ones():
    with pytest.raises(UserError) as error:
        create_domain_reward("creative_writing")
    known = "customer_service, technical_support, sales, tutoring"
    assert str(error.value) == (
        f"create_domain_reward: creative_writing is not a domain; choose one of {known}"
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ConversationEnvironment(scenarios="one"), "^scenarios: is a str; give a list of texts"),
        (lambda: ConversationEnvironment(scenarios=[]), "^scenarios: is empty; give at least two"),
        (
            lambda: ConversationEnvironment(heldout_scenarios=GUIDE),
            "^heldout_scenarios: only apply with",
        ),
    ],
)
def test_scenarios_that_are_none_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
