"""How long a stage of work may still take, from the share of it that is done."""

from __future__ import annotations

SURE = 0.1  # of a stage: before that nothing is said
SETTLED = 3.0  # seconds, likewise
LONG = 20.0  # seconds that are worth a line if there is no terminal


class Estimate:
    """Of one stage after the other: a share that goes back begins the next one."""

    def __init__(self) -> None:
        self.began, self.first, self.last = 0.0, 0.0, 2.0
        self.said = False

    def left(self, share: float, now: float) -> float | None:
        """Seconds that the stage may still take; None while that is not known. `now` in seconds, of any clock."""
        if share < self.last:
            self.began, self.first, self.said = now, share, False
        self.last = share
        done, took = share - self.first, now - self.began
        if done < SURE or took < SETTLED:
            return None
        return took * (1 - share) / done

    def once(self, share: float, now: float) -> float | None:
        """The same once in a stage, and only if it is long."""
        left = self.left(share, now)
        if left is None or left < LONG or self.said:
            return None
        self.said = True
        return left


def in_words(seconds: float) -> str:
    """A time that is not known well.

    >>> in_words(8), in_words(47), in_words(100), in_words(4000), in_words(100_000)
    ('about 10 s', 'about 50 s', 'about 2 min', 'about 1.1 h', 'about 28 h')
    """
    if seconds < 90:
        return f"about {max(round(seconds, -1), 10):.0f} s"
    if seconds < 3600:
        return f"about {seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"about {hours:.1f} h" if hours < 10 else f"about {hours:.0f} h"
