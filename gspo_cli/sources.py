"""What `model.name` names: a hub id, a model folder, a GGUF file, a LoRA adapter, a run, or a checkpoint.

This is decided by looking at the file or folder before any library is asked to load it: transformers loads an
adapter folder by itself, over the base that the folder names and in a form that cannot be trained on. Free of
torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from gspo_cli.adapters import CONFIG, AdapterSettings, read_adapter
from gspo_cli.config.checks import override_key, require_path
from gspo_cli.config.compose import literal, load_saved, plain_values, written_settings
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import require_base_trust, require_trust
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError
from gspo_cli.manifest import NAME, damage

EMBEDDED = "embedded"
# as the hub has them: neither `--` nor `..`
HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
KINDS = (
    "give a hub id, a model folder (config.json), a GGUF file, an adapter folder (adapter_config.json) or a "
    "run folder (config.yaml)"
)
FOLLOWED: ContextVar[tuple[Path, ...]] = ContextVar("followed", default=())  # folders on the way to a base
# the settings of a run that an adapter decides
OF_ADAPTER = ("lora_r", "lora_alpha", "lora_target_modules", "lora_experts")


class ModelSource(NamedTuple):
    """Where a model is: `base`, a hub id or the absolute path of a model folder or a GGUF file, and the
    folder of the LoRA adapter over it, None for a plain model."""

    base: str
    adapter: Path | None = None

    @property
    def place(self) -> str:
        """The source as one name that `find_source` finds again."""
        return self.base if self.adapter is None else str(self.adapter)

    @property
    def is_gguf(self) -> bool:
        """Whether the base is a GGUF file."""
        return Path(self.base).is_file()


def find_source(name: str, base: str | None = None, checkpoint: str = "best") -> ModelSource:
    """What `name` names. `base` replaces the base that an adapter names; `checkpoint` is that of a run.

    Raises UserError if nothing is there, or it is not a model."""
    require_path("model.name", name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_folder(path.absolute(), base, checkpoint)
    if not path.is_file() and not HUB_ID.fullmatch(name):
        raise UserError(f"model.name={name}: no such file or folder is here; {KINDS}")
    if base is not None:
        raise UserError(f"model.base={base}: model.name={name} is no adapter; set model.base=null")
    # whether a file is a GGUF file is seen when it is read
    return ModelSource(str(path.absolute()) if path.is_file() else name)


def is_quantized(base: str) -> bool:
    """Whether the weights of a model folder are stored in fewer bits than a merged adapter needs."""
    try:
        values = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a hub id, a GGUF file, or what loading will report
        return False
    return isinstance(values, dict) and bool(values.get("quantization_config"))


def is_run(folder: Path) -> bool:
    """Whether a folder is one of gspo-train."""
    return (folder / "config.yaml").is_file() and not any(
        (folder / name).exists() for name in ("config.json", CONFIG)
    )


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint's folder (or a link to it) is in; None if it is in none."""
    checkpoints = checkpoint.resolve().parent
    return checkpoints.parent if checkpoints.name == "checkpoints" and is_run(checkpoints.parent) else None


def run_start(run: Path, name: str | None = None, base: str | None = None) -> ModelSource:
    """The model that a run started from: the one that it built or cold-started, or what its `model.name`
    names, which `name` and `base` replace. Raises UserError if that is gone."""
    built = run / "initial_model"
    if built.exists():
        require_whole_start(built)
        return ModelSource(str(built.absolute()))
    if name is None:
        saved = _opened(run)
        name, base = OmegaConf.select(saved, "model.name"), OmegaConf.select(saved, "model.base")
    if not isinstance(name, str) or name == EMBEDDED:
        raise UserError(f"{run}: has no model (neither initial_model nor a model.name); give a complete run")
    with _followed(run):
        return find_source(name, base)


def require_whole_start(built: Path) -> None:
    """Raise UserError if the model that a run built or cold-started is damaged."""
    if (what := damage(built, resumes=False)) is not None:
        raise UserError(
            f"{built}: is damaged ({what}); remove it, and gspo-train {override('resume', built.parent)} "
            "builds it anew"
        )


def _opened(run: Path) -> DictConfig:
    """The settings of a run, whose part about the model is under the rule of trust."""
    saved = load_saved(written_settings(run))
    require_trust(plain_values(saved), RunConfig, run, only="model.")
    return saved


def run_checkpoint(
    run: Path, checkpoint: str, name: str | None = None, base: str | None = None
) -> ModelSource:
    """The model of a run's checkpoint: best (last where there is none), last, initial, an iteration, or a
    checkpoint's name. `name` and `base` replace the run's own `model.name` and `model.base`. Raises UserError
    if there is no such checkpoint."""
    if checkpoint == "initial":
        return run_start(run, name, base)
    if name is None:
        _opened(run)
    folder = run / "checkpoints"
    known = [
        "last",
        "best",
        *sorted(path.name for path in folder.glob("iteration-*") if NAME.fullmatch(path.name)),
    ]
    chosen = folder / (f"iteration-{int(checkpoint):06d}" if checkpoint.isdecimal() else checkpoint)
    if checkpoint == "best" and not chosen.exists():
        chosen = folder / "last"
    if checkpoint in ("best", "last") and not chosen.exists():
        chosen = folder / known[-1]  # links were lost
    if chosen.name not in known or not chosen.exists():
        found = ["initial", *(name for name in known if (folder / name).exists())]
        raise UserError(f"--checkpoint {checkpoint}: does not exist; choose one of {', '.join(found)}")
    if (what := damage(chosen.resolve(), resumes=False)) is not None:
        raise UserError(
            f"{chosen}: is damaged ({what}); choose another one with --checkpoint, or go on from the newest "
            f"whole one with gspo-train {override('resume', run)}"
        )
    return _of_checkpoint(chosen.resolve(), run, name, base)


def settled(node: DictConfig, given: list[str]) -> None:
    """Write into a composed configuration what `model.name` stands for: an absolute path that later means the
    same from any folder; under LoRA, the shape of the adapter that training continues; and no cold start of a
    model that a run has trained, unless it was typed.

    `given` are the overrides that were typed. Raises UserError if nothing is there, or a typed setting
    contradicts the adapter."""
    model = node.model
    if OmegaConf.is_missing(model, "name") or model.name == EMBEDDED:
        return
    source = find_source(str(model.name), model.base)
    model.name = literal(source.place)
    typed = set(map(override_key, given))
    trained = source.adapter is not None or run_of(Path(source.base)) is not None
    if trained and "model.cold_start.steps" not in typed and model.cold_start.steps:
        before = f"in place of {model.cold_start.steps}, which is for a model before its training"
        _note(node, f"model.cold_start.steps=0: {before}; type model.cold_start.steps to have a cold start")
        model.cold_start.steps = 0
    if source.adapter is None:
        return
    model.base = literal(source.base)
    if not model.use_lora:
        return
    for key, value in of_adapter(read_adapter(source.adapter)).items():
        if f"model.{key}" in typed and _plain(model[key]) != value:
            raise UserError(
                f"model.{key}={_plain(model[key])}: training continues the adapter in {source.adapter}, "
                f"which has {value}; leave out model.{key}, or merge the adapter first with gspo-export and "
                "give the merged folder in model.name"
            )
        if _plain(model[key]) != value:
            _note(node, f"model.{key}={value}: that of the adapter, in place of {_plain(model[key])}")
        model[key] = value


def _note(node: DictConfig, text: str) -> None:
    """Report a setting that became another one."""
    node.notes = [*(node.get("notes") or []), literal(text)]


def of_adapter(settings: AdapterSettings) -> dict[str, object]:
    """The settings of a run that continues an adapter, by their names in `model`."""
    targets = settings.lora["target_modules"]
    named = [targets] if isinstance(targets, str) else sorted(targets or [])
    values = (settings.lora["r"], settings.lora["lora_alpha"], named or None, settings.adapts_experts)
    return dict(zip(OF_ADAPTER, values, strict=True))


def _plain(value: object) -> object:
    plain = OmegaConf.to_container(value) if OmegaConf.is_list(value) else value
    return sorted(plain) if isinstance(plain, list) else plain


@contextmanager
def _followed(folder: Path) -> Iterator[None]:
    """A block that finds what a run or an adapter started from. Raises UserError where that leads back to
    it."""
    before = FOLLOWED.get()
    if folder.resolve() in before:
        raise UserError(f"{folder}: what it started from leads back to itself; give another model.name")
    token = FOLLOWED.set((*before, folder.resolve()))
    try:
        yield
    finally:
        FOLLOWED.reset(token)


def _of_folder(folder: Path, base: str | None, checkpoint: str) -> ModelSource:
    run = run_of(folder)
    if base is not None and not (folder / CONFIG).is_file():
        raise UserError(f"model.base={base}: model.name={folder} is no adapter folder; set model.base=null")
    if run is not None and base is None:
        return _of_checkpoint(folder.resolve(), run)
    if is_run(folder):
        if not any((folder / "checkpoints").glob("iteration-*")):
            raise UserError(f"model.name={folder}: has no checkpoint yet; give a run that has one")
        return run_checkpoint(folder, checkpoint)
    if (folder / CONFIG).is_file():
        return _of_adapter(folder, base)
    if (folder / "config.json").is_file():
        return ModelSource(str(folder))
    files = sorted(folder.glob("*.gguf"))
    raise UserError(
        f"model.name={folder}: is a folder; give the GGUF file itself, as in {files[0]}"
        if files
        else f"model.name={folder}: is a folder without a model; {KINDS}"
    )


def _of_checkpoint(folder: Path, run: Path, name: str | None = None, base: str | None = None) -> ModelSource:
    if not (folder / CONFIG).is_file():
        return ModelSource(str(folder))
    if base is None and name is None:
        base = OmegaConf.select(_opened(run), "model.base")
    if base is not None and not (run / "initial_model").exists():
        # the adapter that the run continued may be gone; the base is known without it
        with _followed(run):
            return ModelSource(find_source(base).base, folder)
    return ModelSource(run_start(run, name, base).base, folder)


def _of_adapter(folder: Path, base: str | None) -> ModelSource:
    if any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise UserError(
            f"model.name={folder}: holds the weights of a model and of an adapter; keep only one of them "
            f"there ({CONFIG}, or config.json and the model's weights)"
        )
    name = base or read_adapter(folder).base
    fix = "give the base with model.base=<hub id or model folder>"
    if name and base is None:
        require_base_trust(name, folder)
    if not name:
        raise UserError(f"model.name={folder}: {CONFIG} names no base; {fix}")
    try:
        with _followed(folder):
            found = find_source(name)
    except UserError as error:
        raise UserError(f"model.name={folder}: its base {name} is not on this machine; {fix}") from error
    if found.adapter is not None:
        raise UserError(
            f"model.name={folder}: its base {name} is an adapter itself; merge that one first with "
            f"gspo-export, then {fix}"
        )
    return ModelSource(found.base, folder)
