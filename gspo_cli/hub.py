"""Asking the Hugging Face hub whether it has something, with a bound on the wait. Free of torch."""

from __future__ import annotations

import sys
from queue import Empty, Queue
from threading import Thread

HUB_SECONDS, QUIET_SECONDS = 10, 1


def ask_hub(name: str, kind: str) -> None:
    """Raise the client's error unless the hub has `name`, a "model" or a "dataset"; TimeoutError after
    HUB_SECONDS. What is asked is printed where the answer takes a while: a name server alone can take a
    minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import ENDPOINT

    answers: Queue[Exception | None] = Queue()

    def ask() -> None:
        try:
            HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS)
            answers.put(None)
        except Exception as error:  # raised below, in the thread that waits
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=QUIET_SECONDS)
    except Empty:
        print(f"asking {ENDPOINT} for {name} (at most {HUB_SECONDS} s)", file=sys.stderr, flush=True)
        try:
            answer = answers.get(timeout=HUB_SECONDS - QUIET_SECONDS)
        except Empty:
            raise TimeoutError(f"no answer from {ENDPOINT} in {HUB_SECONDS} s") from None
    if answer is not None:
        raise answer
