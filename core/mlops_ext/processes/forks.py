"""Renew locks and other state of one process in its forked children.

A child has one thread, but a copy of every lock: a lock that another thread held at the fork stays
locked in the child forever.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

_Renew = TypeVar("_Renew", bound=Callable[[], object])


class Forked(Protocol):
    """An object with state that a forked child has to renew."""

    def after_fork(self) -> None:
        """Drop what belongs to the parent; called in each forked child."""
        ...


def in_forked_child(renew: _Renew) -> _Renew:
    """Have *renew* called in every child that is forked from now on; also as a decorator.

    *renew* binds a new lock to the lock's name instead of freeing the old one: a block that the
    forking thread was in at the fork still leaves the lock that it entered. If no process can
    fork, nothing happens.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
    return renew


def follow_forks(one: Forked) -> None:
    """Have ``one.after_fork()`` called in every forked child, as long as *one* is alive."""
    _followed.add(one)


_followed: weakref.WeakSet[Forked] = weakref.WeakSet()


@in_forked_child
def _after_fork() -> None:
    for one in list(_followed):
        one.after_fork()
