"""A framework with a fault: it always gives the same answer."""


def answer():
    """Give the answer."""
    return "wrong"
