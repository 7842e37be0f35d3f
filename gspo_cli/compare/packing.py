"""A comparison as one zip file for somebody else: what gspo-compare reads of its runs and the report on them,
without secrets; and the way back from such a file to run folders.

The file may come from a stranger: of its members only those with the names that are written here are read, as
plain files of bounded size. Equal runs give equal bytes."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from gspo_cli.compare.across import compare_subjects
from gspo_cli.compare.across_content import comparisons
from gspo_cli.compare.arms import options
from gspo_cli.compare.masking import Mask, mask_here
from gspo_cli.compare.report import write_report
from gspo_cli.compare.result import Across, Comparison
from gspo_cli.compare.runs import StoredRun, read_run
from gspo_cli.compare.until_settled import Looked, StoredDesign, fixed_seeds, looked_at
from gspo_cli.config.checks import require
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import literal, resolved_yaml
from gspo_cli.console.words import counted, quantity
from gspo_cli.errors import UserError
from gspo_cli.run.files import folder_written_whole, write_atomically

TOP = "comparison"  # the folder in the file, and the file's own name
PACKED = f"{TOP}.zip"
RUN_FILES = ("config.yaml", "metrics.jsonl", "evals.jsonl", "heldout.jsonl", "summary.json")
DESIGN = "design-packed.json"  # the looks at added seeds, where there are some
OF_A_RUN = re.compile(
    rf"{TOP}/(?:runs/\w[\w-]*/(?:{'|'.join(map(re.escape, RUN_FILES))})|{re.escape(DESIGN)})", re.ASCII
)
OF_A_REPORT = re.compile(rf"{TOP}/(?:\w[\w.-]*/)*\w[\w.-]*", re.ASCII)  # is not unpacked
DATE = (1980, 1, 1, 0, 0, 0)  # of every member: the earliest that a zip file can have
LARGEST_FILE = 2**28  # bytes of the zip file
LARGEST = 2**30  # bytes of all members, unpacked
MOST = 20_000  # members
DEFAULT_BASELINE = "grpo"
MIB = 2**20
LEFT_OUT = "left out: weights, checkpoints, samples and cards"
WITHOUT = f"{LEFT_OUT}; masked: secrets, home folders and user names"


@dataclass(frozen=True)
class Packed:
    """The written file, and what is in it in one line."""

    path: Path
    summary: str


def require_packable(runs: Sequence[StoredRun], settings: CompareConfig) -> None:
    """Raise UserError if some of these runs were added until another comparison was settled, or those of one
    of several tasks or models were, which the packed logs would not say."""
    subjects = {run.subject for run in runs}
    looked = [looked_at([run for run in runs if run.subject == each], settings) for each in subjects]
    require(
        len(looked) == 1 or not any(each.design for each in looked),
        "--zip: seeds were added to the runs of one of these tasks or models until they were settled, which "
        "is only packed alone; give their folder and no other",
    )
    require(
        not any(each.caveats for each in looked if each.design is None),
        "--zip: some of these runs were added until another comparison was settled, which is not packed with "
        "them; give all runs of that comparison and no others, or leave out --zip",
    )


def pack(
    runs: Sequence[StoredRun], found: Comparison | Across, settings: CompareConfig, folder: Path
) -> Packed:
    """Write the compared `runs` and the report on them to `folder`. Raises UserError if the file cannot be
    written, or would not give the verdicts of `found`."""
    mask = mask_here([run.config for run in runs])
    baseline = found.baseline if isinstance(found, Comparison) else settings.baseline
    given = CompareConfig(
        baseline=None if baseline == DEFAULT_BASELINE else mask.value(baseline),
        threshold=settings.threshold,
        allow=settings.allow,
        level=settings.level,
        smallest=settings.smallest,
    )
    looked = looked_at(runs, settings)
    packed = masked_runs(looked.runs, mask)
    members = {
        f"{run.folder}/{name}": text for run in packed.values() for name, text in files_of(run).items()
    }
    packed = _read_back(packed, members, folder)
    design = _packed_design(looked, packed, mask)

    def looks(own: Sequence[StoredRun], given: CompareConfig) -> Looked:
        return Looked(own, [], design.completed(given), design) if design else fixed_seeds(own, given)

    again = compare_subjects(list(packed.values()), [], given, looks)
    names = {former: run.folder for former, run in packed.items()}
    if verdicts(again, {}) != verdicts(found, names):
        raise UserError(
            "--zip: without what is secret in their settings the runs give other verdicts; give these "
            "settings values that are the same in all runs"
        )
    command = shlex.join(["gspo-compare", TOP, *options(given)])
    if isinstance(again, Across):
        title = again.summary.title
        again = replace(again, summary=replace(again.summary, reproduce=[command]))
    else:
        own = found.methods if isinstance(found, Comparison) else []
        notes = [mask.value(note) for note in own if note not in again.methods]
        again = replace(
            again, methods=[*again.methods, *notes], reproduce=[command, *mask.value(again.reproduce[1:])]
        )
        title = again.title
    members |= {f"{TOP}/{DESIGN}": design.text.encode()} if design else {}
    members |= _report_files(again, folder)
    readme = f"{title}\n\nThe same report, from these logs:\n\n  {command}\n\n{WITHOUT}\n"
    data = zipped(members | {f"{TOP}/README.txt": readme.encode()})
    path = folder / PACKED
    write_atomically(path, data)
    return Packed(path, f"{len(packed)} runs, {quantity(len(data))}B; {LEFT_OUT}; masked: {masked(mask)}")


def masked_runs(runs: Sequence[StoredRun], mask: Mask) -> dict[str, StoredRun]:
    """The runs as they are packed, by their former folders, each in one named after its algorithm and seed;
    in an order that the names of their folders do not decide."""
    found, names = {}, Counter[str]()
    for run in sorted(runs, key=lambda each: (each.subject, each.arm_key, each.seed)):
        name = f"{re.sub(r'[^A-Za-z0-9_]', '_', run.algorithm['name'])}-s{run.seed}"
        names[name] += 1
        folder = f"{TOP}/runs/{name}{f'-{names[name]}' if names[name] > 1 else ''}"
        logs = {log: mask.value(getattr(run, log), numbers=False) for log in ("metrics", "evals", "heldout")}
        summary = mask.value({**run.summary, "run_folder": folder}, numbers=False)
        config, apart = mask.value(run.config), mask.value(run.apart)
        packed = replace(run, folder=folder, config=config, apart=apart, summary=summary, **logs)
        found[run.folder] = packed
    return found


def _read_back(
    packed: Mapping[str, StoredRun], members: Mapping[str, bytes], folder: Path
) -> dict[str, StoredRun]:
    """The packed runs as somebody else reads them. Raises UserError where one of them cannot be read."""
    found = {}
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as place:
        target = Path(place, TOP)
        _write(members, target)
        for former, run in packed.items():
            try:
                read = read_run(Path(place, run.folder))
            except UserError as error:
                reason = str(error).replace(f"{place}/", "").partition(";")[0]
                raise UserError(
                    f"--zip: {former} cannot be read once its secrets are masked ({reason}); is the value "
                    "of a key or password in your environment a word that logs have? unset it, or leave out "
                    "--zip"
                ) from error
            found[former] = replace(read, folder=run.folder, apart=run.apart)
    return found


def _packed_design(looked: Looked, packed: Mapping[str, StoredRun], mask: Mask) -> StoredDesign | None:
    """The looks at the runs as they are packed. Runs that were planned and not looked at keep their names."""
    if looked.design is None:
        return None
    names = {Path(folder).resolve().name: Path(run.folder).name for folder, run in packed.items()}
    runs = [names.get(name, name) for name in looked.design.runs]
    return replace(
        looked.design, path=Path(TOP, DESIGN), runs=runs, settings=mask.value(looked.design.settings)
    )


def files_of(run: StoredRun) -> dict[str, bytes]:
    """The files of a run that `read_run` reads back as it is."""
    node = OmegaConf.create(literal(run.config))
    texts = {
        "config.yaml": resolved_yaml(cast(DictConfig, node)),
        "metrics.jsonl": _lines(run.metrics),
        "evals.jsonl": _lines(run.evals),
        "heldout.jsonl": _lines(run.heldout),
        "summary.json": json.dumps(run.summary, indent=2) + "\n",
    }
    return {name: text.encode(errors="backslashreplace") for name, text in texts.items() if text}


def _lines(records: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _report_files(comparison: Comparison | Across, folder: Path) -> dict[str, bytes]:
    """The report on the packed runs, by the names of its files."""
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as place:
        written = write_report(comparison, Path(place))
        return {f"{TOP}/{path.relative_to(place)}": path.read_bytes() for path in written}


def verdicts(found: Comparison | Across, packed: Mapping[str, str]) -> dict[tuple[str, str, str], str]:
    """The verdict of each contrast by outcome and the first runs of its arms, whose names may have secrets:
    their folders, as `packed` calls them. The order of arms is not that of somebody else."""
    result = {}
    for comparison, _ in comparisons(found):
        firsts = {arm.name: packed.get(arm.runs[0].folder, arm.runs[0].folder) for arm in comparison.arms}
        for contrast in comparison.contrasts:
            arms = firsts[contrast.arm_name], firsts[contrast.baseline_name]
            result[contrast.outcome, *arms] = contrast.verdict.value
    return result


def masked(mask: Mask) -> str:
    """What was masked, in words."""
    return (
        f"{counted(mask.secrets, 'secret')}, home folders and user names in {counted(mask.places, 'place')}"
    )


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip file with these members, sorted and all of one date. Raises UserError if `unpacked` would refuse
    it for its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, DATE)
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, members[name])
    data = file.getvalue()
    size = sum(map(len, members.values()))
    if len(data) > LARGEST_FILE or size > LARGEST or len(members) > MOST:
        raise UserError(f"--zip: the logs are {size / MIB:.0f} MiB, more than can be packed; give fewer runs")
    return data


def unpacked(path: Path) -> Path:
    """The folder that holds the runs of a packed comparison, under outputs/compare/ by the file's name and
    content; nothing else in the file is unpacked. Raises UserError if the file is not one that `pack`
    writes."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(_refusal(path, f"is larger than {LARGEST_FILE / MIB:.0f} MiB"))
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give another file") from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in _checked(path, archive.infolist())}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(_refusal(path, f"cannot be read ({error})")) from error
    if not members:
        raise UserError(_refusal(path, "contains no run"))
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)
    target = Path("outputs", "compare", f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}")
    if not target.exists():
        _write(members, target)
    _require_unchanged(path, members, target)
    return target


def _require_unchanged(path: Path, members: Mapping[str, bytes], target: Path) -> None:
    """Raise UserError where an earlier copy of the runs is not what the file holds."""
    packed = {target / name.removeprefix(f"{TOP}/"): content for name, content in members.items()}
    there = [place for place in (target / "runs").rglob("*") if place.is_file()]
    try:
        same = set(there) <= packed.keys() and all(p.read_bytes() == c for p, c in packed.items())
    except OSError:
        same = False
    require(
        same,
        f"{path}: was unpacked to {target}, whose runs have been changed; remove that folder to unpack it "
        f"again, or compare what it has now: gspo-compare {shlex.quote(str(target))}",
    )


def _checked(path: Path, members: Sequence[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
    """The members that are files of runs. Raises UserError if there is one that `pack` does not write, or all
    together are too large; sizes are those that the reader holds each member to."""
    files = [info for info in members if not info.filename.endswith("/")]  # is_dir fails without a name
    if len(members) > MOST or sum(info.file_size for info in files) > LARGEST:
        raise UserError(_refusal(path, f"unpacks to more than {LARGEST / MIB:.0f} MiB or {MOST:,} files"))
    if len({info.filename for info in files}) < len(files):
        raise UserError(_refusal(path, "has a name twice"))
    for info in files:
        link = stat.S_ISLNK(info.external_attr >> 16)
        known = OF_A_RUN.fullmatch(info.filename) or OF_A_REPORT.fullmatch(info.filename)
        if link or not known or info.orig_filename != info.filename or info.flag_bits & 1:
            raise UserError(_refusal(path, f"has {info.orig_filename!r}"))
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(_refusal(path, f"has {info.filename} compressed by another method than deflate"))
    return (info for info in files if OF_A_RUN.fullmatch(info.filename))


def _refusal(path: Path, why: str) -> str:
    return f"{path}: {why}, unlike the files of gspo-compare --zip; ask for another, or give run folders"


def _write(members: Mapping[str, bytes], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder_written_whole(target) as folder:
            for name, content in members.items():
                place = folder / name.removeprefix(f"{TOP}/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); free space, or go to another folder"
        ) from error
