"""Awaiting the API: other tasks go on, signals and cancelling end a run, errors are one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from itertools import pairwise

import pytest

import gspo_cli
from gspo_cli import GSPOConfig, UserError, get_config_for_task, train_with_gspo
from gspo_cli.api.awaiting import bordered
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.summary import read_summary
from gspo_cli.signals import Stopped
from gspo_cli.training.checkpoint import Checkpoints
from tests.support.api_runs import arithmetic, quick_config, tiny_agent
from tests.support.command_line import ROOT, environment
from tests.support.whole_runs import EvenReward

pytestmark = pytest.mark.long

LONG = 1000


class At:
    """Calls `action` at an iteration, in the event loop."""

    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    async def on_iteration(self, metrics):
        if metrics["iteration"] >= self.iteration:
            self.action()


def train(folder, reporter, *callbacks, iterations=2):
    config = quick_config(folder, num_outer_iterations=iterations)
    return train_with_gspo(config, tiny_agent(), arithmetic(), EvenReward(), reporter, callbacks)


async def ticking(ticks):
    while True:
        await asyncio.sleep(0)
        ticks.append(asyncio.get_running_loop().time())


def stored(root):
    [folder] = root.glob("*/*")
    checkpoints = Checkpoints(RunFolder(folder).checkpoints, None)
    last = checkpoints.last
    return read_summary(folder), None if last is None else checkpoints.iteration(last)


def test_other_tasks_run_while_a_run_trains(tmp_path, reporter):
    marks = []

    class Marks:
        def on_iteration(self, metrics):
            marks.append(len(ticks))

    async def main():
        ticker = asyncio.create_task(ticking(ticks))
        await train(tmp_path, reporter, Marks(), iterations=4)
        ticker.cancel()

    ticks = []
    asyncio.run(main())
    assert all(after - before > 10 for before, after in pairwise(marks))


def test_other_tasks_run_while_a_model_loads_and_answers(folders, tmp_path):
    async def main():
        agent = gspo_cli.MultiTurnAgent(gspo_cli.AgentConfig(folders["qwen3"], max_new_tokens=40))
        ticker = asyncio.create_task(ticking(ticks))
        await agent.initialize()
        loaded = len(ticks)
        answers = await asyncio.gather(*(agent.generate_response("hello", seed=seed) for seed in (1, 2, 1)))
        ticker.cancel()
        return loaded, len(ticks) - loaded, answers, await agent.generate_response("hello", seed=2)

    ticks = []
    loading, answering, answers, alone = asyncio.run(main())
    assert loading > 10
    assert answering > 10
    assert answers[0] == answers[2] != answers[1] == alone  # answers do not disturb each other


def test_runs_that_are_awaited_together_train_one_after_the_other(tmp_path, reporter):
    events = []

    class Says:
        def __init__(self, name):
            self.name = name

        def on_start(self, run):
            events.append(self.name)

        def on_end(self, summary):
            events.append(self.name)

    async def main():
        return await asyncio.gather(*(train(tmp_path / name, reporter, Says(name)) for name in "ab"))

    first, second = asyncio.run(main())
    assert events == ["a", "a", "b", "b"]
    assert first.summary["final_eval"]["score"] == second.summary["final_eval"]["score"]


def test_the_first_signal_ends_a_run_with_a_checkpoint_and_returns_the_agent(tmp_path, reporter):
    before = signal.getsignal(signal.SIGTERM)

    async def main():
        stop = At(3, lambda: signal.raise_signal(signal.SIGTERM))
        return await train(tmp_path, reporter, stop, iterations=LONG)

    agent = asyncio.run(main())
    assert (agent.summary["status"], agent.summary["iterations"]) == ("interrupted", 3)
    assert stored(tmp_path)[1] == 3
    assert reporter.warnings.count("stopping after this iteration with a checkpoint") == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_a_run_at_once(tmp_path, reporter):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(train(tmp_path, reporter, At(3, twice), iterations=LONG))
    summary, checkpoint = stored(tmp_path)
    assert (summary["status"], checkpoint) == ("interrupted", 2)  # checkpoint.every is 2
    for thread in threading.enumerate():
        if thread.name.startswith("gspo training"):
            thread.join(10)
            assert not thread.is_alive()


def test_cancelling_ends_a_run_with_a_checkpoint(tmp_path, reporter):
    async def main():
        begun = asyncio.Event()
        run = asyncio.create_task(train(tmp_path, reporter, At(3, begun.set), iterations=LONG))
        await begun.wait()
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run
        return run.cancelled()

    assert asyncio.run(main())
    summary, checkpoint = stored(tmp_path)
    assert summary["status"] == "interrupted"
    assert summary["iterations"] == checkpoint >= 3


def test_a_run_can_be_awaited_in_another_thread(tmp_path, reporter):
    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(train(tmp_path, reporter))))
    thread.start()
    thread.join()
    assert found[0].summary["status"] == "completed"


def test_an_error_that_a_script_does_not_catch_shows_no_inside_of_the_package(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import asyncio\n"
        "from gspo_cli import *\n"
        "config = GSPOConfig(num_generations=3, generations_per_iteration=100)\n"
        "agent, environment = MultiTurnAgent(AgentConfig()), ConversationEnvironment('arithmetic')\n"
        "asyncio.run(train_with_gspo(config, agent, environment))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    shown = done.stderr.splitlines()
    assert shown[-1].startswith("gspo_cli.UserError: training.generations_per_iteration=100: must be")
    own = [line for line in shown if str(ROOT / "gspo_cli") in line]
    assert len(own) == 1, own
    assert "api/awaiting.py" in own[0]
    assert not [line for line in shown if "another exception" in line or "direct cause" in line]


def test_errors_are_those_that_scripts_import():
    with pytest.raises(UserError) as error:
        get_config_for_task("cooking")
    assert type(error.value) is UserError is gspo_cli.UserError
    assert error.value.__cause__ is None
    assert len(error.traceback) == 2  # this test, and the border
    assert GSPOConfig().seed == 0


@pytest.mark.parametrize("error", [Stopped, UserError])
def test_what_ends_a_call_at_once_shows_no_inside_of_the_package(error):
    def inside():
        raise error("stopped")

    async def deep():
        inside()

    for called in (bordered(inside), lambda: asyncio.run(bordered(deep)())):
        with pytest.raises(error) as found:
            called()
        assert [entry.name for entry in found.traceback][-1] in ("called", "awaited")
