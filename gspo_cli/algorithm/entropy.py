"""A bonus for the entropy of the policy, held constant or adapted to keep the entropy above a floor."""

from __future__ import annotations

from dataclasses import dataclass

from gspo_cli.config.algorithm_schema import AlgorithmConfig


@dataclass
class EntropyBonus:
    """What the loss pays for a nat of entropy, as mean over the trained tokens of a minibatch.

    Without a floor it is `entropy_coefficient` throughout. With one it is adapted (Skywork-OR1, arXiv
    2505.22312, section 4): after an iteration whose entropy, in nats per token, was below the floor,
    `coefficient` rises by a step, after one above it falls by a step, not below 0; and it is paid in
    iterations that follow one at or below the floor only."""

    coefficient: float
    entropy: float | None = None  # of the iteration before

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> EntropyBonus:
        """The bonus at the start of a run."""
        return cls(algorithm.entropy_coefficient)

    def in_force(self, algorithm: AlgorithmConfig) -> float:
        """The coefficient of this iteration."""
        floor = algorithm.entropy_floor
        if floor is None:
            return self.coefficient
        return self.coefficient if self.entropy is not None and self.entropy <= floor else 0.0

    def adapt(self, algorithm: AlgorithmConfig, entropy: float | None) -> None:
        """After an iteration whose policy had this entropy; None if none was trained on."""
        if algorithm.entropy_floor is None or entropy is None:
            return
        self.entropy = entropy
        if entropy < algorithm.entropy_floor:
            self.coefficient += algorithm.entropy_step
        elif entropy > algorithm.entropy_floor:
            self.coefficient = max(0.0, self.coefficient - algorithm.entropy_step)
