"""Floor 9: the command line. One file a verb, imported when the verb is known; `puna --help` loads none of them."""
