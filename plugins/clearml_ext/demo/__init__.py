"""``mlops-ext demo``: pipelines that hang on their own queues, and their fixes."""
