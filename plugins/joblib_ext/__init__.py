"""The joblib extension of mlops-ext."""
