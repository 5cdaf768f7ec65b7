"""Post-training: dialogs and preferences in, losses and batches for the one training loop out."""
