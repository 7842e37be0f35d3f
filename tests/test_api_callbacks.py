"""Callbacks of train_with_gspo: what they hear, how they end a run, and what becomes of their errors."""

from __future__ import annotations

import asyncio
import threading
import traceback

import pytest

from gspo_cli import UserError, train_with_gspo
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.checkpoint import Checkpoints
from tests.support.api_runs import arithmetic, quick_config, tiny_agent
from tests.support.whole_runs import EvenReward

pytestmark = pytest.mark.long


class Notes:
    """Remembers all events, and answers an event with `answers[event, iteration]`."""

    def __init__(self, **answers):
        self.heard, self.answers = [], answers

    def on_start(self, run):
        return self._note("on_start", run)

    def on_iteration(self, metrics):
        return self._note("on_iteration", metrics)

    def on_evaluation(self, record):
        return self._note("on_evaluation", record)

    def on_end(self, summary):
        return self._note("on_end", summary)

    def _note(self, event, record):
        self.heard.append((event, record))
        return self.answers.get(f"{event}_{record.get('iteration')}")

    @property
    def events(self):
        return [(event, record.get("iteration")) for event, record in self.heard]


def train(folder, reporter, *callbacks, **changes):
    config, agent = quick_config(folder, **changes), tiny_agent()
    return asyncio.run(train_with_gspo(config, agent, arithmetic(), EvenReward(), reporter, callbacks))


def saved(folder):
    checkpoints = Checkpoints(RunFolder(folder).checkpoints, None)
    return checkpoints.iteration(checkpoints.last)


def test_callbacks_hear_what_the_run_folder_holds(tmp_path, reporter):
    notes = Notes()
    agent = train(tmp_path, reporter, notes)
    folder = RunFolder(agent.run_folder)
    assert notes.events == [
        ("on_start", 0),
        ("on_evaluation", 0),
        ("on_iteration", 1),
        ("on_iteration", 2),
        ("on_evaluation", 2),
        ("on_end", None),
    ]
    heard = [record for event, record in notes.heard if event == "on_iteration"]
    assert heard == folder.read("metrics.jsonl")
    assert [record for event, record in notes.heard if event == "on_evaluation"] == folder.read("evals.jsonl")
    assert notes.heard[-1][1] == agent.summary
    start = notes.heard[0][1]
    assert (start["run_folder"], start["total_iterations"]) == (folder.path, 2)
    assert start["card"].rstrip() == (folder.path / "card.txt").read_text().rstrip()
    assert ("end", "completed") in reporter.events  # the terminal hears the same


def test_what_a_callback_writes_into_a_record_changes_nothing(tmp_path, reporter):
    class Clears:
        def on_iteration(self, metrics):
            metrics.clear()

    notes = Notes()
    agent = train(tmp_path, reporter, Clears(), notes)
    assert ("on_iteration", 2) in notes.events
    assert len(RunFolder(agent.run_folder).read("metrics.jsonl")) == 2


@pytest.mark.parametrize(
    ("answers", "iterations"),
    [({"on_iteration_1": False}, 1), ({"on_evaluation_2": False}, 2), ({"on_start_0": False}, 0)],
)
def test_a_callback_that_returns_false_ends_the_run_early(answers, iterations, tmp_path, reporter):
    notes = Notes(**answers)
    agent = train(tmp_path, reporter, notes, num_outer_iterations=6)
    assert (agent.summary["status"], agent.summary["iterations"]) == ("stopped_early", iterations)
    assert agent.summary["final_eval"]["iteration"] == iterations
    assert saved(agent.run_folder) == iterations
    assert notes.events[-1] == ("on_end", None)
    assert agent.policy is not None


@pytest.mark.parametrize("answer", [None, True, 0, ""])
def test_only_false_itself_ends_a_run(answer, tmp_path, reporter):
    agent = train(tmp_path, reporter, Notes(on_iteration_1=answer))
    assert agent.summary["status"] == "completed"


class Breaks:
    def __init__(self, at):
        self.at = at

    def on_iteration(self, metrics):
        if metrics["iteration"] == self.at:
            raise KeyError("my own mistake")


def test_what_a_callback_raises_is_raised_with_its_own_lines_and_loses_no_iteration(tmp_path, reporter):
    notes = Notes()
    config, agent = quick_config(tmp_path, num_outer_iterations=6), tiny_agent()
    with pytest.raises(KeyError, match="my own mistake") as error:
        asyncio.run(train_with_gspo(config, agent, arithmetic(), EvenReward(), reporter, [Breaks(3), notes]))
    lines = [frame.line for frame in traceback.extract_tb(error.tb)]
    assert lines[-1] == 'raise KeyError("my own mistake")'
    assert (agent.summary["status"], agent.summary["iterations"]) == ("failed", 3)
    assert saved(agent.run_folder) == 3  # checkpoint.every is 2
    assert agent.policy is not None
    assert notes.events[-1] == ("on_evaluation", 2)  # nothing is told after it


def test_a_callback_may_be_a_coroutine_of_the_scripts_loop(tmp_path, reporter):
    class Waits:
        async def on_iteration(self, metrics):
            await asyncio.sleep(0)
            seen.append((threading.current_thread(), asyncio.get_running_loop()))
            return False

    async def main():
        trained = await train_with_gspo(
            quick_config(tmp_path, num_outer_iterations=6),
            tiny_agent(),
            arithmetic(),
            EvenReward(),
            reporter,
            callbacks=[Waits()],
        )
        return trained, asyncio.get_running_loop()

    seen = []
    agent, loop = asyncio.run(main())
    assert seen == [(threading.main_thread(), loop)]
    assert agent.summary["status"] == "stopped_early"


class Misspelled:
    def on_iterations(self, metrics):
        """Never called."""


@pytest.mark.parametrize(
    ("callbacks", "sentence"),
    [
        (
            [object()],
            r"^callbacks\[0\]: object has none of the methods on_start, on_iter",
        ),
        ([Notes(), Misspelled()], r"^callbacks\[1\]: Misspelled has on_iterations, which is never called; "),
        (
            Notes(),
            "^callbacks: is a Notes; give a list of objects with on_start, on_iteration, on_ev",
        ),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_made(callbacks, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        asyncio.run(train_with_gspo(quick_config(tmp_path), tiny_agent(), arithmetic(), callbacks=callbacks))
    assert list(tmp_path.iterdir()) == []
