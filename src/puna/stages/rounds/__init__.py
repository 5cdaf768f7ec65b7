"""Rounds of post-training: what `puna round` runs, one stage after the other, and what it says about them."""
