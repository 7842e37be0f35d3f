"""math-verify in a separate process: an answer such as a tower of powers must not hang a run, and the
library's own time limits work in a main thread only."""

from __future__ import annotations

import re
import signal
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Lock

SECONDS = 10
LATEX = re.compile(r"[\\^_{}]")
DELIMITED = re.compile(r"\$|\\[(\[]|\\boxed")
LOCK = Lock()  # without the lock, threads would receive each other's results


def equal_mathematics(answer_text: str, gold: str) -> bool | None:
    """Whether both are equal; False after `SECONDS`, None if `gold` cannot be parsed."""
    with LOCK:
        return _ask(answer_text, gold)


def _ask(answer_text: str, gold: str) -> bool | None:
    process, pipe = _worker()
    try:
        pipe.send((answer_text, gold))
        if pipe.poll(SECONDS):
            return pipe.recv()
    except (EOFError, OSError):  # the worker died: raise now, and start a new worker for the next answer
        _worker.cache_clear()
        raise
    process.kill()
    _worker.cache_clear()
    return False


@cache
def _worker() -> tuple[BaseProcess, Connection]:
    context = get_context("spawn")  # forking a process with torch's threads can deadlock
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    here.recv()  # ready: imports do not count against the first answer's time
    return process, here


def _serve(pipe: Connection) -> None:
    import math_verify

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which finishes its iteration
    pipe.send("ready")
    while True:
        try:
            answer_text, gold = pipe.recv()
        except EOFError:  # the parent has exited
            return
        # without delimiters the library reads \sqrt{3} as 3
        latex = (
            [f"${gold}$", gold] if LATEX.search(gold) and not DELIMITED.search(gold) else [gold, f"${gold}$"]
        )
        expected = math_verify.parse(latex[0]) or math_verify.parse(latex[1])
        pipe.send(math_verify.verify(expected, math_verify.parse(answer_text)) if expected else None)
