"""Floor 2: who made which artifact from what, and whether it still holds. Imports no torch."""
