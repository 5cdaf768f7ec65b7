"""The Llama 3 transformer: shapes, layers, packed attention, kv cache, first weights."""
