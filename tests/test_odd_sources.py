"""Data settings that name nothing that can be read: each is refused with what to give in its place."""

from __future__ import annotations

import gzip
import zipfile

import pytest

from gspo_cli.config.checks import require_path
from gspo_cli.errors import UserError
from tests.support.data import ROWS, both, dataset, lines, parquet


@pytest.mark.parametrize("empty", ["", "  "])
@pytest.mark.parametrize("name", ["path", "heldout_path", "subset", "split", "revision", "heldout_split"])
def test_an_empty_text_is_no_setting(name, empty, tmp_path):
    with pytest.raises(
        UserError, match=rf"^task\.{name}='{empty}': is empty; give a value, or leave it out$"
    ):
        dataset(**{"path": tmp_path / "a.jsonl", name: empty})


def test_no_empty_path_means_the_current_folder():
    with pytest.raises(UserError, match=r"^model\.name='': is empty, which would mean the current folder; "):
        require_path("model.name", "")


@pytest.mark.parametrize("setting", ["path", "heldout_path"])
@pytest.mark.parametrize("address", ["https://x.invalid/z.csv", "HTTP://x.invalid/z", "s3://b/z.parquet"])
def test_an_address_is_not_read(setting, address, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    task = dataset(**{"path": tmp_path / "a.jsonl", "prompt": "question", setting: address})
    with pytest.raises(UserError) as error:
        task.train_problems()
    assert str(error.value).startswith(f"task.{setting}={address}: is an address, from which nothing is read")
    assert "download the file" in str(error.value)


@pytest.mark.parametrize("name", ["a.zip", "a.txt", "a.xlsx.gz", "a"])
def test_a_file_of_another_kind_is_refused_with_the_kinds_that_are_read(name, tmp_path):
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("a.jsonl", lines(ROWS))
    else:
        path.write_text("What is 1 + 1?\n")
    reason = rf"{name}: its name does not end with one of \.jsonl, .*\.parquet.*; give a file of one of these"
    with pytest.raises(UserError, match=reason):
        dataset(path).train_problems()


def test_a_file_of_no_kind_that_has_rows_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(lines(ROWS))
    assert len(both(dataset(tmp_path / "a.txt", prompt="question"))) == len(ROWS)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_wrong_checksum_is_no_missing_file(ending, tmp_path):
    content = lines(ROWS) if ending == "jsonl" else b"prompt,answer\na,1\nb,2\n"
    packed = bytearray(gzip.compress(content))
    packed[-8] ^= 255
    path = tmp_path / f"a.{ending}.gz"
    path.write_bytes(packed)
    with pytest.raises(
        UserError, match=r"is not a whole compressed file \(CRC check failed.*; get it again$"
    ):
        dataset(path).train_problems()


def test_a_folder_has_no_revision(tmp_path):
    parquet(tmp_path / "a.parquet", ROWS)
    with pytest.raises(UserError, match=r"^task\.revision=main: .* is not of the hub"):
        dataset(tmp_path, revision="main").train_problems()


def test_a_held_out_file_has_no_splits(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    held = {"heldout_path": str(tmp_path / "a.jsonl"), "heldout_split": "train"}
    with pytest.raises(UserError, match=r"^task\.heldout_split=train: .* is one file, .* leave out"):
        dataset(tmp_path / "a.jsonl", prompt="question", **held).train_problems()


@pytest.mark.parametrize("number", ["5", "0.5", "-1"])
def test_a_number_is_not_taken_for_true(number, configure):
    with pytest.raises(UserError, match=rf"^task\.instructions={number}: is not valid; give true or false"):
        configure("task=dataset", "task.path=a.jsonl", f"task.instructions={number}")
