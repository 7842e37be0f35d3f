"""Whether the tests notice a wrong line: each mutant of mutants.py is put into a copy of the checkout, and
the tests of its file are run there. A mutant that no test notices survives, and has to be explained in
EXPLAINED.

    python scripts/mutation.py                       # all, about an hour of one core
    python scripts/mutation.py --only update.py      # those of files that contain this
    python scripts/mutation.py --list

Ends with a table of files, and with code 1 where a mutant survives that is not explained."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("gspo_cli", "conf", "tests", "scripts", "docs", "examples", "pyproject.toml", "README.md")
LONGEST = 900  # seconds that the tests of a mutant may take: one that hangs is noticed, too
OUTPUT = "output.txt"
WARM = multiprocessing.get_context("forkserver")  # imports take longer than most tests
WARM.set_forkserver_preload(
    ["pytest", "hydra.compose", "peft", "scipy.stats", "transformers.models.qwen3.modeling_qwen3"]
)
EXPLAINED: dict[tuple[str, str], str] = {
    ("gspo_cli/training/update.py", "entropy.sum().item()"): (
        "the policy gives an entropy of 0 wherever nothing is trained"
    ),
}
"""Why a survivor is as right as the line it replaces, by (file, replacement)."""


@dataclass(frozen=True)
class Mutant:
    """A file, a text in it, what replaces its first occurrence, and test files that have to notice."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {_line(self.before)} -> {_line(self.after)}"


def _line(text: str) -> str:
    return " ".join(text.split())


def mutants(only: str) -> Iterator[Mutant]:
    """Those of files whose path contains `only`. Raises SystemExit where a text is no longer in its file."""
    for (file, tests), changes in MUTANTS.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        for before, after in changes:
            if before not in source:
                sys.exit(f"{file}: no longer contains {before!r}; change scripts/mutants.py")
            if only in file:
                yield Mutant(file, before, after, tuple(tests.split()))


def copy() -> Path:
    """A copy of what tests read."""
    place = Path(tempfile.mkdtemp(prefix="gspo-mutation-"))
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


def noticed(place: Path, mutant: Mutant) -> str:
    """What fails with the mutant in the copy at `place`, which is as before afterwards; or an empty text."""
    path = place / mutant.file
    original = path.read_text(encoding="utf-8")
    try:
        write(path, original.replace(mutant.before, mutant.after, 1))
        return failure(place, mutant.tests)
    finally:
        write(path, original)


def write(path: Path, source: str) -> None:
    """Replace a module, and forget what it was compiled to: the cache compares whole seconds."""
    path.write_text(source, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


def failure(place: Path, tests: tuple[str, ...]) -> str:
    """The first of the tests that fails in the copy; an empty text where all pass."""
    files = [f"tests/{name}" if ".py" in name else f"tests/{name}.py" for name in tests]
    process = WARM.Process(target=run_tests, args=(place, files))
    process.start()
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "hangs"
    said = (place / OUTPUT).read_text(encoding="utf-8")
    if process.exitcode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", said, re.MULTILINE)
    if failed is None:  # nothing was tested
        sys.exit(f"pytest ended with {process.exitcode}: {said[-500:]}")
    return failed[1]


def run_tests(place: Path, files: list[str]) -> None:
    """Run test files of the copy, in a process that has imported no module of ours."""
    with (place / OUTPUT).open("w", encoding="utf-8") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    os.chdir(place)
    os.environ |= {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.path.insert(0, str(place))
    import pytest

    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *files]))


def main() -> int:
    """Run the mutants that the command line chooses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a path, such as update.py")
    parser.add_argument("--jobs", type=int, default=1, help="copies that are tested at once")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    arguments = parser.parse_args()
    chosen = list(mutants(arguments.only))
    if arguments.list:
        print("\n".join(map(str, chosen)))
        return 0
    copies: SimpleQueue[Path] = SimpleQueue()
    places = [copy() for _ in range(arguments.jobs)]
    for place in places:
        copies.put(place)

    def tried(mutant: Mutant) -> tuple[Mutant, str, float]:
        place, begun = copies.get(), time.monotonic()
        try:
            return mutant, noticed(place, mutant), time.monotonic() - begun
        finally:
            copies.put(place)

    states: dict[str, Counter[str]] = {}  # by file
    try:
        for tests in sorted({mutant.tests for mutant in chosen}):
            if failed := failure(places[0], tests):
                sys.exit(f"{' '.join(tests)}: {failed} fails without a mutant; nothing can be measured")
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for mutant, by, seconds in pool.map(tried, chosen):
                why = EXPLAINED.get((mutant.file, mutant.after), "")
                state = "noticed" if by else "explained" if why else "SURVIVES"
                print(f"{state:9} {seconds:4.0f} s  {mutant}  ({by or why})", flush=True)
                states.setdefault(mutant.file, Counter())[state] += 1
    finally:
        for place in places:
            shutil.rmtree(place)
    print("\n" + table(states))
    return 1 if any(found["SURVIVES"] for found in states.values()) else 0


def table(states: dict[str, Counter[str]]) -> str:
    """The mutants of each file: how many there are, were noticed, and survive with a reason or without."""
    total = sum(states.values(), start=Counter())
    rows = [("file", "mutants", "noticed", "explained", "survive")]
    for file, found in [*states.items(), ("total", total)]:
        numbers = (found.total(), found["noticed"], found["explained"], found["SURVIVES"])
        rows.append((file.removeprefix("gspo_cli/"), *map(str, numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
