"""The clearml extension of mlops-ext."""
