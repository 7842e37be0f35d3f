"""The model: loaded, quantised, scored, and asked for text."""

import logging

# At import, which peft brings about, it says that an optional kernel is not installed; later, of every 8-bit
# product, that inputs are cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
