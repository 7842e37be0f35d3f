"""`gspo-chat`: talk to a trained agent, or watch it with its task's own user.

Both are rollouts, as in training: a person takes the user's place in the environment, whose tools stay what
they are."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gspo_cli.commands.evaluate import resolve
from gspo_cli.commands.train import INTERRUPTED, run_command
from gspo_cli.config.checks import require
from gspo_cli.config.compose import OBJECT, load_saved
from gspo_cli.tasks.base import Environment, SingleTurn, Step, ToolEnvironment
from gspo_cli.types import FinishReason, Message, Outcome, Problem

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
ENDS = {
    FinishReason.length: "The model's context is full: this is the end of the conversation.",
    FinishReason.turns: f"{LONGEST_CHAT} turns of the agent: this is the end of the conversation.",
}
Show = Callable[[str, str], None]


def main() -> None:
    """Entry point of `gspo-chat`."""
    sys.path.insert(0, "")  # tasks and rewards by dotted path from the user's folder
    run_command("gspo-chat", chat_command)


def chat_command() -> int:
    """Hold the conversations that the command line asks for."""
    arguments = parse()
    instead = ["reward=null"] if rewarded_by_object(arguments.folder) else []
    config, source, adapter = resolve(
        arguments.folder, arguments.checkpoint, [*instead, *arguments.overrides]
    )
    problems = config.task.heldout_problems()
    require(
        0 <= arguments.problem < len(problems),
        f"--problem {arguments.problem}: give a number from 0 to {len(problems) - 1}",
    )

    from rich.console import Console

    from gspo_cli.training.dialogue import Dialogues

    for stream in (sys.stdin, sys.stdout):  # no character ends a conversation
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    show = shower(Console(highlight=False))
    held = Dialogues(config, source, adapter, arguments.temperature)
    if instead and arguments.watch and config.reward is None:
        show("about", "A Python script gave the run's reward; judged here by the task's own.")
    watched = problems[arguments.problem : arguments.problem + arguments.watch]
    if len(watched) < arguments.watch:
        show("about", f"--watch {arguments.watch}: only {len(watched)} held-out problems are left to watch.")
    try:
        if not arguments.watch:
            talk(held, problems[arguments.problem], show, arguments.free)
        for problem in watched:
            watch(held, problem, show)
    except KeyboardInterrupt:
        print("\ngspo-chat: stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def rewarded_by_object(folder: Path) -> bool:
    """Whether a run had its reward as a Python object, which no command can make again."""
    saved = folder / "config.yaml"
    return saved.is_file() and str(load_saved(saved).get("reward")).startswith(OBJECT)


def talk(held: Dialogues, problem: Problem, show: Show, free: bool) -> None:
    """A conversation with a person, until they end their input or write /quit."""
    environment = SingleTurn() if free else held.config.task.environment()
    world = environment if isinstance(environment, ToolEnvironment) else None
    if world is None:
        show("about", "Words only, no tools to act with. End with /quit.")
    else:
        show("about", f"You are the user of {about(problem)}. End with /quit.")
        own = f"The task's own user would begin: {problem.messages[-1].content}"
        show("about", f"{problem.about} {own}".strip())
    person = Person(world, asker(show), show)
    first = person.asked()
    if first is None:
        return
    person.first = first
    trajectory = held.run(problem, lambda: person, max_turns=LONGEST_CHAT, tools=world is not None)
    if not person.left:
        show("about", trajectory.excluded or ENDS.get(trajectory.finish_reason, ""))


def watch(held: Dialogues, problem: Problem, show: Show) -> None:
    """One conversation with the task's own user, and how it was judged."""
    show("about", about(problem))
    trajectory = held.run(problem, lambda: Narrated(held.config.task.environment(), show))
    held.score(trajectory)
    if trajectory.excluded is not None:
        show("about", f"left out: {trajectory.excluded}\n")
        return
    parts = ", ".join(f"{name} {value:.2f}" for name, value in trajectory.components.items())
    solved = "solved" if trajectory.solved else "not solved"
    reward = f"reward {trajectory.reward:.2f}" + (f" ({parts})" if parts else "")
    show("about", f"{solved} in {trajectory.num_turns} turns; {reward}\n")


def asker(show: Show) -> Callable[[], str]:
    """Reads what a person says; lines that come from a file or a pipe are shown, as typed ones are."""
    if sys.stdin.isatty():
        return lambda: input("you: ")

    def read() -> str:
        line = input()
        if line.strip():
            show("user", line)
        return line

    return read


def about(problem: Problem) -> str:
    """A problem's name, and what its user wants where that is known."""
    return f"{problem.id}: {problem.answer}" if problem.answer else problem.id


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
        self._shown(step.messages)
        self._known = show_changes(self.environment, self._known, self.show)
        return step

    def finish(self) -> Outcome:
        """The environment's own outcome."""
        return self.environment.finish()

    def _shown(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        for message in messages:
            self.show(message.role, message.content)
        return messages


class Person:
    """A person in the user's place, who says `first` and then what `ask` returns; EOFError, Ctrl-C and /quit
    end it. `world` is the environment that the agent's tools act on, None for words only."""

    single_turn = False

    def __init__(
        self, world: ToolEnvironment | None, ask: Callable[[], str], show: Show, first: str = ""
    ) -> None:
        self.world, self.ask, self.show, self.first = world, ask, show, first
        self.left = False
        self._known: list[str] = []

    def reset(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The person speaks first."""
        if self.world is not None:
            self.world.reset(problem, seed)
        return (Message("user", self.first),)

    def step(self, text: str) -> Step:
        """A tool's answer, or the person's."""
        self.show("assistant", text)
        observation = None if self.world is None else self.world.observe(text)
        if observation is not None:
            self.show("tool", observation)
            self._known = show_changes(self.world, self._known, self.show)
            return Step((Message("tool", observation),))
        said = self.asked()
        return Step(done=True) if said is None else Step((Message("user", said),))

    def finish(self) -> Outcome:
        """What the world says of it; a person's judgement is their own."""
        return Outcome() if self.world is None else self.world.finish()

    def asked(self) -> str | None:
        """What the person says next, None where they leave. Nothing is no answer: they are asked again."""
        said = ""
        while not said:
            try:
                said = self.ask().strip()
            except (EOFError, KeyboardInterrupt):
                said = "/quit"
        self.left = said == "/quit"
        return None if self.left else said


def show_changes(environment: Environment, known: list[str], show: Show) -> list[str]:
    """Show what is new of an environment's changes, where it knows any; returns all of them."""
    changes = environment.changes() if isinstance(environment, ToolEnvironment) else []
    for change in changes:
        if change not in known:
            show("change", change)
    return changes


def shower(console: Console) -> Show:
    """Shows who says what. What a model wrote is shown, never obeyed."""
    from rich.text import Text

    from gspo_cli.console.words import clean

    def show(role: str, text: str) -> None:
        lines = [clean(line) for line in text.split("\n")]
        label = "" if role == "about" else f"{NAMES.get(role, role)}: "
        body = f"\n{' ' * len(label)}".join(lines)
        words = Text(f"{label}{body}", STYLES.get(role, ""))
        console.print(words, soft_wrap=not console.is_terminal)  # a pipe gets whole lines

    return show


def parse() -> argparse.Namespace:
    """The command line: a folder, flags, and overrides as for gspo-train. Raises UserError on numbers out of
    range."""
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
    arguments = parser.parse_intermixed_args()  # overrides may stand after flags
    watched, temperature = arguments.watch, arguments.temperature
    require(watched >= 0, f"--watch {watched}: give a number of conversations")
    require(not (watched and arguments.free), "--free: has no user to watch; leave out --free or --watch")
    require(0 <= temperature < math.inf, f"--temperature {temperature}: give 0 or more")
    return arguments


if __name__ == "__main__":
    main()
