"""Can a pipeline hang: its plan, the check against a live server, and fixes."""
