"""Pipelines that run: watched, explained, and their steps reaped when the controller ends."""
