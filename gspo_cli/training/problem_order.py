"""Which problems an iteration sees: every one once per epoch, shuffled anew by seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence

from gspo_cli.randomness import generator
from gspo_cli.types import Problem


class ProblemOrder:
    """An endless walk over `problems`; position `cursor` alone says what comes next."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems, self.seed = problems, seed
        self._epoch = -1
        self._order: list[int] = []

    def take(self, cursor: int, count: int) -> list[Problem]:
        """Problems number `cursor` to `cursor + count` of the walk."""
        return [self._at(position) for position in range(cursor, cursor + count)]

    def _at(self, position: int) -> Problem:
        epoch, place = divmod(position, len(self.problems))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self.seed, "order", epoch).permutation(len(self.problems)).tolist()
        return self.problems[self._order[place]]
