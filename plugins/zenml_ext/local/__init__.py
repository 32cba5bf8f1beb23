"""The orchestrator ``local_oom``: each step in a process of its own, under a memory limit."""
