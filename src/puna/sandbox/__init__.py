"""Floor 2: programs that nobody vouches for, run against tests behind walls. The standard library and core alone."""
