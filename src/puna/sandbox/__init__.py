"""Floor 2: programs that nobody vouches for, run against tests behind several walls. The standard library and core alone."""
