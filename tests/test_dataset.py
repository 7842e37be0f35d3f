"""Data of every kind: files, folders and the hub, what is held out, problems that are built when drawn."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from gspo_cli.errors import UserError
from gspo_cli.tasks import problem_index
from gspo_cli.tasks.gsm8k import Gsm8k
from gspo_cli.tasks.problem_index import Problems
from gspo_cli.types import Message
from tests.support.data import ROWS, contents, dataset, lines, parquet
from tests.support.tasks import gsm8k_file, write

COLUMNS = {"prompt": "question"}


def arrow(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def separated(path, rows, separator):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=separator, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def csv_gz(path, rows):
    plain = path.with_name("plain.csv")
    separated(plain, rows, ",")
    path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))


WRITERS = {
    "a.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "bom_crlf.jsonl": lambda path, rows: path.write_bytes(
        b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n")
    ),
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows), mtime=0)),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(
        zstandard.compress(lines(rows[:5])) + zstandard.compress(lines(rows[5:]))  # two frames
    ),
    "array.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "array.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "array.jsonl": lambda path, rows: path.write_text("\n" + json.dumps(rows)),
    "a.parquet": parquet,
    "a.arrow": arrow,
    "a.csv": lambda path, rows: separated(path, rows, ","),
    "a.tsv": lambda path, rows: separated(path, rows, "\t"),
    "a.csv.gz": csv_gz,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_problems_in_the_same_order(name, tmp_path):
    plain, path = tmp_path / "rows.jsonl", tmp_path / name
    plain.write_bytes(lines(ROWS))
    WRITERS[name](path, ROWS)
    found = contents(dataset(path, **COLUMNS))
    assert found == contents(dataset(plain, **COLUMNS))
    assert [len(side) for side in found] == [9, 3]


def test_gsm8k_is_the_same_from_parquet_and_from_json_lines(tmp_path):
    path = gsm8k_file(tmp_path)
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    parquet(tmp_path / "train.parquet", rows)
    tasks = [Gsm8k("gsm8k", "", "", path=str(each), heldout=5) for each in (path, tmp_path / "train.parquet")]
    assert contents(tasks[0]) == contents(tasks[1])
    assert tasks[0].demonstrations() == tasks[1].demonstrations()


def folder_of_shards(root, write_file, ending):
    for name, rows in {"train-00000-of-00002": ROWS[:5], "train-00001-of-00002": ROWS[5:9]}.items():
        write_file(root / f"{name}{ending}", rows)
    write_file(root / f"test-00000-of-00001{ending}", ROWS[9:])


@pytest.mark.parametrize(("write_file", "ending"), [(parquet, ".parquet"), (WRITERS["a.jsonl"], ".jsonl")])
def test_a_folder_of_shards_is_read_by_split(write_file, ending, tmp_path):
    folder_of_shards(tmp_path, write_file, ending)
    (tmp_path / "README.md").write_text("about")
    task = dataset(tmp_path, heldout_split="test", **COLUMNS)
    train, heldout = contents(task)
    assert {answer for _, answer in train} == {row["answer"] for row in ROWS[:9]}
    assert [answer for _, answer in heldout] == [row["answer"] for row in ROWS[9:]]
    with pytest.raises(
        UserError, match=r"^task\.path=.*: has no files of split dev; choose from test, train"
    ):
        dataset(tmp_path, split="dev", **COLUMNS).train_problems()


def test_a_held_out_folder_is_read_whole_or_by_split(tmp_path):
    folder_of_shards(tmp_path, parquet, ".parquet")
    path = write(tmp_path.parent / f"{tmp_path.name}.jsonl", {"question": "more", "answer": "1"})
    for settings, count in (({}, 12), ({"heldout_split": "test"}, 3)):
        task = dataset(path, heldout_path=str(tmp_path), **COLUMNS, **settings)
        assert [len(side) for side in contents(task)] == [1, count]


def test_text_of_a_table_that_is_not_utf8_is_refused_by_row(tmp_path):
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff"]).buffers())
    good = pyarrow.array(["a"])
    table = pyarrow.table({"prompt": pyarrow.chunked_array([good, texts]), "answer": ["1", "2"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet(:2)?: cannot be (read|loaded) "):
        dataset(tmp_path / "a.parquet").train_problems()


def test_a_bad_row_of_a_shard_is_named_by_its_file_and_row(tmp_path):
    parquet(tmp_path / "one.parquet", ROWS)
    parquet(tmp_path / "two.parquet", [*ROWS[:2], {**ROWS[0], "question": " "}])
    with pytest.raises(UserError, match=r"two\.parquet:3: its prompt is empty"):
        dataset(tmp_path, **COLUMNS).train_problems()


def test_a_folder_has_one_kind_of_files_and_one_subset(tmp_path):
    for name in ("main", "socratic"):
        (tmp_path / name).mkdir()
        folder_of_shards(tmp_path / name, parquet, ".parquet")
    with pytest.raises(UserError, match=r"has files in main, socratic; choose .*task\.subset=main"):
        dataset(tmp_path, **COLUMNS).train_problems()
    assert len(dataset(tmp_path, subset="main", **COLUMNS).train_problems()) == 6
    write(tmp_path / "main" / "train.jsonl", *ROWS)
    with pytest.raises(UserError, match=r"different kinds \(json, parquet\)"):
        dataset(tmp_path, subset="main", **COLUMNS).train_problems()
    for subset in ("other", "..", "/tmp"):
        with pytest.raises(UserError, match=r"task\.subset=.*: .* has no such folder"):
            dataset(tmp_path, subset=subset).train_problems()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no file of data"):
        dataset(tmp_path / "empty").train_problems()


def test_the_held_out_fraction_stays_where_rows_are_added(tmp_path):
    rows = [{"prompt": f"Say {n}", "answer": n} for n in range(400)]
    few, many = write(tmp_path / "few.jsonl", *rows[:200]), write(tmp_path / "many.jsonl", *rows)
    before, after = (
        {messages for messages, _ in contents(dataset(path, heldout_fraction=0.2))[1]} for path in (few, many)
    )
    assert 20 <= len(before) <= 60
    assert before == {
        message for message in after if message in {(Message("user", f"Say {n}"),) for n in range(200)}
    }
    told = dataset(many, heldout_fraction=0.2, verifier="numeric", instructions=True)
    assert {p.messages[0].content.split("\n")[0] for p in told.heldout_problems()} == {
        m[0].content for m in after
    }


@pytest.mark.parametrize("settings", [{"heldout": 3}, {"heldout_fraction": 0.5}])
def test_a_problem_with_several_rows_is_held_out_once(settings, tmp_path):
    rows = [{"prompt": f"Say {n}", "answer": n} for n in range(5)]
    task = dataset(write(tmp_path / "a.jsonl", *rows * 3), **settings)
    train, heldout = contents(task)
    assert len(heldout) == len(set(heldout))
    assert len({*train, *heldout}) == 5
    assert len(train) == 3 * len({*train})
    assert task.duplicates_dropped == 2 * len(heldout)
    if "heldout" in settings:
        assert len(heldout) == 3
        with pytest.raises(UserError, match=r"^task\.heldout=5: leaves none of 5 problems"):
            dataset(write(tmp_path / "a.jsonl", *rows * 3), heldout=5).train_problems()


def test_many_rows_are_read_when_they_are_drawn(tmp_path, monkeypatch):
    path = write(
        tmp_path / "a.jsonl", *[{"prompt": f"Say {n % 40}", "answer": n % 40} for n in range(50)], {}, ""
    )
    small = dataset(path, examples=2, heldout_fraction=0.2)
    whole = contents(small)
    monkeypatch.setattr(problem_index, "MANY", 10)
    monkeypatch.setattr("gspo_cli.tasks.files.MANY", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cached index
        large = dataset(path, examples=2, heldout_fraction=0.2)
        train = large.train_problems()
        assert isinstance(train, Problems)
        assert contents(large) == whole
        assert isinstance(train[1:3], Problems)
        assert list(train[1:3]) == list(small.train_problems())[1:3]
        assert large.notes() == small.notes()
        assert len(list((tmp_path / "cache" / "gspo-cli" / "rows").glob("*.npz"))) == 1
    assert contents(pickle.loads(pickle.dumps(large))) == whole
    (tmp_path / "cache" / "gspo-cli" / "rows").glob("*.npz").__next__().write_bytes(b"damaged")
    assert contents(dataset(path, examples=2, heldout_fraction=0.2)) == whole
    write(tmp_path / "a.jsonl", {"prompt": "new", "answer": 1})
    with pytest.raises(UserError, match=r"^task\.path=.*a\.jsonl: has changed since the run began"):
        train[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            gzip.compress(b'{"prompt": "a", "answer": 1}\n' * 99, mtime=0)[:-20],
            "is not a whole compressed file",
        ),
        (zstandard.compress(b'{"prompt": "a", "answer": 1}\n' * 99)[:-9], "is not a whole compressed file"),
        (json.dumps({"data": ROWS}, indent=1).encode(), 'is one JSON object .*only the array under "data"'),
        (
            b'{"data":\n[{"prompt": "a"}]}',
            'is one JSON object .*only the array under "data", or one object on',
        ),
        (
            gzip.compress(json.dumps({"n": 1, "rows": []}, indent=1).encode(), mtime=0),
            'the array under "rows"',
        ),
        (json.dumps({"0": ROWS[0]}, indent=1).encode(), "is one JSON object .*write an array, or one object"),
        (json.dumps(ROWS[0], indent=1).encode() * 2, "has JSON objects over several lines, not an array"),
        (b'{"prompt": "a"\n{"prompt": "b"}', r":1: is not JSON"),
        (b"[1, 2", "begins with .* but is not a JSON array"),
        (b"[]", "is empty"),
        (b"[1]", r":1: is not a JSON object"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[\xff]", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(content, reason, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.jsonl.*{reason}"):
        dataset(tmp_path / "a.jsonl").train_problems()


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv", "a.csv.gz"])
def test_a_damaged_table_is_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x00 no table\xff\n" * 3)
    with pytest.raises(UserError, match=rf"^task\.path=.*{name}: (cannot be (loaded|read)|is not UTF-8)"):
        dataset(tmp_path / name).train_problems()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.zst"])
def test_without_the_extra_a_table_says_what_to_install(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path / name, ROWS)
    find_spec = sys.modules["importlib.util"].find_spec
    absent = ("datasets", "zstandard")
    monkeypatch.setattr("importlib.util.find_spec", lambda each: None if each in absent else find_spec(each))
    with pytest.raises(UserError, match=rf"{name}: .*pip install 'datasets.*' 'zstandard"):
        dataset(tmp_path / name, **COLUMNS).train_problems()


def test_a_hub_id_that_the_hub_does_not_serve_is_one_sentence(tmp_path, monkeypatch):
    def ask(name, kind):
        raise ConnectionError(f"no route to {kind} {name}\nmore")

    monkeypatch.setattr("gspo_cli.tasks.tables.ask_hub", ask)
    said = (
        r"^task\.path=me/mine: no such file or folder is here, and the hub .*\(no route to dataset me/mine\)"
    )
    with pytest.raises(UserError, match=said):
        dataset("me/mine").train_problems()
    for path in ("mine", "./me/mine", str(tmp_path / "absent"), "me/mine.jsonl"):  # never asked for
        with pytest.raises(UserError, match=r"cannot be read \(No such file"):
            dataset(path).train_problems()


def test_a_split_of_the_hub_is_named_in_errors(monkeypatch):
    import datasets

    splits = {"train": ROWS, "test": ROWS[:2]}
    asked = []

    def load_dataset(path, name, split, revision):
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list(splits[split])

    monkeypatch.setattr("gspo_cli.tasks.tables.ask_hub", lambda name, kind: None)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = dataset("me/mine", subset="main", revision="v1", heldout_split="test", **COLUMNS)
    assert [len(side) for side in contents(task)] == [10, 2]
    assert asked == [("me/mine", "main", split, "v1") for split in ("test", "train")]
    assert task.heldout_problems()[0].id == "test:1"
