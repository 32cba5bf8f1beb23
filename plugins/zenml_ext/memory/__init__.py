"""From a ZenML step to core's memory policy, and back into the run's metadata."""
