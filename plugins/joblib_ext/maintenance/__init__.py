"""House-keeping of a shared cache: statistics, eviction, garbage."""
