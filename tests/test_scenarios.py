"""The user's own scenarios: how patterns are read, what a file may hold, and mistakes named by place."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR, build_task, locate
from gspo_cli.errors import UserError
from gspo_cli.tasks.patterns import Pattern, clauses, plain
from gspo_cli.tasks.sales.task import Sales
from gspo_cli.tasks.scenarios.environment import ScenarioEnvironment
from gspo_cli.tasks.scenarios.reading import read_scenario
from gspo_cli.tasks.scenarios.scenario import __doc__ as FORMAT
from gspo_cli.tasks.scenarios.task import Scenarios
from gspo_cli.tasks.scripted import converse
from gspo_cli.tasks.tutoring.task import Tutoring
from gspo_cli.types import Message, Problem

BEST = {"outcome": 1.0, "facts": 1.0, "policy": 0.0}
ROW = json.loads(re.sub(r"\s+", " ", FORMAT[FORMAT.index("{") : FORMAT.index("`when`")]))


def own(folder, *rows, **settings):
    """The task over a file with these scenarios."""
    path = folder / "mine.json"
    path.write_text(json.dumps(rows))
    return Scenarios("scenarios", "", "", path=str(path), **{"heldout": 1} | settings)


def talk_to(row, *turns, seed=0):
    """The conversation with the user of a scenario in which the agent says `turns`."""
    lines = iter(turns)
    problem = Problem("p", (), metadata={"scenario": row})
    return converse(ScenarioEnvironment(), problem, lambda messages: next(lines), seed, len(turns))


def variants(count=4):
    return [{**ROW, "id": f"card-{n}", "opening": f"my card {n} is gone."} for n in range(count)]


def changed(**changes):
    return {key: value for key, value in {**ROW, **changes}.items() if value is not None}


def heard(talk):
    return [message.content for message in talk.messages if message.role != "assistant"]


def test_phrases_are_whole_words_of_one_clause():
    pattern = Pattern((("order", "buy"), (plain("the nova"),)), none=("not",))
    pattern = Pattern(
        tuple(tuple(map(plain, group)) for group in pattern.groups), tuple(map(plain, pattern.none))
    )
    assert pattern.holds(clauses("Well, ORDER the  Nova!"))
    for text in ("reorder the nova", "order. the nova", "do not order the nova", "order the novas", "order"):
        assert not pattern.holds(clauses(text))
    assert [clause.asks for clause in clauses("is it? it is, yes. no")] == [True, False, False, False]


def test_the_documented_scenario_is_read_and_solved_by_its_example():
    talk = talk_to(ROW, *ROW["example"])
    assert heard(talk) == ["my card is gone.", "ann lee.", "thank you."]
    assert (talk.outcome.solved, talk.progress) == (True, BEST)


def test_goals_are_reached_in_their_order_and_one_a_turn():
    early = talk_to(ROW, "i block the card.")
    assert (heard(early)[1], early.progress["outcome"]) == ("not so fast, please.", 0)
    crowded = talk_to(ROW, "may i have your name? i block the card.")
    assert (heard(crowded)[1], crowded.progress["outcome"]) == ("one thing at a time, please.", 0)


def test_facts_and_violations_count_whenever_they_are_said():
    talk = talk_to(ROW, "a new card comes in a week.", "what is your pin?", "your pin please")
    assert talk.progress == {"outcome": 0, "facts": 1, "policy": -0.5}
    assert talk.outcome.details["violations"] == ["asked for the pin"] * 2
    assert talk.outcome.counts["clarifications"] == 3


def test_a_lookup_answers_what_it_knows():
    talk = talk_to(ROW, "/find_card 'Ann Lee'", "/find_card bob", "/find_card", "/find_nothing")
    taken = 'find_card takes name, for example /find_card "eva may"'
    assert heard(talk)[1:4] == ["card 12", "no such name", taken]
    assert (talk.outcome.counts["tool_calls"], talk.outcome.counts["tool_errors"]) == (2, 3)


def test_the_seed_picks_among_words():
    row = changed(opening=["one", "two", "three"])
    assert {heard(talk_to(row, "", seed=seed))[0] for seed in range(20)} == {"one", "two", "three"}


FREE = {"id": "f", "topic": "billing", "context": "charged twice", "user_responses": ["hi", "charged", "ok"]}


def test_free_form_says_its_lines_and_leaves_the_judgement_to_the_reward():
    talk = talk_to(FREE, "hello", "i refund it", "goodbye", "never said")
    assert heard(talk) == ["hi", "charged", "ok"]
    assert talk.turns == 3
    assert talk.progress == {}
    assert talk.outcome.solved is None
    assert talk.outcome.details["context"] == "charged twice"


def test_a_file_of_scenarios_is_a_task(tmp_path):
    task = own(tmp_path, *variants(), FREE, heldout=2)
    assert (len(task.train_problems()), len(task.heldout_problems())) == (3, 2)
    assert {p.id for p in task.train_problems()}.isdisjoint(p.id for p in task.heldout_problems())
    assert [tool.name for tool in task.system_prompt_and_tools().tools] == ["find_card"]
    for demonstration in task.demonstrations():
        assert [m.content for m in demonstration.messages if m.role == "assistant"] == ROW["example"]
        assert demonstration.messages[-1].role == "assistant"


def test_a_second_file_can_be_held_out(tmp_path):
    held = tmp_path / "held.json"
    held.write_text(json.dumps(variants(1)))
    task = own(tmp_path, *variants(3), heldout_path=str(held))
    assert [p.id for p in task.heldout_problems()] == ["card-0"]
    assert len(task.train_problems()) == 2
    assert task.notes() == ["1 training scenarios are left out: their ids are also held out"]


BEAT = ROW["beats"][0]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (3, "scenario 2: is not a JSON object"),
        (changed(id=None), 'scenario 2: needs "id"'),
        (changed(id="card-0"), 'scenario 2: the id "card-0" is used twice'),
        (changed(opening=None), 'scenario 2: needs "opening"'),
        (changed(goals=[]), 'scenario 2: needs "goals"'),
        (changed(gaols=["x"]), 'scenario 2: has an unknown key "gaols"'),
        (changed(patience=0), 'scenario 2: "patience" must be'),
        (changed(beats={}), 'scenario 2: "beats" must be a list'),
        (changed(beats=[3]), "scenario 2, beats 1: is not a JSON object"),
        (changed(beats=[{**BEAT, "say": 3}]), 'scenario 2, beats 1: "say" must be a string'),
        (changed(beats=[{**BEAT, "end": 1}]), 'scenario 2, beats 1: "end" must be true'),
        (changed(beats=[{**BEAT, "when": {}}]), 'scenario 2, beats 1, when: needs "all" or "any"'),
        (changed(beats=[{**BEAT, "when": {"any": ["?!"]}}]), "has a string without words"),
        (changed(beats=[{**BEAT, "when": {"all": "a"}}]), 'beats 1, when: "all" must be a list'),
        (changed(beats=[{**BEAT, "when": {"some": ["a"]}}]), 'when: has an unknown key "some"'),
        (changed(beats=[{**BEAT, "after": ["x"]}]), 'no beat reaches the goal "blocked"'),
        (changed(goals=["identified"]), 'a beat reaches "blocked", which is not in "goals"'),
        (changed(facts=[{**ROW["facts"][0], "unless": ["x"]}]), '"x" in after or unless is not a goal'),
        (changed(facts=[{"name": "x"}]), "scenario 2, facts 1, when: is not a JSON object"),
        (changed(tools=[{"name": "a b"}]), 'scenario 2, tools 1: "name" must consist of letters'),
        (changed(tools=[{**ROW["tools"][0], "answers": {"a": 1}}]), '"answers" must be an object of strings'),
        (changed(example=["hello"]), '"example" does not solve it (goals missed: identified, blocked; facts'),
        ({"id": "f", "user_responses": []}, '"user_responses" is empty'),
        ({"id": "f", "user_responses": ["a"], "goals": ["b"]}, 'has an unknown key "goals"'),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence_with_its_place(row, sentence, tmp_path):
    with pytest.raises(UserError, match=rf"mine\.json: .*{re.escape(sentence.removeprefix('scenario 2'))}"):
        own(tmp_path, *variants(1), row).train_problems()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"", "is not JSON"), (b"\xff", "is not JSON"), (b"{}", "must be a list")],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_its_setting(content, reason, tmp_path):
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(UserError, match=rf"^task\.path=.*bad\.json: {reason}"):
        Scenarios("scenarios", "", "", path=str(bad)).train_problems()
    with pytest.raises(UserError, match=r"^task\.path: is needed"):
        Scenarios("scenarios", "", "")


def test_tools_of_one_name_are_one_tool(tmp_path):
    other = {**ROW, "id": "other", "tools": [{**ROW["tools"][0], "description": "Another."}]}
    with pytest.raises(UserError, match='describes the tool "find_card" differently from another'):
        own(tmp_path, *variants(2), other).tools()


@pytest.mark.parametrize("name", ["sales", "tutoring", "scenarios"])
def test_the_yaml_lists_every_setting_of_its_task(name, tmp_path):
    node = OmegaConf.load(CONF_DIR / "task" / f"{name}.yaml")
    assert set(node) - {"_target_"} == {field.name for field in fields(locate(node["_target_"], ""))}
    (tmp_path / "mine.json").write_text(json.dumps(variants(12)))
    settings = {"instructions": True, "answer_length": 24}
    if name == "scenarios":
        settings |= {"path": str(tmp_path / "mine.json")}
    made = build_task(OmegaConf.merge(node, settings))
    assert made.system_prompt_and_tools().text
    silent = build_task(OmegaConf.merge(node, settings, {"instructions": False}))
    assert not silent.system_prompt_and_tools().announced


def test_a_scenario_is_plain_data():
    for problem in (
        *Sales("", "", "", problems=3).train_problems(),
        *Tutoring("", "", "", problems=3).train_problems(),
    ):
        row = json.loads(json.dumps(problem.metadata["scenario"]))
        assert read_scenario(row, "here") == read_scenario(problem.metadata["scenario"], "here")
        assert problem.messages == (Message("user", row["opening"]),)
