"""Puna: the Llama 3 recipe as one Python package, raw crawl in, safe assistant out."""

__version__ = "0.1.0"
