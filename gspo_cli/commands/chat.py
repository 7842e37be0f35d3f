"""`gspo-chat`: talk to a trained agent, or watch it with its task's own user.

Both are rollouts, as in training: a person takes the user's place in the environment, and the tools stay the
same."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gspo_cli.commands.chat_environments import HumanUser, Show, ShownEnvironment
from gspo_cli.commands.entry import run_command
from gspo_cli.commands.model_source import has_reward_object, model_parser, resolve
from gspo_cli.config.checks import require
from gspo_cli.tasks.base import SingleTurn, ToolEnvironment
from gspo_cli.types import FinishReason, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from gspo_cli.training.dialogue import Dialogues

DESCRIPTION = (
    "Talk to the agent of a run, or to any model, in a task's environment, or watch its conversations."
)
EXAMPLES = """examples:
  gspo-chat outputs/customer_service-tiny-gspo/<run>
      you are the customer; the agent's tool calls act on the task's database
  gspo-chat outputs/customer_service-tiny-gspo/<run> --watch 3
      the agent with the task's own user on three held-out problems, and the reward of each
  gspo-chat outputs/customer_service-tiny-gspo/<run> --watch 3 --checkpoint initial
      the same with the model before training
  gspo-chat <run, model folder, adapter folder, GGUF file or hub id> --free
      text only, without an environment
"""
LONGEST_CHAT = 200  # turns
STYLES = {"user": "bold", "assistant": "cyan", "tool": "yellow", "change": "magenta", "about": "dim"}
LABELS = {"assistant": "agent"}
ENDS = {
    FinishReason.length: "The model's context is full: this is the end of the conversation.",
    FinishReason.turns: f"The agent has had {LONGEST_CHAT} turns: this is the end of the conversation.",
}


def main() -> None:
    """Entry point of `gspo-chat`."""
    run_command("gspo-chat", chat_command)


def chat_command() -> int:
    """Run the conversations that the command line asks for."""
    arguments = parse()
    instead = ["reward=null"] if has_reward_object(Path(arguments.model)) else []
    config, source, adapter = resolve(arguments.model, arguments.checkpoint, [*instead, *arguments.overrides])
    problems = config.task.heldout_problems()
    require(
        0 <= arguments.problem < len(problems),
        f"--problem {arguments.problem}: give a number from 0 to {len(problems) - 1}",
    )

    from rich.console import Console

    from gspo_cli.training.dialogue import Dialogues

    for stream in (sys.stdin, sys.stdout):  # an unprintable character must not end a conversation
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    show = printer(Console(highlight=False))
    dialogues = Dialogues(config, source, adapter, arguments.temperature)
    if not arguments.watch:
        talk(dialogues, problems[arguments.problem], show, arguments.free)
        return 0
    if instead and config.reward is None:
        show(
            "about",
            "The run's reward was a Python object; conversations are scored by the task's own reward.",
        )
    watched = problems[arguments.problem : arguments.problem + arguments.watch]
    if len(watched) < arguments.watch:
        show("about", f"--watch {arguments.watch}: only {len(watched)} held-out problems are left to watch.")
    for problem in watched:
        watch(dialogues, problem, show)
    return 0


def parse() -> argparse.Namespace:
    """The command line. Raises UserError on numbers out of range."""
    parser = model_parser("gspo-chat", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--watch", type=int, default=0, metavar="N", help="watch N conversations with the task's own user"
    )
    parser.add_argument("--problem", type=int, default=0, metavar="I", help="held-out problem to start with")
    parser.add_argument("--free", action="store_true", help="text only, without an environment")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default) always takes the most likely token"
    )
    arguments = parser.parse_intermixed_args()  # overrides may stand after flags
    watched, temperature = arguments.watch, arguments.temperature
    require(watched >= 0, f"--watch {watched}: give 0 or more conversations")
    require(not (watched and arguments.free), "--free: has no user to watch; leave out --free or --watch")
    require(0 <= temperature < math.inf, f"--temperature {temperature}: give 0 or more")
    return arguments


def talk(dialogues: Dialogues, problem: Problem, show: Show, free: bool) -> None:
    """A conversation with a person, until they end their input or write /quit."""
    task = dialogues.config.task
    found = SingleTurn() if free or task.runs_agent else task.environment()
    environment = found if isinstance(found, ToolEnvironment) else None
    if environment is None:
        show("about", "Text only, without tools. End with /quit.")
    else:
        show("about", f"You are the user of {about(problem)}. End with /quit.")
        first = f"The task's own user would start with: {problem.messages[-1].content}"
        show("about", f"{problem.about} {first}".strip())
    person = HumanUser(environment, prompter(show), show)
    message = person.next_message()
    if message is None:
        return
    person.first = message
    trajectory = dialogues.run(problem, lambda: person, max_turns=LONGEST_CHAT, tools=environment is not None)
    if not person.left:
        show("about", trajectory.excluded or ENDS.get(trajectory.finish_reason, ""))


def watch(dialogues: Dialogues, problem: Problem, show: Show) -> None:
    """One conversation with the task's own user, and its reward."""
    show("about", about(problem))
    task = dialogues.config.task
    if task.runs_agent:
        trajectory = dialogues.run_agent(problem)
        for message in trajectory.messages:
            show(message.role, message.content)
    else:
        trajectory = dialogues.run(problem, lambda: ShownEnvironment(task.environment(), show))
    dialogues.score(trajectory)
    if trajectory.excluded is not None:
        show("about", f"excluded: {trajectory.excluded}\n")
        return
    parts = ", ".join(f"{name} {value:.2f}" for name, value in trajectory.components.items())
    solved = "solved" if trajectory.solved else "not solved"
    reward = f"reward {trajectory.reward:.2f}" + (f" ({parts})" if parts else "")
    show("about", f"{solved} in {trajectory.num_turns} turns; {reward}\n")


def about(problem: Problem) -> str:
    """A problem's name, and what its user wants if that is known."""
    return f"{problem.id}: {problem.answer}" if problem.answer else problem.id


def prompter(show: Show) -> Callable[[], str]:
    """Reads what a person types. Lines from a file or a pipe are shown, as a terminal shows typed ones."""
    if sys.stdin.isatty():
        return lambda: input("you: ")

    def read() -> str:
        line = input()
        if line.strip():
            show("user", line)
        return line

    return read


def printer(console: Console) -> Show:
    """Prints texts with their roles. Control characters and markup that a model wrote have no effect."""
    from rich.text import Text

    from gspo_cli.console.words import clean

    def show(role: str, text: str) -> None:
        lines = [clean(line) for line in text.split("\n")]
        label = "" if role == "about" else f"{LABELS.get(role, role)}: "
        body = f"\n{' ' * len(label)}".join(lines)
        styled = Text(f"{label}{body}", STYLES.get(role, ""))
        console.print(styled, soft_wrap=not console.is_terminal)  # a pipe gets whole lines

    return show


if __name__ == "__main__":
    main()
