"""Build the wheel, from the checkout and through the sdist, and check that it contains its configuration.

Each wheel is installed alone, away from the checkout, and must print the configuration that the checkout
prints."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHERE = "from gspo_cli.config.compose import CONF_DIR; print(CONF_DIR)"


def main() -> None:
    """Exit with 1 and a sentence where a wheel is unusable."""
    with tempfile.TemporaryDirectory(prefix="gspo-wheel-") as name:
        folder = Path(name).resolve()
        wheels = {
            "built from the checkout": build(folder / "direct", "--wheel"),
            "built through the sdist": build(folder / "through-sdist"),
        }
        for how, wheel in wheels.items():
            check_content(wheel, how)
            check_command(wheel, how, folder)
        print(f"{wheel.name}: contains its configuration, built from the checkout and through the sdist")


def build(out: Path, *what: str) -> Path:
    """The wheel that `python -m build` makes in `out`; through an sdist where `what` is empty."""
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    run([sys.executable, "-m", "build", *what, *isolation, "--outdir", str(out), str(ROOT)], ROOT)
    return next(out.glob("*.whl"))


def check_content(wheel: Path, how: str) -> None:
    """Every configuration file and every module of the checkout is in the wheel."""
    files = [f"gspo_cli/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")]
    for kind in ("*.py", "*.yaml", "*.css", "*.jinja"):
        files += [str(path.relative_to(ROOT)) for path in (ROOT / "gspo_cli").rglob(kind)]
    absent = sorted(set(files) - set(zipfile.ZipFile(wheel).namelist()))
    if absent:
        sys.exit(f"{wheel.name}, {how}: lacks {', '.join(absent)}; see tool.hatch.build in pyproject.toml")


def check_command(wheel: Path, how: str, folder: Path) -> None:
    """The installed command, run elsewhere, reads its own files and prints what the checkout prints."""
    site, elsewhere = folder / f"site {how}", folder / f"elsewhere {how}"
    elsewhere.mkdir()
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(site)]
    run([sys.executable, "-m", "pip", *install, str(wheel)], elsewhere)
    conf = Path(run([sys.executable, "-c", WHERE], elsewhere, site).strip())
    if conf != site / "gspo_cli" / "conf":
        sys.exit(f"{wheel.name}, {how}: reads its configuration from {conf}; check CONF_DIR")
    command = [sys.executable, str(site / "bin" / "gspo-train"), "--cfg", "job"]
    if run(command, elsewhere, site) != run(command, elsewhere, ROOT):
        sys.exit(f"{wheel.name}, {how}: composes a different configuration than the checkout; compare conf/")


def run(command: list[str], cwd: Path, path: Path | None = None) -> str:
    """Standard output of a command that must succeed, with `path` first among the places to import from."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}{' '.join(command)}: ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
