"""Floor 2: seeded, checkable exercises as text and as dialogs, with verifiers. The standard library and core alone."""
