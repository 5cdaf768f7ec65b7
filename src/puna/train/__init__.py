"""Floor 6: the one training loop and what it is made of. Pretraining, SFT and DPO hand it a loss and batches."""
