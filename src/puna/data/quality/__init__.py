"""Quality classifiers, Llama 3's way: an earlier model labels a sample, small classifiers learn to say the same."""
