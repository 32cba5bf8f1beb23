"""Queues and agents as files and pictures."""
