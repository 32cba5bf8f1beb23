"""Processes of this and other hosts: who they are, whether they live, and how they end."""
