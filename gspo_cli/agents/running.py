"""Running agents of users: functions in threads, coroutines in a loop of their own, programs as processes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from gspo_cli.errors import FOREIGN, as_exception
from gspo_cli.types import Problem

SHOWN = 300  # characters of what a program wrote to its standard error


@dataclass(frozen=True)
class Endpoint:
    """What an agent talks to: an OpenAI-compatible server with the key of this conversation. `seed` is the
    same for all conversations of a problem in an iteration, for whatever an agent draws itself."""

    base_url: str
    api_key: str
    model: str
    seed: int


class Running(Protocol):
    """An agent at work. Its end is reported once, by what it returned or an exception."""

    def end(self) -> None:
        """Stop it as far as that is possible; a function in a thread cannot be stopped."""


Over = Callable[[Any], None]


class Agent(Protocol):
    """Starts conversations; `over` may be called from any thread."""

    def start(self, problem: Problem, endpoint: Endpoint, over: Over) -> Running:
        """Begin a conversation about `problem`."""

    def blocked(self) -> str:
        """Where its loop has been held up since the last call, such as "at agent.py:12, in run"; "" where it
        has not."""

    def close(self) -> None:
        """Free what it uses."""


@dataclass
class _Thread:
    thread: threading.Thread

    def end(self) -> None:
        """Does nothing: its next request is refused."""


@dataclass
class _Task:
    future: Any

    def end(self) -> None:
        """Cancel the coroutine."""
        self.future.cancel()


class FunctionAgent:
    """`run(problem, endpoint)`, plain or asynchronous, which returns a reward, a RewardResult or None."""

    def __init__(self, run: Callable[[Problem, Endpoint], Any]) -> None:
        self.run = run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._beat: threading.Event | None = None

    def start(self, problem: Problem, endpoint: Endpoint, over: Over) -> Running:
        """See `Agent`."""
        if inspect.iscoroutinefunction(self.run):
            return _Task(
                asyncio.run_coroutine_threadsafe(self._await(problem, endpoint, over), self._running_loop())
            )
        thread = threading.Thread(
            target=self._call, args=(problem, endpoint, over), name="agent", daemon=True
        )
        thread.start()
        return _Thread(thread)

    def blocked(self) -> str:
        """See `Agent`."""
        if self._loop is None or self._thread is None:
            return ""
        beat, self._beat = self._beat, threading.Event()
        frame = sys._current_frames().get(self._thread.ident or 0)
        self._loop.call_soon_threadsafe(self._beat.set)
        if beat is None or beat.is_set() or frame is None:
            return ""
        code, own = inspect.getsourcefile(inspect.unwrap(self.run)), frame
        while own.f_back is not None and own.f_code.co_filename != code:
            own = own.f_back
        shown = own if own.f_code.co_filename == code else frame
        return f"at {shown.f_code.co_filename}:{shown.f_lineno}, in {shown.f_code.co_name}"

    def close(self) -> None:
        """End the loop of asynchronous agents."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            if not self._thread.is_alive():
                self._loop.close()
            self._loop = self._thread = None

    def _call(self, problem: Problem, endpoint: Endpoint, over: Over) -> None:
        try:
            found = self.run(problem, endpoint)
        except FOREIGN as error:
            found = as_exception(error)
        over(found)

    async def _await(self, problem: Problem, endpoint: Endpoint, over: Over) -> None:
        try:
            found = await self.run(problem, endpoint)
        except asyncio.CancelledError:
            over(RuntimeError("was cancelled"))
            raise
        except FOREIGN as error:
            found = as_exception(error)
        over(found)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="agents", daemon=True)
            self._thread.start()
        return self._loop


class CommandAgent:
    """A program: the problem as JSON on its standard input and in `problem.json` of a fresh working folder,
    the endpoint in its environment, and the reward as the last line of its output that is JSON.

    The program is looked up from the current folder, which PATH and arguments may refer to."""

    def __init__(self, command: str) -> None:
        self.command = [_found(part) for part in shlex.split(command)]

    def start(self, problem: Problem, endpoint: Endpoint, over: Over) -> Running:
        """See `Agent`."""
        running = _Process(self.command, problem, endpoint, over)
        running.thread.start()
        return running

    def blocked(self) -> str:
        """Never: each program runs by itself."""
        return ""

    def close(self) -> None:
        """Nothing is left: each process ends with its conversation."""


class _Process:
    def __init__(self, command: list[str], problem: Problem, endpoint: Endpoint, over: Over) -> None:
        self.command, self.problem, self.endpoint, self.over = command, problem, endpoint, over
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False
        self.thread = threading.Thread(target=self._run, name="agent", daemon=True)

    def end(self) -> None:
        """End the process and all that it started."""
        self.ended = True
        if self.process is not None:
            _end_group(self.process)

    def _run(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="gspo-agent-"))
        try:
            self.over(self._finished(folder))
        except Exception as error:  # whatever fails, the rollout has to hear of it
            self.over(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _finished(self, folder: Path) -> Any:
        given = json.dumps(asdict(self.problem), default=str).encode()
        (folder / "problem.json").write_bytes(given)
        variables = {
            "OPENAI_BASE_URL": self.endpoint.base_url,
            "OPENAI_API_KEY": self.endpoint.api_key,
            "OPENAI_MODEL": self.endpoint.model,
            "GSPO_SEED": str(self.endpoint.seed),
        }
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env={**os.environ, **variables},
                start_new_session=True,
            )
            self.process = process
            try:
                if self.ended:
                    _end_group(process)
                output, _ = process.communicate(given)
            finally:
                _end_group(process)
            errors.seek(max(0, errors.tell() - 4 * SHOWN))
            written = " ".join(errors.read().decode(errors="replace").split())[-SHOWN:]
        if process.returncode:
            how = (
                f"exit code {process.returncode}"
                if process.returncode > 0
                else f"signal {-process.returncode}"
            )
            return RuntimeError(f"{self.command[0]} ended with {how}{': ' if written else ''}{written}")
        return last_json(output.decode(errors="replace"))


def last_json(output: str) -> Any:
    """The value of the last line that is JSON; None if there is none."""
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(line)
    return None


def _found(part: str) -> str:
    """A path that exists in the current folder, as one that holds elsewhere."""
    path = Path(part)
    return str(path.resolve()) if not path.is_absolute() and path.exists() else part


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
