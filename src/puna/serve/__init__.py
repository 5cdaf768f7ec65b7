"""Floor 4: an OpenAI-compatible server and a chat page over any `Generator`. Imports no torch."""
