"""`gspo-chat`: talk to a trained agent, or watch it with its task's own user.

Both are rollouts, as in training: a person takes the user's place in the environment, whose tools stay what
they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gspo_cli.commands.evaluate import resolve
from gspo_cli.commands.train import run_command
from gspo_cli.config.checks import require
from gspo_cli.environments.base import Environment, SingleTurn, Step, World
from gspo_cli.types import Message, Outcome, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from gspo_cli.training.dialogue import Dialogues

EXAMPLES = """examples:
  gspo-chat outputs/customer_service-tiny-gspo/<run>
      you are the customer; the agent's tool calls act on the task's database
  gspo-chat outputs/customer_service-tiny-gspo/<run> --watch 3
      the task's own user talks, in three held-out problems; with the reward of each
  gspo-chat outputs/customer_service-tiny-gspo/<run> --watch 3 --checkpoint initial
      the same before training
  gspo-chat <run or model folder> --free
      no environment: words only
"""
LONGEST_CHAT = 200  # turns
STYLES = {"user": "bold", "assistant": "cyan", "tool": "yellow", "change": "magenta", "about": "dim"}
NAMES = {"assistant": "agent"}
Show = Callable[[str, str], None]


def main() -> None:
    """Entry point of `gspo-chat`."""
    sys.path.insert(0, "")  # tasks and rewards by dotted path from the user's folder
    run_command("gspo-chat", chat_command)


def chat_command() -> int:
    """Hold the conversations that the command line asks for."""
    arguments = parse()
    require(arguments.watch >= 0, f"--watch {arguments.watch}: give a number of conversations")
    config, source, adapter = resolve(arguments.folder, arguments.checkpoint, arguments.overrides)

    from rich.console import Console

    from gspo_cli.training.dialogue import Dialogues

    console = Console(highlight=False)
    held = Dialogues(config, source, adapter, arguments.temperature)
    problems = held.problems
    require(
        0 <= arguments.problem < len(problems),
        f"--problem {arguments.problem}: give a number from 0 to {len(problems) - 1}",
    )
    show = shower(console)
    if not arguments.watch:
        talk(held, problems[arguments.problem], show, free=arguments.free)
        return 0
    for problem in problems[arguments.problem : arguments.problem + arguments.watch]:
        watch(held, problem, show)
    return 0


def talk(held: Dialogues, problem: Problem, show: Show, free: bool) -> None:
    """A conversation with a person, until they end their input or write /quit."""
    task = held.config.task
    world = SingleTurn() if free else task.environment()
    if not isinstance(world, World):
        world = None
        show("about", "Words only: this task has no tools to act with. End with /quit.")
    else:
        show("about", f"You are the user of {problem.id}. End with /quit.")
        show("about", f"The task's own user wants: {problem.answer}")
    person = Person(world, lambda: input("you: "), show)
    held.hold(problem, lambda: person, max_turns=LONGEST_CHAT)


def watch(held: Dialogues, problem: Problem, show: Show) -> None:
    """One conversation with the task's own user, and how it was judged."""
    show("about", f"{problem.id}: {problem.answer}")
    trajectory = held.hold(problem, lambda: Narrated(held.config.task.environment(), show))
    held.judge(trajectory)
    if trajectory.excluded is not None:
        show("about", f"left out: {trajectory.excluded}\n")
        return
    parts = ", ".join(f"{name} {value:.2f}" for name, value in trajectory.components.items())
    solved = "solved" if trajectory.solved else "not solved"
    show("about", f"{solved}; reward {trajectory.reward:.2f} ({parts})\n")


class Narrated:
    """An environment that shows what is said as it is said, and what it changes."""

    def __init__(self, environment: Environment, show: Show) -> None:
        self.environment, self.show = environment, show
        self.single_turn = environment.single_turn
        self._known: list[str] = []

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The environment's own opening."""
        return self._shown(self.environment.reset(problem, seed))

    def step(self, text: str) -> Step | Awaitable[Step]:
        """The environment's own step."""
        self.show("assistant", text)
        step = self.environment.step(text)
        return self._heard(step) if isinstance(step, Step) else self._later(step)

    async def _later(self, step: Awaitable[Step]) -> Step:
        return self._heard(await step)

    def _heard(self, step: Step) -> Step:
        self._known = show_changes(self.environment, self._known, self.show)
        self._shown(step.messages)
        return step

    def finish(self) -> Outcome:
        """The environment's own outcome."""
        return self.environment.finish()

    def _shown(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        for message in messages:
            self.show(message.role, message.content)
        return messages


class Person:
    """A person in the user's place. `world` is the environment that the agent's tools act on, None for words
    only; `ask` returns what the person says next and raises EOFError where they leave."""

    single_turn = False

    def __init__(self, world: World | None, ask: Callable[[], str], show: Show) -> None:
        self.world, self.ask, self.show = world, ask, show
        self._known: list[str] = []

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The person speaks first; what the task's own user would say is shown as an example."""
        if self.world is not None:
            opening = self.world.reset(problem, seed)
            self.show("about", f"It would begin: {opening[-1].content}")
        return self._asked() or (Message("user", ""),)

    def step(self, text: str) -> Step:
        """A tool's answer, or the person's."""
        self.show("assistant", text)
        observation = None if self.world is None else self.world.observe(text)
        if observation is None:
            messages = self._asked()
            return Step(messages, done=not messages)
        self._known = show_changes(self.world, self._known, self.show)
        self.show("tool", observation)
        return Step((Message("tool", observation),))

    def finish(self) -> Outcome:
        """A person's judgement is their own."""
        return Outcome() if self.world is None else self.world.finish()

    def _asked(self) -> tuple[Message, ...]:
        try:
            said = self.ask().strip()
        except EOFError:
            return ()
        return () if said == "/quit" else (Message("user", said),)


def show_changes(environment: Environment, known: list[str], show: Show) -> list[str]:
    """Show what is new of an environment's changes, where it knows any; returns all of them."""
    changes = environment.changes() if isinstance(environment, World) else []
    for change in changes:
        if change not in known:
            show("change", change)
    return changes


def shower(console: Console) -> Show:
    """Shows who says what. What a model wrote is shown, never obeyed."""
    from rich.text import Text

    from gspo_cli.run.words import clean

    def show(role: str, text: str) -> None:
        lines = [clean(line) for line in text.split("\n")]
        label = "" if role == "about" else f"{NAMES.get(role, role)}: "
        body = f"\n{' ' * len(label)}".join(lines)
        console.print(Text(f"{label}{body}", STYLES.get(role, "")))

    return show


def parse() -> argparse.Namespace:
    """The command line: a folder, flags, and overrides as for gspo-train."""
    parser = argparse.ArgumentParser(
        prog="gspo-chat",
        description="Talk to the agent of a run or model folder in its task's environment, or watch it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="run folder of gspo-train, or a folder with a model")
    parser.add_argument("overrides", nargs="*", help="settings as for gspo-train, e.g. task.difficulty=3")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, initial, or a checkpoint's name"
    )
    parser.add_argument(
        "--watch", type=int, default=0, metavar="N", help="let the task's own user talk, N times"
    )
    parser.add_argument("--problem", type=int, default=0, metavar="I", help="held-out problem to begin with")
    parser.add_argument("--free", action="store_true", help="no environment: words only")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token each time"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
