"""Migrations of the collection's database, run by `database.py` through Alembic."""
