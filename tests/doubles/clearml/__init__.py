"""A double of the ClearML API server, on loopback, good enough for the real SDK and agents."""

from tests.doubles.clearml.server import ApiDouble

__all__ = ["ApiDouble"]
