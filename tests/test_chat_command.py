"""gspo-chat: a person in the user's place, or a look at the task's own user; a model's words are shown."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gspo_cli.commands.chat import chat_command, main, printer
from gspo_cli.commands.chat_environments import HumanUser, ShownEnvironment
from gspo_cli.commands.model_source import resolve
from gspo_cli.tasks.base import SingleTurn, Step
from gspo_cli.tasks.customer_service import oracle
from gspo_cli.tasks.customer_service.environment import ShopEnvironment
from gspo_cli.types import Message
from tests.support.command_line import call
from tests.support.reporters import Silent
from tests.support.shop_conversations import CANCEL, problem_of
from tests.support.talking_runs import trained

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run on customer_service."""
    return trained(tmp_path_factory.mktemp("chat") / "run", Silent()).path


@pytest.fixture
def chat(run, monkeypatch, capsys):
    """`chat("--watch 1", "hello\\n")`: what is printed when these lines are typed."""

    def typed(arguments: str = "", lines: str = "", folder: Path = run) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["gspo-chat", str(folder), *arguments.split()])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert chat_command() == 0
        return capsys.readouterr().out.splitlines()

    return typed


class Shown(list):
    """What a conversation shows, as (role, text)."""

    def __call__(self, role, text):
        self.append((role, text))


def said_by(lines):
    """A person who says these lines and then leaves."""
    waiting = iter(lines)

    def ask():
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    return ask


def test_a_person_talks_to_the_agent_in_the_shop(chat):
    out = chat("--problem 2 --temperature 1", "hello\nplease cancel my order\n")
    assert out[0].startswith("You are the user of heldout-2: ")
    assert re.match(r"Your email is \w+@mail\.com\. The task.s own user would start with: ", out[1])
    assert [line.partition(":")[0] for line in out[2:]] == ["user", "agent", "user", "agent"]
    assert out[2] == "user: hello"


@pytest.mark.parametrize("lines", ["", "\n \n", "/quit\n", " /quit \nhello\n"])
def test_a_person_who_leaves_at_once_hears_no_agent(chat, lines):
    assert not [line for line in chat("", lines) if line.startswith("agent")]


def test_empty_lines_are_asked_again_and_quit_ends_it(chat):
    out = chat("", "\n\nhello\n\n/quit\nis anybody there?\n")
    assert [line for line in out if line.startswith("user")] == ["user: hello", "user: /quit"]
    assert len([line for line in out if line.startswith("agent")]) == 1


def test_the_tasks_own_user_is_watched_and_the_agent_judged(chat):
    out = chat("--watch 2 --problem 1")
    assert [line.partition(":")[0] for line in out if line.startswith("heldout")] == [
        "heldout-1",
        "heldout-2",
    ]
    verdicts = [line for line in out if line.startswith(("solved", "not solved"))]
    assert len(verdicts) == 2
    for part in ("reward", "standing/outcome", "standing/facts", "standing/policy", "manner/empathy"):
        assert part in verdicts[0]


def test_fewer_problems_than_asked_for_are_said(chat):
    out = chat("--watch 3 --problem 2")
    assert out[0] == "--watch 3: only 2 held-out problems are left to watch."
    assert len([line for line in out if line.startswith("heldout")]) == 2
    assert not [line for line in chat("--watch 1") if line.startswith("--watch")]


def test_a_model_folder_is_taken_for_what_it_holds(run, tmp_path):
    folder = tmp_path / "tiny"  # the name says nothing
    folder.mkdir()
    for layers, label in ((4, "small"), (400, "large")):
        shape = {"hidden_size": 1024, "num_hidden_layers": layers, "vocab_size": 1000}
        (folder / "config.json").write_text(json.dumps(shape))
        config, source, adapter = resolve(folder, "best", ["task=customer_service"])
        assert (config.model.label, source, adapter) == (label, str(folder), None)
        assert config.rollout.max_completion_length == config.task.answer_length > 32
        assert config.task.instructions
    assert resolve(folder, "best", ["model=tiny"])[0].model.label == "tiny"


def test_settings_of_the_task_may_change_and_stand_after_flags(chat):
    wishes = [
        line for line in chat("--watch 4 task.difficulty=4 task.max_turns=14") if line.startswith("heldout")
    ]
    assert max(line.count(";") for line in wishes) >= 2


def test_the_agent_before_training_is_another(chat):
    assert chat("--watch 1 --temperature 1 --checkpoint initial")


@pytest.mark.parametrize("arguments", ["--free", "model=tiny task=arithmetic model.instructions=true --free"])
def test_words_only_where_no_environment_is_wanted(chat, run, arguments):
    folder = run if arguments == "--free" else run / "checkpoints" / "last"
    out = chat(arguments, "hello\n", folder)
    assert out[0].startswith("Text only")
    assert [line.partition(":")[0] for line in out[1:]] == ["user", "agent"]


@pytest.mark.long
def test_a_task_of_single_answers_has_words_only(chat, run):
    out = chat("model=tiny task=arithmetic", "1+1=\n", run / "checkpoints" / "last")
    assert out[0].startswith("Text only")
    out = chat("model=tiny task=arithmetic --watch 1", "", run / "checkpoints" / "last")
    assert [line.partition(":")[0] for line in out[1:3]] == ["user", "agent"]


def test_a_run_whose_reward_a_script_gave_can_be_talked_to_and_watched(chat, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, symlinks=True)
    saved = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(saved.replace("reward: null", "reward: python object mine.Reward"))
    assert chat("", "hello\n", folder)[-1].startswith("agent")
    out = chat("--watch 1", "", folder)
    assert out[0] == (
        "The run's reward was a Python object; conversations are scored by the task's own reward."
    )
    assert any("standing/outcome" in line for line in out)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--checkpoint nowhere", "--checkpoint nowhere: does not exist; choose one of initial"),
        ("--problem 4", "--problem 4: give a number from 0 to 3"),
        ("--problem -1", "--problem -1: give a number from 0 to 3"),
        ("--watch -2", "--watch -2: give 0 or more conversations"),
        ("--watch 1 --free", "--free: has no user to watch"),
        ("--temperature -1", "--temperature -1.0: give 0 or more"),
        ("--temperature nan", "--temperature nan: give 0 or more"),
        ("task.nothing=1", "task.nothing: is not a setting"),
    ],
)
def test_bad_input_is_one_sentence(run, monkeypatch, capsys, arguments, reason):
    monkeypatch.setattr(sys, "argv", ["gspo-chat", str(run), *arguments.split()])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"gspo-chat: {reason}")


def test_a_folder_that_is_not_there_is_one_sentence():
    done = call("gspo-chat", "./nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gspo-chat: model.name=./nowhere: no such file or folder is here; give a hub id, a model folder "
        "(config.json), a GGUF file, an adapter folder (adapter_config.json) or a run folder (config.yaml)\n"
    )


def test_tools_act_on_the_shop_of_the_problem_and_changes_are_shown():
    shown = Shown()
    person = HumanUser(
        ShopEnvironment(), said_by(["yes", "no, thanks"]), shown, first="i am mia27@mail.com. cancel 482."
    )
    assert person.reset(problem_of(CANCEL), 0) == (Message("user", "i am mia27@mail.com. cancel 482."),)
    assert person.step("/find_customer mia27@mail.com").messages[0].role == "tool"
    assert person.step("shall i cancel 482?").messages == (Message("user", "yes"),)
    person.step("/cancel_order 482")
    assert shown[-1] == ("change", "order 482: status pending -> cancelled, refunded 0 -> 40")
    assert not person.step("done. anything else?").done
    assert person.step("bye").done
    assert person.left
    assert [role for role, _ in shown].count("change") == 1
    assert person.finish().details["changes"]


def test_a_person_is_asked_again_until_they_say_something():
    person = HumanUser(None, said_by(["", "  \t", " hello "]), Shown())
    assert person.step("hi").messages == (Message("user", "hello"),)
    assert person.step("/cancel_order 482").done


def test_ctrl_c_at_the_prompt_leaves():
    def interrupted():
        raise KeyboardInterrupt

    person = HumanUser(None, interrupted, Shown())
    assert person.step("hi").done
    assert person.left


def test_the_tasks_user_is_shown_as_the_agent_hears_them():
    shown, environment, problem = Shown(), ShopEnvironment(), problem_of(CANCEL)
    narrated = ShownEnvironment(environment, shown)
    messages = list(narrated.reset(problem, 0))
    done = False
    while not done:
        text = oracle.answer(messages)
        step = narrated.step(text)
        messages += [Message("assistant", text), *step.messages]
        done = step.done
    assert [entry for entry in shown if entry[0] != "change"] == [(m.role, m.content) for m in messages]
    assert [text for role, text in shown if role == "change"] == [
        "order 482: status pending -> cancelled, refunded 0 -> 40"
    ]
    assert narrated.finish().solved


def test_an_environment_that_waits_is_shown_when_it_answers():
    class Slow(SingleTurn):
        single_turn = False

        async def step(self, text):
            return Step((Message("user", "at last"),))

    shown = Shown()
    waiting = ShownEnvironment(Slow(), shown).step("hello?")
    with pytest.raises(StopIteration) as finished:
        waiting.send(None)
    assert finished.value.value == Step((Message("user", "at last"),))
    assert shown == [("assistant", "hello?"), ("user", "at last")]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_says_is_shown_and_not_obeyed(terminal):
    file = io.StringIO()
    show = printer(Console(file=file, force_terminal=terminal, color_system=None, highlight=False, width=60))
    show("assistant", "\x1b[2J\x07[bold]red[/bold] \x9b31m\u202eabc\r\nsecond line\x00")
    assert file.getvalue() == "agent: �[2J�[bold]red[/bold] �31m�abc\n       second line�\n"


def test_a_pipe_gets_whole_lines():
    file = io.StringIO()
    printer(Console(file=file, highlight=False, width=40))("tool", "word " * 50)
    assert len(file.getvalue().splitlines()) == 1
