"""Floor 4: checkpoints, the Hugging Face folder that every other tool opens, and what a run needs to go on."""
