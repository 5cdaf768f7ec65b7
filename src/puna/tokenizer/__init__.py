"""Text to tokens and back: byte-level BPE with Llama 3's split pattern, its training, files and chat format."""
