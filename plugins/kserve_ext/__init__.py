"""The kserve extension of mlops-ext."""
