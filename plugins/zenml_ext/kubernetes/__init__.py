"""The orchestrator ``kubernetes_oom``: a step killed for memory is retried with more."""
