"""Kubernetes objects as JSON in, facts and JSON out. Pure: no client, no clock."""
