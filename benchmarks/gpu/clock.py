"""How long the whole may take, and what is left out where it does not suffice; several works timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: A work that has been prepared: carried out once, it tells how many seconds it took.
Timed = Callable[[], float]


@dataclass
class Clock:
    """The time of the whole run, in seconds since it was made.

    Attributes:
        limit: when the run ends.
        left_out: what was not measured, and why, a sentence each.
    """

    limit: float
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began

    def allows(self, seconds: float, what: str) -> bool:
        """Checks that so many seconds are left for something; if not, notes it as left out."""
        if self.passed + seconds <= self.limit:
            return True
        self.left_out.append(
            f"{what}: {self.limit - self.passed:.0f} s were left, and it wants about {seconds:.0f}"
        )
        return False

    def rounds(
        self, works: Mapping[str, Timed], *, rounds: int, budget: float, what: str
    ) -> dict[str, list[float]]:
        """Times each work once a round, in turn, as long as the budget lasts, after a round that fills caches.

        Returns:
            Seconds by work, one a whole round.
        """
        ends = min(self.limit, self.passed + budget)
        seconds: dict[str, list[float]] = {name: [] for name in works}
        longest = 0.0
        for attempt in range(rounds + 1):
            if self.passed + longest > ends:
                self.left_out.append(f"{what}: rounds {attempt} to {rounds} of {rounds}")
                break
            began = self.passed
            found = {name: work() for name, work in works.items()}
            longest = max(longest if attempt > 1 else 0.0, self.passed - began)
            if attempt:
                for name, taken in found.items():
                    seconds[name].append(taken)
        return seconds


def middle(seconds: list[float]) -> float | None:
    """Returns the median; None of nothing."""
    return statistics.median(seconds) if seconds else None


def rate(amount: float, seconds: list[float]) -> float | None:
    """Returns the amount a second, by the median."""
    taken = middle(seconds)
    return amount / taken if taken else None
