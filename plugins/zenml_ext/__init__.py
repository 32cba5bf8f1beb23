"""The zenml extension of mlops-ext."""
