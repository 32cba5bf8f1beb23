"""``mlops-ext demo``: a rolling restart under load, bare and fixed side by side."""
