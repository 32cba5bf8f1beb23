"""Requests of all processes of a server, each counted where the others can read it."""

from __future__ import annotations

from typing import Any

IN_FLIGHT, DRAINED, REFUSED, LOST, SEEN, OTHERS = range(6)
WIDTH = 6


class Counts:
    """What became of requests: one row of numbers for each process of a server.

    A process writes only its own row, so nothing is locked.

    Args:
        numbers: the rows: a list, or an array in memory that the processes share.
        row: the row of this process.
    """

    def __init__(self, numbers: Any = None, row: int = 0) -> None:
        self.numbers = [0] * WIDTH if numbers is None else numbers
        self.row = row

    def place(self, column: int) -> int:
        """Where this process's *column* stands: who counts each request adds to it there."""
        return self.row * WIDTH + column

    def add(self, column: int, number: int = 1) -> None:
        """Add *number* to this process's *column*."""
        self.numbers[self.place(column)] += number

    def total(self, column: int) -> int:
        """The sum over all processes."""
        return sum(self.numbers[column::WIDTH])

    def lose(self, row: int) -> None:
        """The process of *row* is gone: what it had in flight is lost."""
        self.add(LOST, self.numbers[row * WIDTH + IN_FLIGHT])
        self.numbers[row * WIDTH + IN_FLIGHT] = 0
