"""The model: loaded, quantised, scored, and asked for text."""

import logging
import os

import torch

# At import, which peft brings about, it says that an optional kernel is not installed; later, of every 8-bit
# product, that inputs are cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# To save a model accelerate imports deepspeed, where that is installed, which warns of a machine without GPU
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
