"""Floor 4: from text where it lies to packed batches: sources, filters, deduplication, shards, loader. No torch."""
