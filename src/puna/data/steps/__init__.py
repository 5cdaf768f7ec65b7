"""Steps of a curation recipe: the contract in `step.py`, every kind by name in `registry.py`, one file a kind."""
