"""Builders of tasks, one file a source, and the config that names them."""
