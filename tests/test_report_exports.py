"""Tables of a report as CSV and its figures as PNG: exact numbers, harmless texts, pictures as intended."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gspo_cli.compare.csv_files import cell_text, csv_text, tables, write_tables
from gspo_cli.compare.figures import LIGHT, light_chart
from gspo_cli.compare.pictures import png, write_figures
from gspo_cli.compare.report import plain
from gspo_cli.compare.result import Design, Estimate, Look, Verdict
from gspo_cli.config.extras import install
from tests.support.command_line import call, environment, script
from tests.support.comparisons import BASELINE, LONG, NASTY, comparison
from tests.support.html import Reading
from tests.support.stored_runs import write_run

THREE = ("gspo", BASELINE, LONG)
ONE_ARM = {"key": "training.learning_rate", "values": {"gspo": [1e-4, 2e-4]}, "allowed": False}


def read(folder, name):
    """The rows of a table as Python's own reader finds them."""
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def flat(value, name=""):
    """The values inside JSON objects by their path, joined with _."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: v for part, inner in value.items() for key, v in flat(inner, f"{name}_{part}".strip("_")).items()
    }


def same(text, value):
    if value is None:
        return text == ""
    if isinstance(value, bool):
        return text == ("TRUE" if value else "FALSE")
    return float(text) == value if isinstance(value, int | float) else text == value


def test_tables_hold_every_number_of_the_json_with_all_its_digits(tmp_path):
    found = comparison(THREE, differences=[ONE_ARM])
    folder = write_tables(found, tmp_path)
    stored = plain(found)
    runs = [{"arm_name": arm["name"]} | run for arm in stored["arms"] for run in arm["runs"]]
    outcomes = {outcome["key"]: outcome for outcome in stored["outcomes"]}
    contrasts = [each | {"unit": outcomes[each["outcome"]]["unit"]} for each in stored["contrasts"]]
    for name, expected in (
        ("outcomes", contrasts), ("problems", stored["problem_tests"]), ("runs", runs),
        ("counterfactuals", stored["shadows"]), ("claims", stored["claims"]),
        ("left_out", stored["left_out"]),
    ):  # fmt: skip
        rows = read(folder, name)
        assert len(rows) == len(expected) > 0
        for row, item in zip(rows, expected, strict=True):
            assert [key for key, value in flat(item).items() if not same(row[key], value)] == []
            assert None not in row
    points = [
        (chart["key"], series["arm_name"], *point)
        for chart in stored["charts"]
        for series in chart["series"]
        for point in zip(series["x"], series["value"], series["low"], series["high"], strict=True)
    ]
    rows = read(folder, "curves")
    assert len(rows) == len(points) > 100
    for row, point in zip(rows, points, strict=True):
        assert all(map(same, (row[k] for k in ("chart", "arm_name", "x", "value", "low", "high")), point))
    assert read(folder, "differences") == [
        {
            "key": "training.learning_rate",
            "arm_name": "gspo",
            "values": "[0.0001, 0.0002]",
            "allowed": "FALSE",
        }
    ]
    assert read(folder, "arms")[0]["seeds"] == "0 1 2 3 4"


def test_the_looks_of_seeds_that_were_added_are_a_table(tmp_path):
    looks = [Look(3, Estimate(0.031, -0.04, 0.10, 3), 0.2, Verdict.not_distinguishable),
             Look(4, Estimate(0.05, 0.01, 0.09, 4), 0.03, Verdict.higher)]  # fmt: skip
    folder = write_tables(comparison(design=Design(0.05, 0.01, 0.99, [3, 4], {"gspo": looks})), tmp_path)
    rows = read(folder, "looks")
    assert [(r["arm_name"], r["seeds"], r["difference_high"], r["verdict"]) for r in rows] == [
        ("gspo", "3", "0.1", "not distinguishable"),
        ("gspo", "4", "0.09", "higher"),
    ]
    assert read(write_tables(comparison(), tmp_path), "looks") == []


def test_pandas_reads_numbers_as_numbers_and_unmeasured_ones_as_missing(tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs the extra data")
    found = comparison()
    frame = pandas.read_csv(write_tables(found, tmp_path) / "outcomes.csv").set_index("outcome")
    assert frame["difference_value"]["final_score"] == found.contrasts[0].difference.value
    assert frame["p_adjusted"].dtype == frame["arm_low"].dtype == float
    assert math.isnan(frame["arm_value"]["expert_change"])
    assert frame["paired"].dtype == bool


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "＝", "＋", "－", "＠", "\t=", "\r\n@", " ="])
def test_no_text_becomes_a_formula_of_a_spreadsheet(sign):
    assert cell_text(f"{sign}HYPERLINK(1)").startswith("'")
    assert cell_text(f"a{sign}1").startswith("a")
    assert cell_text(-0.5) == "-0.5"


def test_a_cell_stays_one_cell_of_one_line_whatever_it_holds(tmp_path):
    nasty = f'{NASTY}\n",\n=1+1'
    found = comparison(title=nasty)
    claim = dataclasses.replace(found.claims[0], claim=nasty, source="=1+1", measured='"=2', paper='a","=3')
    rows = read(write_tables(dataclasses.replace(found, claims=[claim]), tmp_path), "claims")
    (row,) = rows
    assert (row["source"], row["measured"], row["paper"]) == ("'=1+1", '"=2', 'a","=3')
    assert "\n" not in row["claim"]
    assert not set(row["claim"]) & set("\x1b\u202e\ud800")


def test_numbers_of_numpy_and_numbers_that_are_none_are_written_plainly():
    assert csv_text(["a"], [{"a": np.float64(0.1)}, {"a": math.nan}, {"a": math.inf}, {"a": True}, {}]) == (
        'a\n0.1\n""\n""\nTRUE\n""\n'
    )


def test_all_tables_are_written_the_same_each_time_with_or_without_rows(tmp_path):
    bare = {"claims": (), "left_out": (), "shadows": (), "problem_tests": (), "charts": (), "contrasts": ()}
    full, empty = comparison(THREE), comparison(**bare)
    folders = [write_tables(found, tmp_path / str(i)) for i, found in enumerate((full, full, empty))]
    one, two, none = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert set(one) == set(none) == {f"{name}.csv" for name in tables(full)}
    for name, text in none.items():
        assert text.split(b"\n")[0] == one[name].split(b"\n")[0]


@pytest.fixture
def resvg():
    return pytest.importorskip("resvg_py", reason="needs the extra figures")


@pytest.mark.parametrize("arms", [("gspo", BASELINE), THREE])
def test_a_figure_for_slides_needs_no_browser(arms):
    for chart in comparison(arms).charts:
        svg = light_chart(chart, arms)
        assert Reading(svg).wrong == Reading(svg).open == []
        assert not re.search(r"var\(|currentColor|@media|url\(", svg)
        assert 'xmlns="http://www.w3.org/2000/svg"' in svg[: svg.index(">")]
        assert set(re.findall(r'stroke="(#\w+)"', svg)) == set(LIGHT[: len(arms)])
    named = [dataclasses.replace(chart.series[0], arm_name='fill="var(--arm-0)"')]
    shown = light_chart(dataclasses.replace(chart, series=named), [named[0].arm_name])
    assert "fill=&quot;var" in shown


@pytest.mark.long
def test_pictures_are_wide_white_and_show_curves_and_text(tmp_path, resvg):
    image = pytest.importorskip("PIL.Image")
    found = comparison(THREE)
    folder = write_figures(found, tmp_path)
    names = {f"{chart.key}.{kind}" for chart in found.charts for kind in ("svg", "png")}
    assert {path.name for path in folder.iterdir()} == names
    for chart in found.charts:
        svg = (folder / f"{chart.key}.svg").read_text(encoding="utf-8")
        picture = image.open(folder / f"{chart.key}.png").convert("RGBA")
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
        assert picture.width == 1920
        assert abs(picture.height - 1920 * height / width) <= 2  # of the rounding to whole pixels
        assert {picture.getpixel((x, y)) for x in (0, 1919) for y in (0, picture.height - 1)} == {(255,) * 4}
        pixels = np.asarray(picture)[:, :, :3]
        for color in (*LIGHT[:3], "#1c2024"):  # of the arms, and of the text
            wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
            assert (pixels == wanted).all(axis=2).sum() > 200, (chart.key, color)
    assert (folder / "held_out.png").read_bytes() == png(light_chart(found.charts[0], THREE))


def sweep(folder):
    for algorithm, final in (("gspo", 0.8), ("grpo", 0.5)):
        for seed in range(2):
            write_run(folder / "sweep" / f"{algorithm}-{seed}", algorithm=algorithm, seed=seed, final=final)
    return folder / "sweep"


def test_a_machine_without_fonts_is_refused_instead_of_losing_the_text(tmp_path, resvg):
    sweep(tmp_path)
    (tmp_path / "none.conf").write_text(f"<fontconfig><dir>{tmp_path}</dir></fontconfig>")
    found = {"FONTCONFIG_FILE": str(tmp_path / "none.conf"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = script("gspo-compare", "sweep", "--png")  # fonts are read once in a process
    done = subprocess.run(command, cwd=tmp_path, env=environment(**found), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gspo-compare: --png: no font was found to write with; install one, e.g. ")
    assert not (tmp_path / "sweep" / "report.html").exists()


@pytest.mark.long
def test_the_command_writes_tables_and_figures_beside_the_report(tmp_path, resvg):
    folder = sweep(tmp_path)
    files = []
    for _ in range(2):
        done = call("gspo-compare", "sweep", "--csv", "--png", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert {"  sweep/tables", "  sweep/figures"} <= set(done.stdout.splitlines())
        written = (*folder.glob("tables/*"), *folder.glob("figures/*"), *folder.glob("report.*"))
        files.append({path: path.read_bytes() for path in written})
    assert files[0] == files[1]
    report = json.loads((folder / "report.json").read_text())
    assert len(list(folder.glob("figures/*.png"))) == len(report["charts"])
    assert [float(row["outcomes_final_score"]) for row in read(folder / "tables", "runs")] == [
        run["outcomes"]["final_score"] for arm in report["arms"] for run in arm["runs"]
    ]


def test_without_the_flags_neither_is_written(tmp_path):
    folder = sweep(tmp_path)
    assert call("gspo-compare", "sweep", cwd=tmp_path).returncode == 0
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "gspo-0",
        "gspo-1",
        "grpo-0",
        "grpo-1",
    }


@pytest.mark.parametrize("arguments", [["sweep"], ["task=arithmetic"]])
def test_a_missing_library_is_one_sentence_before_anything_is_trained_or_written(
    tmp_path, monkeypatch, arguments
):
    sweep(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "resvg_py", None)  # as Python marks what cannot be imported
    done = call("gspo-compare", *arguments, "--png", cwd=tmp_path)
    sentence = f"gspo-compare: --png: needs the package resvg-py; {install('figures')}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
    assert sorted(tmp_path.rglob("*")) == before
