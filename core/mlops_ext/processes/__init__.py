"""Processes of this and other hosts: who they are, whether they live, what they hold open."""
