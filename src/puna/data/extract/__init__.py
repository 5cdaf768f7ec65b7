"""Text out of HTML: `html.py` extracts, `child.py` does it in a process that can be killed, `guard.py` holds it."""
