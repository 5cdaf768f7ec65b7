"""Puna: the Llama 3 recipe as one Python package, raw text in, a chat out."""

__version__ = "0.1.0"
