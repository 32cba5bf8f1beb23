"""Can controllers and steps deadlock: `check.check` answers for a whole topology, with a proof."""
