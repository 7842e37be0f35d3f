"""Files of tables from strangers, with odd names, and with a cache that is damaged or takes no file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets.features.features import _FEATURE_TYPES

from gspo_cli.errors import UserError
from gspo_cli.tasks.tables import file_tables, hub_table
from tests.support.data import ROWS, both, dataset, parquet

ROOT = Path(__file__).resolve().parent.parent
DECODED = sorted(name for name, kind in _FEATURE_TYPES.items() if hasattr(kind, "decode") and name != "Json")
EXPECTED = {row["question"]: row["answer"] for row in ROWS}
OPENS = """
import json, sys
from gspo_cli.tasks.tables import file_tables
opened = []
def note(event, arguments):
    if event in ("open", "socket.getaddrinfo", "socket.connect") and "canary" in str(arguments):
        opened.append(str(arguments))
sys.addaudithook(note)
rows = {}
for path in sys.argv[1:]:
    table, = file_tables(path.rpartition(".")[2], [path], "task.path")
    assert list(table) == [table.row(0)]
    rows[path] = table.row(0)
print(json.dumps([rows, opened]))
"""


def declared(name, value):
    """A table whose metadata says that its columns `a`, and the texts within `b`, are of the class `name`."""
    features = {"a": {"_type": name}, "b": {"_type": "List", "feature": {"_type": name}}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    kind = kind if isinstance(value, dict) else pyarrow.string()
    schema = pyarrow.schema({"a": kind, "b": pyarrow.list_(kind)}, metadata=metadata)
    return pyarrow.Table.from_pylist([{"a": value, "b": [value]}], schema=schema)


@pytest.mark.long
@pytest.mark.parametrize("place", ["canary.png", "http://canary.invalid/a.png"])
def test_no_column_of_a_file_opens_what_its_rows_name(place, tmp_path):
    assert {"Audio", "Image", "Pdf", "Video"} <= set(DECODED)
    canary = place if "://" in place else str(tmp_path / place)
    if canary != place:
        Path(canary).write_bytes(b"secret")
    expected = {}
    for name in DECODED:
        for number, value in enumerate([{"bytes": None, "path": canary}, canary]):
            table = declared(name, value)
            path = tmp_path / f"{name}{number}"
            pyarrow.parquet.write_table(table, f"{path}.parquet")
            with pyarrow.ipc.new_stream(f"{path}.arrow", table.schema) as writer:
                writer.write_table(table)
            expected |= {f"{path}.{kind}": {"a": value, "b": [value]} for kind in ("parquet", "arrow")}
    command = [sys.executable, "-c", OPENS, *expected]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected, []]


@pytest.mark.parametrize("nested", [False, True])
def test_no_column_of_the_hub_opens_what_its_rows_name(nested, tmp_path, monkeypatch):
    (tmp_path / "canary").write_bytes(b"secret")
    value = {"bytes": None, "path": str(tmp_path / "canary")}
    feature = datasets.List(datasets.Image()) if nested else datasets.Image()
    pictures = [[value]] * 12 if nested else [value] * 12
    table = datasets.Dataset.from_list(ROWS)
    table = table.add_column("picture", pictures).cast(
        datasets.Features({**table.features, "picture": feature})
    )
    monkeypatch.setattr("gspo_cli.tasks.tables.ask_hub", lambda name, kind: None)
    monkeypatch.setattr("datasets.load_dataset", lambda path, **settings: table)
    found = hub_table("me/mine", None, "train", None, "task.path")
    assert found.row(0)["picture"] == pictures[0]
    assert [row["picture"] for row in found] == pictures


def test_a_column_of_json_is_parsed(tmp_path):
    table = pyarrow.table(
        {"prompt": ["a", "b"], "answer": pyarrow.array(['{"x": [1]}', "2"], pyarrow.json_())}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = both(dataset(tmp_path / "a.parquet", heldout=1, verifier="json"))
    assert sorted(answer for _, answer in found) == ["2", '{"x": [1]}']


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(path):
    found = both(dataset(path, prompt="question"))
    return {messages[0].content: answer for messages, answer in found}


@pytest.mark.parametrize("kept", [0, 8, 0.5, -8])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_cached_table_that_is_cut_off_is_made_anew(kind, kept, cache, tmp_path):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet(path, ROWS)
    else:
        path.write_text("question,answer\n" + "".join(f"{text},{n}\n" for text, n in EXPECTED.items()))
    assert read(path) == EXPECTED
    (cached,) = cache.rglob("*.arrow")
    whole = cached.read_bytes()
    cached.write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else kept])
    assert read(path) == EXPECTED
    assert cached.read_bytes() == whole


def test_a_cache_that_takes_no_file_is_noted_and_the_rows_are_read(cache, tmp_path, capsys):
    cache.write_text("a file where the folder should be")
    parquet(tmp_path / "a.parquet", ROWS)
    assert read(tmp_path / "a.parquet") == EXPECTED
    assert f"task: rows are held in memory, for {cache}/gspo-cli/tables takes no file" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full_is_noted_and_the_rows_are_read(cache, tmp_path, capsys):
    parquet(tmp_path / "a.parquet", ROWS)
    assert read(tmp_path / "a.parquet") == EXPECTED
    (cached,) = (cache / "gspo-cli" / "tables").glob("*.arrow")
    cached.unlink()
    cached.with_name(f".writing-{cached.name}").symlink_to("/dev/full")
    assert read(tmp_path / "a.parquet") == EXPECTED
    assert "No space left on device" in capsys.readouterr().err
    assert not cached.exists()


def test_characters_of_patterns_in_the_names_of_files_are_characters(tmp_path):
    names = ["a1", "a[1]", "b*", "c?", "{d,e}", "**"]
    for number, name in enumerate(names):
        parquet(tmp_path / f"{name}.parquet", ROWS[2 * number : 2 * number + 2])
    assert read(tmp_path) == EXPECTED


@pytest.mark.parametrize("name", ["none.parquet", "none.csv", "none.arrow"])
def test_a_file_that_is_not_there_is_told_as_any_other(name):
    with pytest.raises(
        UserError, match=rf"{name}: cannot be read \(No such file or directory\); give an existing file"
    ):
        file_tables(Path(name).suffix[1:], [name], "task.path")
