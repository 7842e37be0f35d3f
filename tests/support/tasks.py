"""Files and scores of single-turn tasks."""

from __future__ import annotations

import json

from gspo_cli.types import FinishReason, Message, Trajectory


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def gsm8k_file(folder, count=20):
    rows = [
        (f"What comes after {n}?", f"{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}") for n in range(count)
    ]
    return write(folder / "gsm8k.jsonl", *[{"question": text, "answer": answer} for text, answer in rows])


def score(task, problem, answer):
    messages = [*problem.messages, *([] if answer is None else [Message("assistant", answer)])]
    trajectory = Trajectory(problem, [], [], [], [], messages, FinishReason.stop)
    return task.reward().compute_reward(trajectory, messages[-1], {})
