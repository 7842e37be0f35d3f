"""The measured parts of docs/results.md are what the stored logs say."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.whole_runs import SMALL

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def test_the_measured_parts_of_the_results_are_what_their_logs_say(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module(Path("results.py").stem)
    shutil.copytree(script.DOCS / "results", tmp_path / "results")
    monkeypatch.setattr(script, "DOCS", tmp_path)
    monkeypatch.setattr(script, "LOGS", tmp_path / "results")
    text = script.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(sys, "argv", ["results.py", "--check", "--only", "family_shop"])
    (tmp_path / "results.md").write_text(text, encoding="utf-8")
    assert script.main() == 0
    part = text.index("<!-- study family_shop")
    wrong = text[:part] + text[part:].replace("0.853", "0.863", 1)
    (tmp_path / "results.md").write_text(wrong, encoding="utf-8")
    assert script.main() == 1
    assert (
        capsys.readouterr().out == "results.md: is what the logs say\nresults.md: is not what the logs say\n"
    )


def test_every_stored_study_is_on_the_page_of_results():
    docs = SCRIPTS.parent / "docs"
    stored = sorted(path.stem for path in (docs / "results").glob("*.zip"))
    page = (docs / "results.md").read_text(encoding="utf-8")
    studies = dict(re.findall(r"<!-- study (\S+)(.*?) -->", page))
    assert stored == sorted(name for name, settings in studies.items() if " of=" not in settings)
    assert {each for found in re.findall(r" of=(\S+)", page) for each in found.split(",")} <= set(stored)
    assert "check results" in (SCRIPTS.parent / ".ci" / "run").read_text(encoding="utf-8")


def test_bands_are_measured_beside_what_was_foretold(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module(Path("bands.py").stem)
    monkeypatch.setattr(script, "LOGS", tmp_path / "bands.jsonl")
    monkeypatch.setattr(script, "FOLDER", tmp_path / "bands")
    monkeypatch.setattr(script, "SWEEPS", {"tiny-arithmetic": [*SMALL, "algorithm.learning_rate=1e-3"]})
    monkeypatch.setattr(script, "UPDATES", {"tiny-arithmetic": "2"})
    monkeypatch.setattr(sys, "argv", ["bands.py"])
    script.main()
    grpo, gspo = script.stored()[::-1]
    assert [len(run["metrics"]) for run in (grpo, gspo)] == [3, 3]
    for run, line in zip((grpo, gspo), capsys.readouterr().out.splitlines()[-2:], strict=True):
        first = run["metrics"][0]
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[:5] == ["tiny, arithmetic", run["algorithm"], "0.001", "2", "8"]
        assert cells[5] == f"{run['rehearsal']['spread']:.2g}"
        assert float(cells[6]) == pytest.approx(first["ratio/std"] * 2**0.5, rel=0.05)
        assert cells[8] == f"{100 * run['rehearsal']['clipped']:.2g}%"
        assert float(cells[9][:-1]) == pytest.approx(100 * first["clip_ratio/token"], rel=0.05)
