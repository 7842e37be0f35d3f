"""Whether the tests notice a wrong line: each mutant of mutants.py is put into a copy of the checkout, and
the tests of its file are run there. A mutant that no test notices survives, and has to be explained in
EXPLAINED.

    python scripts/mutation.py                       # all, about an hour of one core
    python scripts/mutation.py --only update.py      # those of files that contain this
    python scripts/mutation.py --list

Ends with code 1 where a mutant survives that is not explained."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("gspo_cli", "conf", "tests", "scripts", "docs", "examples", "pyproject.toml", "README.md")
LONGEST = 900  # seconds that the tests of a mutant may take: one that hangs is noticed, too
EXPLAINED: dict[tuple[str, str], str] = {}
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


def noticed(place: Path, mutant: Mutant) -> bool:
    """Whether a test fails with the mutant in the copy at `place`, which is as before afterwards."""
    path = place / mutant.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutant.before, mutant.after, 1), encoding="utf-8")
    try:
        return not passes(place, mutant.tests)
    finally:
        path.write_text(original, encoding="utf-8")


def passes(place: Path, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass in the copy."""
    files = [f"tests/{name}.py" for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = os.environ | {
        "PYTHONPATH": str(place),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # 2 and more: nothing was tested
        sys.exit(f"pytest ended with {done.returncode}: {done.stdout.decode()[-500:]}")
    return done.returncode == 0


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

    def tried(mutant: Mutant) -> tuple[Mutant, bool, float]:
        place, begun = copies.get(), time.monotonic()
        try:
            return mutant, noticed(place, mutant), time.monotonic() - begun
        finally:
            copies.put(place)

    try:
        for tests in sorted({mutant.tests for mutant in chosen}):
            if not passes(places[0], tests):
                sys.exit(f"{' '.join(tests)}: fail without a mutant; nothing can be measured")
        survivors = []
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for mutant, was_noticed, seconds in pool.map(tried, chosen):
                why = EXPLAINED.get((mutant.file, mutant.after))
                state = "noticed" if was_noticed else f"survives ({why})" if why else "SURVIVES"
                print(f"{state}  {seconds:5.0f} s  {mutant}", flush=True)
                survivors += [] if was_noticed or why else [mutant]
    finally:
        for place in places:
            shutil.rmtree(place)
    print(f"\n{len(chosen)} mutants, {len(survivors)} survive unexplained")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
