"""Checkpoints, which are either complete or absent. `last` and `best` are links; the newest few and the best
are kept. One that was damaged later is found by its manifest and set aside.

A checkpoint holds the model (loadable with `from_pretrained`) and trainer.pt: optimizer and counters. There
is no random state to save: all randomness derives from the seed and the iteration."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from gspo_cli.algorithm.entropy import EntropyBonus
from gspo_cli.config.schema import CheckpointConfig
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError
from gspo_cli.manifest import NAME, damage, write_manifest
from gspo_cli.run.files import folder_written_whole, point
from gspo_cli.training.update import Updater


@dataclass
class TrainerState:
    """Counters of a run. `cursor` counts problems drawn, `num_tokens` sampled tokens, `wall_seconds` all
    sessions; they and `iteration` keep counting after a rollback. `clip_range` is the band in force, `bonus`
    that for entropy and `curriculum` that of `Curriculum.state`, which are restored with the weights; as
    configured in older checkpoints. `budget` is hardware.tokens_per_microbatch as configured, and what was
    left of it after memory ran out."""

    iteration: int = 0
    cursor: int = 0
    num_tokens: int = 0
    wall_seconds: float = 0.0
    initial_eval: dict[str, Any] | None = None
    best_eval: dict[str, Any] | None = None
    last_eval: dict[str, Any] | None = None
    first_reward: float | None = None
    last_reward: float | None = None
    first_accuracy: float | None = None
    last_accuracy: float | None = None
    rollbacks: int = 0
    clip_range: tuple[float | None, float | None] | None = None
    budget: tuple[int, int] | None = None
    bonus: dict[str, Any] | None = None
    curriculum: tuple[int, int] = (0, 0)


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder, self.config = folder, config

    @property
    def last(self) -> Path | None:
        """The newest checkpoint."""
        found = self.all
        return found[-1] if found else None

    @property
    def all(self) -> list[Path]:
        """Checkpoints, oldest first. Other names are not ours."""
        found = (path for path in self.folder.glob("iteration-*") if NAME.fullmatch(path.name))
        return sorted(found, key=self.iteration)

    @staticmethod
    def iteration(checkpoint: Path) -> int:
        """After which iteration a checkpoint was written."""
        return int(checkpoint.name.rpartition("-")[2])

    def set_damaged_aside(self) -> list[str]:
        """Before a run goes on: rename those newest checkpoints that are damaged, up to one that is whole,
        and leave links to whole ones only. Returns what was found, in sentences."""
        notes = []
        for checkpoint in reversed(self.all):
            what = damage(checkpoint)
            if what is None:
                break
            names = (f"damaged-{checkpoint.name}{'' if n == 1 else f'-{n}'}" for n in count(1))
            aside = next(path for name in names if not (path := checkpoint.with_name(name)).exists())
            checkpoint.rename(aside)
            notes.append(f"{checkpoint}: is damaged ({what}) and was renamed to {aside.name}")
        if notes:
            start = "the beginning" if self.last is None else f"the newest whole checkpoint, {self.last.name}"
            notes[-1] += f"; the run goes on from {start}"
        best = self.folder / "best"
        if best.is_symlink() and (not best.exists() or damage(best.resolve()) is not None):
            best.unlink()
            notes.append(f"{best}: is damaged; the best checkpoint from now on takes its place")
        strange = [p.name for p in self.folder.glob("iteration-*") if not NAME.fullmatch(p.name)]
        if strange:
            notes.append(f"{self.folder}: {', '.join(sorted(strange))} is no checkpoint of this run; ignored")
        return notes

    def save(self, updater: Updater, state: TrainerState) -> None:
        """Write a checkpoint, move the links, and remove checkpoints that rotation no longer keeps. All ranks
        call this; the first one writes.

        Raises UserError if it cannot be written; earlier checkpoints are then untouched."""
        ranks = updater.strategy.ranks
        if ranks.is_first:
            self._write(updater, state)
        else:
            updater.strategy.save(self.folder)
        ranks.wait()

    def _write(self, updater: Updater, state: TrainerState) -> None:
        target = self.folder / f"iteration-{state.iteration:06d}"
        try:
            with folder_written_whole(target) as temporary:
                optimizer = updater.strategy.save(temporary)
                saved = {"state": asdict(state), "optimizer": optimizer, "steps": updater.steps}
                if updater.critic is not None:
                    saved["critic"] = updater.critic.state_dict()
                if updater.config.algorithm.reference_refresh is not None:
                    saved["reference"] = updater.policy.reference_weights()
                torch.save(saved, temporary / "trainer.pt")
                write_manifest(temporary)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{target}: cannot be saved ({' '.join(str(error).split())}); earlier checkpoints are "
                f"complete: free space, then continue with {override('resume', self.folder.parent)}"
            ) from error
        self._link(target, state)
        self._rotate()

    def restore(self, checkpoint: Path, updater: Updater) -> TrainerState:
        """Load optimizer and counters; the policy was loaded from the same folder."""
        saved, state = _read(checkpoint)
        updater.strategy.restore_optimizer(saved["optimizer"])
        _restore_beside(saved, updater)
        updater.steps = saved["steps"]
        _return_adapted(state, updater)
        configured = updater.config.hardware.tokens_per_microbatch
        if state.budget is not None and state.budget[0] == configured:  # else it was changed for this resume
            updater.collator.budget = state.budget[1]
        if updater.strategy.ranks.is_first:
            # the process may have been killed between writing the checkpoint and its links
            self._link(checkpoint, state)
        return state

    def roll_back(self, iteration: int, updater: Updater) -> TrainerState:
        """Restore weights, optimizer, clip band and entropy bonus of an earlier checkpoint; counters stay.
        Returns the counters that the checkpoint has."""
        checkpoint = self.folder / f"iteration-{iteration:06d}"
        saved, state = _read(checkpoint)
        updater.strategy.restore_weights(checkpoint)
        updater.strategy.restore_optimizer(saved["optimizer"])
        _restore_beside(saved, updater)
        _return_adapted(state, updater)
        return state

    def _link(self, checkpoint: Path, state: TrainerState) -> None:
        point(self.folder / "last", checkpoint)
        if self.config.save_best and (state.best_eval or {}).get("iteration") == state.iteration:
            point(self.folder / "best", checkpoint)

    def _rotate(self) -> None:
        best = self.folder / "best"
        kept = {best.resolve()} if best.exists() else set()
        kept |= {path.resolve() for path in self.all[-self.config.keep :]}
        for path in self.all:
            if path.resolve() not in kept:
                shutil.rmtree(path)
        for leftover in self.folder.glob(".writing-iteration-*"):  # left by a killed process
            shutil.rmtree(leftover)


def _read(checkpoint: Path) -> tuple[dict[str, Any], TrainerState]:
    """trainer.pt of a checkpoint, and the counters in it. Raises UserError if they are not there."""
    try:
        saved = torch.load(checkpoint / "trainer.pt", map_location="cpu", weights_only=True)
        state = TrainerState(**saved["state"])
        if not isinstance(state.iteration, int) or not isinstance(state.cursor, int):
            raise TypeError("its counters are not whole numbers")
        if not isinstance(saved["steps"], int) or not isinstance(saved["optimizer"], dict):
            raise TypeError("steps or optimizer is of another type")
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{checkpoint}: trainer.pt cannot be read ({reason}); move this folder away, and the run goes on "
            "from the checkpoint before it"
        ) from error
    return saved, state


def _restore_beside(saved: dict[str, Any], updater: Updater) -> None:
    """What a run has beside the policy: a value head, a reference that is refreshed."""
    if updater.critic is not None and "critic" not in saved:
        raise UserError("the checkpoint: trainer.pt has no value head; start a new run with this model.name")
    if updater.critic is not None:
        updater.critic.load_state_dict(saved["critic"])
    if "reference" in saved:
        updater.policy.restore_reference(saved["reference"])


def _return_adapted(state: TrainerState, updater: Updater) -> None:
    if state.clip_range is not None:
        updater.set_clip_range(state.clip_range)
    if state.bonus is not None:
        updater.bonus = EntropyBonus(**state.bonus)
