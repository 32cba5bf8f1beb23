"""ClearML's API server: its client, a snapshot of what waits and runs, and its tasks."""
