"""What is there twice: by address, by near-equal text, by repeated passages, by meaning."""
