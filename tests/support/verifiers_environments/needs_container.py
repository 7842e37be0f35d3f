"""An environment of the package verifiers whose tasks run in a container."""

from __future__ import annotations

import verifiers.v1 as vf

__all__ = ["BoxedTasks"]


class BoxedTask(vf.Task[vf.TaskData]):
    NEEDS_CONTAINER = True


class BoxedTasks(vf.Taskset[BoxedTask, vf.TasksetConfig]):
    def load(self):
        return [BoxedTask(vf.TaskData(prompt="List the files."))]
