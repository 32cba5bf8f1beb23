"""What runs in the orchestrator's pod: it watches the steps' Jobs and starts larger ones."""
