"""A store in an object store: S3 and what speaks it, Azure, Google Cloud."""
