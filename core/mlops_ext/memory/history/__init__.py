"""The policy that learns how much memory a task needs from its earlier runs."""
