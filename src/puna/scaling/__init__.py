"""Laws fitted on small runs that say what large ones will do. No torch."""
