"""Floor 6: the engine: sampling, stop texts, batched generation over a kv cache, and likelihoods."""
