"""Selection: the share of the tokens of an update at which the policy is least certain.

Shapes: B sequences of a micro-batch, T tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from gspo_cli.training.batch import MicroBatch, MiniBatch
from gspo_cli.training.process_group import ProcessGroup


def select_high_entropy(
    minibatch: MiniBatch, entropy: Callable[[MicroBatch], Tensor], ranks: ProcessGroup, share: float
) -> None:
    """Mark the trained tokens of a minibatch whose `entropy` (B, T) is at or above the quantile that leaves
    `share` of them, over all ranks (arXiv 2506.01939, section 5).

    The quantile is of the whole update, so that the choice does not depend on its layout. Answers without an
    advantage are not part of it. Those that are not marked stay in the denominator, as in the paper."""
    found = [(micro, entropy(micro)) for micro in minibatch.micro_batches]
    mine = [value for micro, values in found for value in values[micro.action_mask].double().tolist()]
    everything = ranks.gather(mine)
    bound = float(np.quantile(everything, 1 - share)) if everything else 0.0
    for micro, values in found:
        micro.selected = (values.double() >= bound) & micro.action_mask
