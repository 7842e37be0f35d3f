"""The commands in this process: what a shell sees of them, without seconds of imports for each call.

Signals, kills and checks of imports need a process of their own: `script`."""

from __future__ import annotations

import importlib
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from gspo_cli.commands import chat, compare, doctor, evaluate, export, serve, train
from gspo_cli.launching.sweep import SweepStart

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = {
    "gspo-train": train,
    "gspo-eval": evaluate,
    "gspo-chat": chat,
    "gspo-serve": serve,
    "gspo-compare": compare,
    "gspo-export": export,
    "gspo-doctor": doctor,
}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def call(
    command: str, *arguments: str, cwd: Path = ROOT, typed: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command's entry point in the folder `cwd`, with these environment variables and typed lines.

    Exit code, stdout and stderr are those of a process. What a process would end with as a traceback is
    raised, and what is printed by processes that the command starts is not caught."""
    return _process(MODULES[command].main, [command, *arguments], cwd, typed, variables)


def gspo_train(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """`call` of gspo-train."""
    return call("gspo-train", *arguments, cwd=cwd, **variables)


def run_script(text: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the text of a Python script in the folder `cwd`, as `call` runs a command."""
    path = cwd / "script.py"
    path.write_text(text, encoding="utf-8")
    return _process(lambda: runpy.run_path(str(path), run_name="__main__"), [str(path)], cwd, "", {})


def _process(
    main: Callable[[], object], argv: list[str], cwd: Path, typed: str, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="", write_through=True) for _ in range(2))
    with isolated(cwd, variables), redirect_stdout(out), redirect_stderr(err):
        sys.argv, sys.stdin = argv, io.StringIO(typed)
        code = exit_code(main)
    out, err = (file.buffer.getvalue().decode("utf-8") for file in (out, err))
    return subprocess.CompletedProcess(argv, code, out, err)


def exit_code(main: Callable[[], object]) -> int:
    """What `main` leaves to the shell."""
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


@contextmanager
def isolated(cwd: Path, variables: dict[str, str]) -> Iterator[None]:
    """A block that leaves this process as it was: folder, environment, sys, the user's modules, handlers of
    signals and of logs, torch's threads, and what Hydra and a sweep remember."""
    before, environment, threads = Path.cwd(), dict(os.environ), torch.get_num_threads()
    argv, path, stdin, modules = sys.argv, list(sys.path), sys.stdin, set(sys.modules)
    handlers, logs = [signal.getsignal(number) for number in SIGNALS], logging.root.handlers[:]
    level = logging.root.level
    importlib.invalidate_caches()  # the test may have written a module just now
    forget()
    os.environ.update(variables)
    os.chdir(cwd)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, sys.path[:], sys.stdin = argv, path, stdin
        logging.root.handlers[:], logging.root.level = logs, level
        for number, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        for name in set(sys.modules) - modules:
            if cwd != ROOT and place(sys.modules[name]).is_relative_to(cwd):
                del sys.modules[name]
        forget()


def place(module: ModuleType) -> Path:
    """Where a module or a package without __init__.py was found."""
    return Path(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "/"))


def forget() -> None:
    """Drop what a command leaves behind for the next one in its process."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    SweepStart.folder = None


def script(command: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """The command line of a command in a process of its own."""
    return [python, "-m", MODULES[command].__name__, *arguments]


def environment(**variables: str) -> dict[str, str]:
    """What such a process needs to find the package from any folder."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to hear of its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
