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
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gspo_cli.config.trust import INHERITED
from gspo_cli.errors import FOREIGN, as_exception
from gspo_cli.types import Problem

SHOWN = 300  # characters of what a program wrote to its standard error
READ = 65_536  # bytes at the end of what a program wrote that are looked at
ENDS = 5.0  # seconds for a program to end
LOCAL = "127.0.0.1,localhost"


@dataclass(frozen=True)
class Endpoint:
    """What an agent talks to: an OpenAI-compatible server with the key of this conversation. `seed` is the
    same for all conversations of a problem in an iteration, for whatever an agent draws itself."""

    base_url: str
    api_key: str = field(repr=False)
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
        self._going: set[Over] = set()  # of coroutines

    def start(self, problem: Problem, endpoint: Endpoint, over: Over) -> Running:
        """See `Agent`."""
        problem = deepcopy(problem)  # what one conversation changes in its row is its own affair
        if _is_async(self.run):
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
        try:
            self._loop.call_soon_threadsafe(self._beat.set)
        except RuntimeError:  # an agent has ended the loop
            return ""
        if beat is None or beat.is_set() or frame is None:
            return ""
        code, own = _source(self.run), frame
        while own.f_back is not None and own.f_code.co_filename != code:
            own = own.f_back
        shown = own if own.f_code.co_filename == code else frame
        return f"at {shown.f_code.co_filename}:{shown.f_lineno}, in {shown.f_code.co_name}"

    def close(self) -> None:
        """End the loop of asynchronous agents."""
        if self._loop is not None and self._thread is not None:
            with contextlib.suppress(RuntimeError):  # it was ended by an agent
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop = self._thread = None

    def _call(self, problem: Problem, endpoint: Endpoint, over: Over) -> None:
        try:
            found = self.run(problem, endpoint)
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
        except KeyboardInterrupt:  # not from a person: those reach the main thread alone
            found = RuntimeError("raised KeyboardInterrupt")
        except FOREIGN as error:
            found = as_exception(error)
        over(found)

    async def _await(self, problem: Problem, endpoint: Endpoint, over: Over) -> None:
        self._going.add(over)
        try:
            found = await self.run(problem, endpoint)
        except asyncio.CancelledError:
            self._over(over, RuntimeError("was cancelled"))
            raise
        except FOREIGN as error:
            found = as_exception(error)
        self._over(over, found)

    def _over(self, over: Over, found: Any) -> None:
        if over in self._going:
            self._going.discard(over)
            over(found)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            loop = self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop_on, args=(loop,), name="agents", daemon=True)
            self._thread.start()
        return self._loop

    def _loop_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop; what ends it, such as sys.exit in a task of somebody's, ends all its agents."""
        try:
            loop.run_forever()
        except BaseException as error:  # a thread has nobody to raise it to
            for over in [*self._going]:
                self._over(over, RuntimeError(f"the loop of all agents was ended by {type(error).__name__}"))
        while left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            with contextlib.suppress(BaseException):  # sys.exit once more, which leaves the rest pending
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


class CommandAgent:
    """A program: the problem as JSON on its standard input and in `problem.json` of a fresh working folder,
    the endpoint in its environment, and the reward as the last line of its output that is JSON.

    Arguments that are files of the current folder become paths that hold in the working folder; the current
    folder is in GSPO_START_FOLDER."""

    def __init__(self, command: str) -> None:
        self.command = resolved(command)
        self._running: list[_Process] = []

    def start(self, problem: Problem, endpoint: Endpoint, over: Over) -> Running:
        """See `Agent`."""
        running = _Process(self.command, problem, endpoint, over)
        self._running = [each for each in self._running if each.thread.is_alive()] + [running]
        running.thread.start()
        return running

    def blocked(self) -> str:
        """Never: each program runs by itself."""
        return ""

    def close(self) -> None:
        """End what still runs, and wait for its folders to be removed."""
        for running in self._running:
            running.end()
        for running in self._running:
            running.thread.join(ENDS)


class _Process:
    def __init__(self, command: list[str], problem: Problem, endpoint: Endpoint, over: Over) -> None:
        self.command, self.problem, self.endpoint, self.over = command, problem, endpoint, over
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False
        self.thread = threading.Thread(target=self._run, name="agent", daemon=True)

    def end(self) -> None:
        """End the process and all that it started."""
        self.ended = True
        if self.process is not None and self.process.returncode is None:
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
        place = folder / "problem.json"
        place.write_text(json.dumps(_plain(asdict(self.problem)), ensure_ascii=False), encoding="utf-8")
        output, errors = folder / ".output", folder / ".errors"  # files: a child that lives on holds no pipe
        with place.open("rb") as given, output.open("wb") as written, errors.open("wb") as complaints:
            process = subprocess.Popen(
                self.command,
                stdin=given,
                stdout=written,
                stderr=complaints,
                cwd=folder,
                env=self._variables(),
                start_new_session=True,
            )
            self.process = process
            if self.ended:
                _end_group(process)
            try:
                process.wait()
            finally:
                _end_group(process)
        if process.returncode:
            code = process.returncode
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            said = " ".join(_tail(errors).replace(self.endpoint.api_key, "***").split())[-SHOWN:]
            return RuntimeError(f"{self.command[0]} ended with {how}{': ' if said else ''}{said}")
        return last_json(_tail(output))

    def _variables(self) -> dict[str, str]:
        """The environment of the program. What this process trusts is no affair of it."""
        kept = {name: value for name, value in os.environ.items() if name != INHERITED}
        near = ",".join(filter(None, (os.environ.get("NO_PROXY"), LOCAL)))
        return kept | {
            "OPENAI_BASE_URL": self.endpoint.base_url,
            "OPENAI_API_KEY": self.endpoint.api_key,
            "OPENAI_MODEL": self.endpoint.model,
            "GSPO_SEED": str(self.endpoint.seed),
            "GSPO_START_FOLDER": os.getcwd(),
            "NO_PROXY": near,
            "no_proxy": near,
        }


def last_json(output: str) -> Any:
    """The value of the last line that is a JSON number or object; None if there is none."""
    for line in reversed(output.splitlines()):
        if line.lstrip()[:1] in tuple("{-0123456789"):
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(line)
    return None


def resolved(command: str) -> list[str]:
    """A command as its parts. The program is looked up on PATH, or is a path; arguments that are files of the
    current folder become paths that hold elsewhere. Raises ValueError where a quote is not closed."""
    program, *arguments = shlex.split(command)
    parts = [str(Path(program).resolve()) if os.sep in program else program]
    for before, part in zip([program, *arguments], arguments, strict=False):
        path = Path(part)
        is_file = before != "-m" and not path.is_absolute() and path.is_file()
        parts.append(str(path.resolve()) if is_file else part)
    return parts


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - READ))
        return file.read().decode(errors="replace")


def _plain(value: Any) -> Any:
    """A value as JSON has it in all languages: no NaN, and what is not of JSON as text."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)


def _is_async(run: Callable[..., Any]) -> bool:
    while isinstance(run, partial):
        run = run.func
    return inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(getattr(run, "__call__", None))  # noqa: B004


def _source(run: Callable[..., Any]) -> str | None:
    """The file of a function, or of what is called in its place."""
    while isinstance(run, partial):
        run = run.func
    with contextlib.suppress(TypeError):
        return inspect.getsourcefile(inspect.unwrap(run))
    with contextlib.suppress(TypeError):
        return inspect.getsourcefile(type(run))
    return None


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
