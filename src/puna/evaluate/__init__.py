"""Floor 3: tasks over the generator protocol, a runner that resumes, and statistics with every figure. No torch."""
