"""The model: loading, quantization, chat format, log-probabilities."""

import logging
import os

import torch

# bitsandbytes warns at import (by peft) about an optional kernel, and at each 8-bit product that inputs are
# cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# accelerate imports deepspeed, if installed, to save a model; deepspeed warns on a machine without GPU
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
