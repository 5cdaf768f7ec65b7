"""Floor 1: errors, config, console, files, run folder, dialogs and the generator protocol. Imports no torch."""
