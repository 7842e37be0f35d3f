"""A packed comparison: the same report elsewhere, nothing private in it, and nothing that a stranger's file
could do."""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gspo_cli.commands.compare_report import Extras, report
from gspo_cli.compare.outcomes import PRIMARY
from gspo_cli.compare.packing import PACKED, unpacked, zipped
from gspo_cli.compare.runs import read_run
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.errors import UserError
from tests.support.command_line import call
from tests.support.stored_runs import changed, stored_run, write_run, write_stored

PRIVATE = (
    *("sk-live-0123456789abcdef", "swordfish-of-the-environment", "correct-horse", "lovelace", "p4ss"),
    "battery staple",
)
ENVIRONMENT = {"JUDGE": PRIVATE[1], "HOME": "/srv/people/lovelace", "USER": "lovelace"}
EXPLICIT = ("compare.threshold=0.55", "compare.level=0.9", "compare.allow=[reward_settings]")


def private_run(folder: Path, algorithm: str, seed: int, final: float) -> None:
    """A run with secrets in all that is packed of it."""
    run = stored_run(algorithm, seed, final=final)
    reward = {"api_key": PRIVATE[0], "api_key_variable": "JUDGE", "url": f"https://me:{PRIVATE[4]}@judge/v1"}
    run.heldout[-1]["conversations"][0]["messages"][1]["content"] = (
        f"I found {PRIVATE[1]} in /home/lovelace/notes"
    )
    run.heldout[-1]["note"] = f"Authorization: Bearer {PRIVATE[2]}"
    summary = {
        **run.summary,
        "run_folder": "/srv/people/lovelace/runs/1",
        "overrides": [
            f"+reward_settings.password={PRIVATE[2]}",
            f"+reward_settings.passphrase=the {PRIVATE[5]}",
            f"+judge='{{token: {PRIVATE[4]}}}'",
        ],
    }
    task = {**run.config["task"], "heldout": f"/scratch/lovelace/{algorithm}.jsonl"}
    config = {**run.config, "reward_settings": reward, "task": task}
    write_stored(folder, replace(run, config=config, summary=summary))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "model.safetensors").write_bytes(b"weights")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """The folder of a comparison that was packed."""
    folder = tmp_path_factory.mktemp("shared")
    for algorithm, final in (("gspo", 0.8), ("grpo", 0.6)):
        for seed in range(2):
            private_run(folder / "sweep" / f"{seed}-{algorithm}", algorithm, seed, final)
    options = [*EXPLICIT, "compare.baseline=gspo", "compare.allow=[reward_settings,task.heldout]"]
    done = call("gspo-compare", "sweep", *options, "--zip", cwd=folder, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def packed_command(folder: Path) -> list[str]:
    lines = (folder / "comparison" / "README.txt").read_text().splitlines()
    return shlex.split(next(line for line in lines if line.startswith("  gspo-compare")))[1:]


def test_somebody_else_gets_the_same_report_from_the_packed_logs(shared, tmp_path):
    shutil.unpack_archive(shared / "sweep" / PACKED, tmp_path)
    sent = {path.name: path.read_bytes() for path in (tmp_path / "comparison").glob("report.*")}
    assert len(sent) == 3
    done = call("gspo-compare", *packed_command(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {name: (tmp_path / "comparison" / name).read_bytes() for name in sent} == sent
    theirs, ours = (
        json.loads(place.read_text())
        for place in (tmp_path / "comparison" / "report.json", shared / "sweep" / "report.json")
    )
    for own in ("reproduce", "arms", "differences", "talks"):  # folders and masked settings
        del theirs[own], ours[own]
    assert theirs == ours


@pytest.mark.long
def test_the_file_itself_can_be_given_and_what_is_packed_again_is_the_same(shared, tmp_path):
    (tmp_path / "from her.zip").write_bytes((shared / "sweep" / PACKED).read_bytes())
    shutil.unpack_archive(shared / "sweep" / PACKED, tmp_path / "aside")
    options = packed_command(tmp_path / "aside")[1:]
    for _ in range(2):  # the second time it is unpacked already
        done = call("gspo-compare", "from her.zip", *options, "--zip", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "compare").iterdir()
    assert folder.name.startswith("from_her-")
    assert (folder / PACKED).read_bytes() == (shared / "sweep" / PACKED).read_bytes()


def test_nothing_private_is_packed_and_what_is_missing_is_said(shared):
    with zipfile.ZipFile(shared / "sweep" / PACKED) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {text for text in PRIVATE for content in texts.values() if text in content} == set()
    names = {name.rpartition("/")[2] for name in texts if "/runs/" in name}
    assert names == {"config.yaml", "metrics.jsonl", "evals.jsonl", "heldout.jsonl", "summary.json"}
    printed = " ".join((shared / "printed").read_text().split())
    assert f"Packed: sweep/{PACKED} (4 runs" in printed
    assert "left out: weights, checkpoints, samples and cards; masked: 6 secrets, home folders" in printed
    summary = json.loads(texts["comparison/runs/gspo-s0/summary.json"])
    assert summary["run_folder"] == "comparison/runs/gspo-s0"


def test_settings_that_differed_still_differ_without_their_secrets(shared):
    with zipfile.ZipFile(shared / "sweep" / PACKED) as archive:
        report = json.loads(archive.read("comparison/report.json"))
    (difference,) = report["differences"]
    assert difference["values"] == {
        "gspo": ["/scratch/<user>/gspo.jsonl"],
        "grpo": ["/scratch/<user>/grpo.jsonl"],
    }


def test_equal_runs_give_equal_bytes_wherever_they_are(tmp_path):
    other = ["algorithm.learning_rate=0.001"]  # another arm of the same algorithm and seed
    for place, names in (("a/one", ("x", "y")), ("b/two", ("y", "x"))):
        for name, overrides in zip(names, ([], other), strict=True):
            write_run(tmp_path / place / name, overrides=overrides)
        done = call("gspo-compare", place, "--zip", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/one" / PACKED).read_bytes() == (tmp_path / "b/two" / PACKED).read_bytes()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    for algorithm in ("gspo", "grpo"):
        write_run(tmp_path / "sweep" / algorithm, algorithm)
    (tmp_path / "sweep" / PACKED / "in the way").mkdir(parents=True)
    done = call("gspo-compare", "sweep", "--zip", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"sweep/{PACKED}: cannot be written (Is a directory)" in done.stderr
    assert not list((tmp_path / "sweep").glob(".*"))
    good = zipped({"comparison/runs/a/config.yaml": b"seed: 1\n"})
    (tmp_path / "good.zip").write_bytes(good)
    (tmp_path / "outputs").write_text("a file")
    done = call("gspo-compare", "good.zip", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "outputs/compare/good-" in done.stderr
    assert "cannot be written" in done.stderr


def test_arms_in_an_order_of_ones_own_are_packed_in_that_of_somebody_else(tmp_path, monkeypatch, capsys):
    for algorithm, final in (("gspo", 0.9), ("grpo", 0.6), ("gspo_token", 0.6)):
        for seed in range(4):
            write_run(tmp_path / "sweep" / f"{algorithm}{seed}", algorithm, seed, final=final)
    monkeypatch.chdir(tmp_path)
    sweep = Path("sweep")
    report([sweep], CompareConfig(algorithms=["gspo_token", "gspo", "grpo"]), sweep, Extras(zip=True))
    assert "Packed: sweep/comparison.zip (12 runs" in capsys.readouterr().out
    shutil.unpack_archive(sweep / PACKED, ".")
    sent = json.loads(Path("comparison/report.json").read_text())
    assert [arm["name"] for arm in sent["arms"]] == ["gspo", "gspo_token", "grpo"]
    here = json.loads((sweep / "report.json").read_text())
    assert [arm["name"] for arm in here["arms"]] == ["gspo_token", "gspo", "grpo"]
    found = [
        {(each["arm_name"], each["outcome"]): each["verdict"] for each in own["contrasts"]}
        for own in (sent, here)
    ]
    assert found[0] == found[1]
    assert len({found[0][arm, PRIMARY] for arm in ("gspo", "gspo_token")}) == 2


def test_arms_that_are_one_without_what_is_masked_are_not_packed(tmp_path):
    for algorithm, home in (("gspo", "ann"), ("grpo", "ann"), ("gspo", "bob")):
        for seed in range(2):
            run = changed(stored_run(algorithm, seed), task__heldout=f"/home/{home}/problems.jsonl")
            write_stored(tmp_path / "sweep" / f"{algorithm}-{home}{seed}", run)
    done = call("gspo-compare", "sweep", "compare.allow=[task.heldout]", "--zip", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--zip: without what is secret in their settings the runs give other verdicts" in done.stderr
    assert not (tmp_path / "sweep" / PACKED).exists()


RUN = "comparison/runs/gspo-s0/"


def archive(path: Path, **members: bytes) -> Path:
    """A zip file whose members are called anything."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


def linked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo(f"{RUN}metrics.jsonl")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc/passwd")


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(f"{RUN}config.yaml", "seed: 1")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr(f"{RUN}config.yaml", "seed: 2")


def cut_name(path: Path) -> None:
    """A name that ends at a zero for some readers."""
    data = archive(path, **{f"{RUN}config.yaml!.png": b"x"}).read_bytes()
    path.write_bytes(data.replace(b"yaml!.png", b"yaml\0.png"))


def central(path: Path, offset: int, value: bytes) -> None:
    """Change the directory of the file: what it says of its first member."""
    data = bytearray(archive(path, **{f"{RUN}config.yaml": b"x" * 10_000}).read_bytes())
    start = data.index(b"PK\x01\x02") + offset
    data[start : start + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: archive(path, **{f"{RUN}../../../outside": b"x"}), "has 'comparison/runs/gspo-s0/../"),
        (lambda path: archive(path, **{"/tmp/outside": b"x"}), "has '/tmp/outside'"),
        (lambda path: archive(path, **{f"{RUN}..": b"x"}), "has '"),
        (lambda path: archive(path, **{f"{RUN}.config.yaml": b"x"}), "has '"),
        (lambda path: archive(path, **{"comparison\\..\\outside": b"x"}), "has '"),
        (cut_name, "has 'comparison/runs/gspo-s0/config.yaml\\x00.png'"),
        (linked, "has 'comparison/runs/gspo-s0/metrics.jsonl'"),
        (twice, "has a name twice"),
        (lambda path: central(path, 24, struct.pack("<L", 2**31)), "unpacks to more than 1024 MiB"),
        (lambda path: central(path, 24, struct.pack("<L", 100)), "cannot be read (Bad CRC-32"),
        (lambda path: central(path, 8, struct.pack("<H", 1)), "has '"),  # encrypted
        (
            lambda path: central(path, 10, struct.pack("<H", 99)),
            "has comparison/runs/gspo-s0/config.yaml compressed",
        ),
        (lambda path: path.write_bytes(b"PK\x03\x04 no more"), "cannot be read (File is not a zip file"),
        (lambda path: archive(path, **{"comparison/report.json": b"{}"}), "contains no run"),
        (lambda path: archive(path), "contains no run"),
    ],
)
def test_a_file_that_is_not_of_gspo_compare_is_refused_and_nothing_is_written(make, reason, tmp_path):
    make(tmp_path / "theirs.zip")
    done = call("gspo-compare", "theirs.zip", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"gspo-compare: theirs.zip: {reason}")
    assert "ask for another, or give run folders" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.zip"]
    assert not Path("/tmp/outside").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_are_not_deflated_are_refused_whole_or_damaged(method, tmp_path):
    for data in damaged(packed(method), 20):
        (tmp_path / "z.zip").write_bytes(data)
        with pytest.raises(UserError, match=r"z.zip: .*; ask for another, or give run folders$"):
            unpacked(tmp_path / "z.zip")
    (tmp_path / "z.zip").write_bytes(packed(method))
    with pytest.raises(
        UserError, match=r"z.zip: has .*/config.yaml compressed by another method than deflate"
    ):
        unpacked(tmp_path / "z.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_damaged_file_is_unpacked_as_it_was_or_refused_in_a_sentence(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = []
    for data in damaged(packed(method), 400):
        (tmp_path / "z.zip").write_bytes(data)
        try:
            for place in unpacked(tmp_path / "z.zip").rglob("*.*"):
                assert place.read_bytes() == PACKED_FILES[place.name]
        except UserError as error:
            refused.append(str(error))
    assert 200 < len(refused) < 400  # what is changed can be a date
    ends = f"{tmp_path / 'z.zip'}: ", "; ask for another, or give run folders"
    assert not [said for said in refused if not (said.startswith(ends[0]) and said.endswith(ends[1]))]


PACKED_FILES = {
    "config.yaml": b"seed: 1\n" * 9,
    "evals.jsonl": b'{"iteration": 0}\n' * 9,
    "summary.json": b"{}",
}


def packed(method: int) -> bytes:
    """A small file of a run, compressed in this way."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in PACKED_FILES.items():
            made.writestr(f"{RUN}{name}", content)
    return file.getvalue()


def damaged(data: bytes, times: int) -> Iterator[bytes]:
    """`data` with one to three of its bytes changed, each time others."""
    draw = random.Random(0)
    for _ in range(times):
        changed = bytearray(data)
        for at in draw.sample(range(len(data)), draw.randint(1, 3)):
            changed[at] = draw.choice([each for each in (0, 1, 255, draw.randrange(256)) if each != data[at]])
        yield bytes(changed)


def test_too_many_or_too_large_members_are_refused_on_both_ways(tmp_path):
    many = {f"{RUN.replace('-s0', f'-s{i}')}config.yaml": b"" for i in range(20_001)}
    with pytest.raises(UserError, match="--zip: the logs are 0 MiB, more than can be packed"):
        zipped(many)
    with pytest.raises(UserError, match="unpacks to more than 1024 MiB or 20,000 files"):
        unpacked(archive(tmp_path / "many.zip", **many))


def test_a_strangers_file_runs_no_code_and_its_page_is_not_unpacked(tmp_path):
    marker = "import pathlib\npathlib.Path('ran').write_text('')\nclass Task: pass\n"
    (tmp_path / "evil.py").write_text(marker)
    for algorithm in ("gspo", "grpo"):
        run = stored_run(algorithm)
        task = {**run.config["task"], "_target_": "evil.Task", "verifier": "python:evil.Task"}
        config = {**run.config, "reward": "evil.Task", "task": task}
        write_stored(tmp_path / "aside" / algorithm, replace(run, config=config))
    done = call("gspo-compare", "aside", "--zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "aside" / PACKED) as made:
        members = {name: made.read(name) for name in made.namelist()}
    shutil.rmtree(tmp_path / "aside")
    evil = b"<script>alert(1)</script>"
    (tmp_path / "theirs.zip").write_bytes(zipped(members | {"comparison/report.html": evil}))
    done = call("gspo-compare", "theirs.zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    (page,) = tmp_path.rglob("report.html")
    assert evil not in page.read_bytes()


def test_links_and_pipes_in_a_strangers_folder_are_neither_followed_nor_waited_for(tmp_path):
    for seed in range(2):
        for algorithm in ("gspo", "grpo"):
            write_run(tmp_path / "theirs" / f"{algorithm}{seed}", algorithm, seed)
    (tmp_path / "mine").write_text("mine")
    for name in (".writing-report.json", "report.html"):
        (tmp_path / "theirs" / name).symlink_to(tmp_path / "mine")
    (tmp_path / "theirs" / "gspo1" / "evals.jsonl").unlink()
    os.mkfifo(tmp_path / "theirs" / "gspo1" / "evals.jsonl")
    shutil.move(tmp_path / "theirs" / "grpo1" / "summary.json", tmp_path / "summary.json")
    (tmp_path / "theirs" / "grpo1" / "summary.json").symlink_to(tmp_path / "summary.json")
    done = call("gspo-compare", "theirs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine").read_text() == "mine"
    left_out = json.loads((tmp_path / "theirs" / "report.json").read_text())["left_out"]
    assert sorted(Path(each["folder"]).name for each in left_out) == ["grpo1", "gspo1"]


def test_what_is_packed_is_read_back_as_it_was(shared, tmp_path):
    shutil.unpack_archive(shared / "sweep" / PACKED, tmp_path)
    there = read_run(tmp_path / "comparison" / "runs" / "grpo-s1")
    here = read_run(shared / "sweep" / "1-grpo")
    assert there.metrics == here.metrics
    assert there.config["algorithm"] == here.config["algorithm"]
