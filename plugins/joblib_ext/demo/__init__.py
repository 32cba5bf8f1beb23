"""``mlops-ext demo``: one cache and many processes, joblib's own and the shared backend."""
