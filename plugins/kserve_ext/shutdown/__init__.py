"""How a server ends: signals, the drain, and the models last."""
