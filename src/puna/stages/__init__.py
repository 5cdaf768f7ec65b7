"""Floor 8: stages bind rooms into lineage steps. One module a stage; each is what a verb of the command line runs."""
