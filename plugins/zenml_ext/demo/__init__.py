"""``mlops-ext demo``: a pipeline killed for memory, bare and fixed side by side."""
