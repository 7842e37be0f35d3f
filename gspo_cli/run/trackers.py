"""Mirrors of a run's numbers: Weights & Biases, TensorBoard, or nothing.

The run folder's files are authoritative: a mirror that breaks during a run is reported once and not used
again; one that cannot start ends the run with an error. Numbers that are absent (None) are not mirrored."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from gspo_cli.config.choices import Tracker, WandbMode
from gspo_cli.config.extras import install
from gspo_cli.config.schema import LoggingConfig
from gspo_cli.errors import UserError
from gspo_cli.run.files import write_atomically
from gspo_cli.run.summary import RunStatus

Numbers = Mapping[str, float | None]
Warn = Callable[[str], None]


class Mirror(Protocol):
    """Where numbers go besides metrics.jsonl."""

    def log(self, values: Numbers, step: int) -> None:
        """Mirror the numbers of iteration `step`."""

    def finish(self, status: RunStatus) -> None:
        """Close the mirror; `status` is that of summary.json."""


class _Guard:
    """Runs the calls of a mirror; the first failure is reported, and no further call is made."""

    def __init__(self, package: str, failures: tuple[type[Exception], ...], warn: Warn) -> None:
        self._package, self._failures, self._warn = package, failures, warn
        self._failed = False

    def attempt(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            action()
        except self._failures as error:
            self._failed = True
            self._warn(
                f"{self._package}: stopped mirroring ({_first_line(error)}); "
                "metrics.jsonl in the run folder has every number"
            )


class NoTracker:
    """logging.report_to=none."""

    def log(self, values: Numbers, step: int) -> None:
        """Does nothing."""

    def finish(self, status: RunStatus) -> None:
        """Does nothing."""


class WandbTracker:
    """One wandb run per run folder, continued when that is resumed: its id is in <run folder>/wandb_id."""

    def __init__(
        self, logging: LoggingConfig, run_folder: Path, config: Mapping[str, Any], warn: Warn
    ) -> None:
        """Raises UserError if wandb is absent, not logged in, or does not start."""
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb") from error
        failures = (wandb.Error, OSError)  # OSError: its local process has ended, or a disk is full
        self._guard, mode = _Guard("wandb", failures, warn), logging.wandb_mode
        try:
            # checked here, because wandb.init would block the run and ask for a key
            if mode is WandbMode.online and wandb.run is None and not wandb.login(prompt=False, verify=False):
                raise UserError(
                    "logging.wandb_mode=online: wandb is not logged in; run `wandb login`, "
                    "set WANDB_API_KEY, or use logging.wandb_mode=offline"
                )
            self._run = wandb.init(
                mode=mode.value,
                dir=run_folder,
                project=logging.wandb_project,
                name=logging.run_name,
                tags=list(logging.wandb_tags),
                config=dict(config),
                id=_wandb_id(run_folder),
                resume="allow",
                reinit="finish_previous",
                # otherwise wandb records every frame of the live view
                settings=wandb.Settings(console="off"),
            )
            # wandb's own step only grows: after a resume from an older checkpoint it drops repeats
            self._run.define_metric("*", step_metric="iteration")
        except failures as error:
            raise UserError(
                f"logging.report_to=wandb: wandb did not start ({_first_line(error)}); check the key and the "
                "connection, or use logging.wandb_mode=offline"
            ) from error

    def log(self, values: Numbers, step: int) -> None:
        """Mirror the numbers of iteration `step`, the horizontal axis of every chart."""
        self._guard.attempt(lambda: self._run.log({**_present(values), "iteration": step}))

    def finish(self, status: RunStatus) -> None:
        """Write the status and wait until wandb has everything. A failed run ends with exit code 1."""
        self._guard.attempt(lambda: self._run.summary.update({"status": str(status)}))
        self._guard.attempt(lambda: self._run.finish(exit_code=int(status == RunStatus.failed)))


class TensorboardTracker:
    """Scalars in <run folder>/tensorboard, one event file per start of the run. Free of torch."""

    def __init__(self, run_folder: Path, warn: Warn) -> None:
        """Raises UserError if tensorboard is absent or the folder cannot be written."""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise _not_installed("tensorboard") from error
        self._event, self._summary = event_pb2, summary_pb2.Summary
        self._guard, self._started = _Guard("tensorboard", (OSError,), warn), False
        try:
            self._writer = EventFileWriter(str(run_folder / "tensorboard"))
        except OSError as error:
            raise UserError(
                f"{run_folder}: tensorboard cannot write there ({error.strerror}); free space"
            ) from error

    def log(self, values: Numbers, step: int) -> None:
        """Mirror the numbers of iteration `step`; they are on disk when this returns."""
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in _present(values).items()
        ]
        event = self._event.Event(wall_time=time.time(), step=step, summary=self._summary(value=scalars))
        self._guard.attempt(lambda: self._write(event))

    def finish(self, status: RunStatus) -> None:
        """Close the event file."""
        self._guard.attempt(self._writer.close)

    def _write(self, event: Any) -> None:
        if not self._started:  # makes TensorBoard drop what an earlier start wrote from this step on
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._writer.add_event(
                self._event.Event(wall_time=event.wall_time, step=event.step, session_log=start)
            )
            self._started = True
        self._writer.add_event(event)
        self._writer.flush()


def make_tracker(
    logging: LoggingConfig, run_folder: Path, config_dict: Mapping[str, Any], warn: Warn
) -> Mirror:
    """The mirror that `logging.report_to` names. Raises UserError if it cannot start."""
    if logging.report_to is Tracker.wandb:
        return WandbTracker(logging, run_folder, config_dict, warn)
    return TensorboardTracker(run_folder, warn) if logging.report_to is Tracker.tensorboard else NoTracker()


def _wandb_id(run_folder: Path) -> str:
    path = run_folder / "wandb_id"
    if not path.exists():
        write_atomically(path, f"{secrets.token_hex(4)}\n")
    return path.read_text(encoding="utf-8").strip()


def _present(values: Numbers) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _not_installed(package: str) -> UserError:
    return UserError(
        f"logging.report_to={package}: {package} is not installed; {install(package)}, "
        "or use logging.report_to=none"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
