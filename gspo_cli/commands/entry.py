"""How every command starts and ends: the user's modules can be imported, bad input is one sentence, and the
exit code is 0, 1 (a failure), 2 (bad input) or 130 (stopped by a signal)."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import metadata

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config import trust
from gspo_cli.config.compose import PACKAGE, explain
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.signals import signals_handled_by, stop

Command = Callable[[], int | None]
TRAINING_STOPPED = "stopped; progress since the last checkpoint is lost"


def run_command(name: str, command: Command, stopped: str = "stopped", arguments: Sequence[str] = ()) -> None:
    """Run the body of the command `name` and end the process where its exit code is not 0. `stopped` is what
    a signal prints; `arguments` are those of the command line, sys.argv's if there are none."""
    trust.given.clear()
    trust.given.update(text for text in arguments or sys.argv[1:] if text == trust.FLAG)
    with signals_handled_by(stop):
        code, _ = guarded(name, command, stopped)
    if code:
        sys.exit(code)


def guarded(name: str, command: Command, stopped: str = "stopped") -> tuple[int, str]:
    """Run the body of a command. Returns its exit code, and the sentence that was printed where it failed."""
    code, why = 0, ""
    try:
        code = command() or 0
        sys.stdout.flush()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        code, why = 2, str(error) if isinstance(error, UserError) else explain(error)
    except KeyboardInterrupt as error:
        code, why = INTERRUPTED, str(error) or stopped
    except BrokenPipeError:  # the reader has closed the pipe: discard what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        code, why = 2, f"{str(error.filename)[:80]}...: is too long for the name of a file; give another one"
    if why:
        print(f"{name}: {one_line(why)}", file=sys.stderr)
    return code, why


def one_line(text: str) -> str:
    """A sentence that may quote others' errors: without line breaks, and nothing that a terminal reads."""
    joined = re.sub(r"\s*\n\s*", " ", text)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in joined)


def command_parser(name: str, description: str, examples: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command line, with --help and --version."""
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version(), help="print the version and exit")
    return parser


def version() -> str:
    """`gspo-cli <version>`, of the installed package or of the checkout that runs."""
    project = PACKAGE.parent / "pyproject.toml"
    try:
        return f"gspo-cli {metadata.version('gspo-cli')}"
    except metadata.PackageNotFoundError:
        if not project.is_file():
            return "gspo-cli (unknown version: the package is not installed)"
        number = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return f"gspo-cli {number} (source checkout, not installed)"
