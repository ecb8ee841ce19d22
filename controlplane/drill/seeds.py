"""What a seeded run varies: a pure function of its seed, so that the seed repeats the choice.

Each choice has a draw of its own: one that is added later leaves the others of a seed as they were. The moment at
which a fault strikes still depends on the machine; what it is and whom it hits does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from providers.base.clock import Rng, SeededRng

T = TypeVar("T")
SEED_MAX = 2**31 - 1


def fresh_seed(rng: Rng) -> int:
    """A seed for a run that was given none."""
    return int(rng.uniform(0, SEED_MAX))


class Choices:
    """The choices of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def between(self, what: str, low: float, high: float) -> float:
        """A number in [low, high)."""
        return SeededRng(f"{self.seed}:{what}").uniform(low, high)

    def one_of(self, what: str, among: Sequence[T]) -> T:
        """One of a sequence that is not empty."""
        return among[int(self.between(what, 0, len(among)))]

    @property
    def wait_ms(self) -> float:
        """From steady traffic to the fault: anywhere in an upload's interval of ten seconds is reached by many runs,
        each of which begins with uploads at another point of it.
        """
        return self.between("moment", 0, 4_000)

    @property
    def ticks_a_second(self) -> int:
        """Records a partition and second."""
        return int(self.between("rate", 40, 250))

    @property
    def padding(self) -> int:
        """Bytes by which each record is longer than what it has to say."""
        return self.one_of("padding", (0, 0, 200, 2_000))

    @property
    def away_ms(self) -> float:
        """How long what was taken away stays away, where that is the drill's to say."""
        return self.between("away", 3_000, 9_000)
