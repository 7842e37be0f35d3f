"""Steps per second of the customer_service environment, and how long its conversations are.

    python scripts/benchmark_environment.py

The oracle plays every problem once per answer of a group. Only the environment's own time is counted: reset,
step and finish, on one core. The time of the oracle, or of the model in training, is not included."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from gspo_cli.tasks.customer_service import oracle
from gspo_cli.tasks.customer_service.task import CustomerService
from gspo_cli.types import Message, Problem


class Stopwatch:
    """Adds up the seconds of the calls made through it."""

    seconds = 0.0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def converse(task: CustomerService, problem: Problem, seed: int, watch: Stopwatch) -> list[Message]:
    """One conversation of the oracle."""
    environment, done = task.environment(), False
    messages = list(watch(environment.reset, problem, seed))
    while not done:
        messages.append(Message("assistant", oracle.answer(messages)))
        step = watch(environment.step, messages[-1].content)
        messages.extend(step.messages)
        done = step.done
    watch(environment.finish)
    return messages


def main() -> None:
    """Print a line for each difficulty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=200, help="problems of each difficulty (200)")
    parser.add_argument("--answers", type=int, default=8, help="conversations about each problem (8)")
    parser.add_argument("--run", type=Path, help="run folder: print the share of its iterations, too")
    options = parser.parse_args()
    print("difficulty  conversations  agent turns  words  ms/conversation  steps/s")
    for difficulty in (1, 2, 3, 4):
        task = CustomerService("customer_service", "", "", difficulty=difficulty, problems=options.problems)
        watch = Stopwatch()
        played = [
            converse(task, problem, seed, watch)
            for seed, problem in enumerate(task.train_problems())
            for _ in range(options.answers)
        ]
        turns = [sum(message.role == "assistant" for message in messages) for messages in played]
        words = mean(sum(len(message.content.split()) for message in messages) for messages in played)
        print(
            f"{difficulty:10}  {len(played):13}  {mean(turns):11.1f}  {words:5.0f}"
            f"  {1000 * watch.seconds / len(played):15.2f}  {sum(turns) / watch.seconds:7.0f}"
        )
        if options.run and difficulty == 1:
            print_share(options.run, watch.seconds / sum(turns))


def print_share(run: Path, seconds_per_step: float) -> None:
    """The share of a run's iterations that its environment steps take, at the speed just measured."""
    config = OmegaConf.load(run / "config.yaml")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = config.training.generations_per_iteration * mean(line["num_turns"] for line in lines)
    whole = mean(line["time/iteration"] for line in lines)
    share = steps * seconds_per_step / whole
    print(f"            {share:.1%} of an iteration of {whole:.2f} s with {steps:.0f} steps: {run}")


if __name__ == "__main__":
    main()
