"""The tables, and triggers that keep the log append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SQLITE = """
CREATE TRIGGER labels_no_{verb} BEFORE {VERB} ON labels
BEGIN SELECT RAISE(ABORT, 'the log of labels is append-only'); END
"""
_POSTGRES_FUNCTION = """
CREATE FUNCTION labels_append_only() RETURNS trigger AS $$
BEGIN RAISE EXCEPTION 'the log of labels is append-only'; END $$ LANGUAGE plpgsql
"""
_POSTGRES = """
CREATE TRIGGER labels_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON labels
FOR EACH STATEMENT EXECUTE FUNCTION labels_append_only()
"""


def upgrade() -> None:
    """Make everything."""
    op.create_table(
        "collection",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("guideline", sa.String, nullable=False),
        sa.Column("guideline_version", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("place", sa.Integer, nullable=False, index=True),
        sa.Column("round", sa.Integer, nullable=False, index=True),
        sa.Column("is_gold", sa.Boolean, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("dispute", sa.Float, nullable=True, index=True),
    )
    op.create_table(
        "annotators",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("token_sha256", sa.String, nullable=False, unique=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("paused", sa.String, nullable=True),
    )
    op.create_table(
        "assignments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("item_id", sa.String, sa.ForeignKey("items.id"), nullable=False, index=True),
        sa.Column("annotator", sa.String, sa.ForeignKey("annotators.name"), nullable=False, index=True),
        sa.Column("occasion", sa.Integer, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("left", sa.String, nullable=False),
        sa.Column("given_at", sa.Float, nullable=False),
        sa.Column("outcome", sa.String, nullable=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.UniqueConstraint("item_id", "annotator", "occasion"),
    )
    op.create_table(
        "labels",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("submission", sa.String, nullable=False, unique=True),
        sa.Column("assignment_id", sa.Integer, sa.ForeignKey("assignments.id"), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("value", sa.Integer, nullable=True),
        sa.Column("edit", sa.String, nullable=True),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("note", sa.String, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("guideline_version", sa.String, nullable=False),
        sa.Column("time", sa.String, nullable=False),
        sa.UniqueConstraint("assignment_id", "revision"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(_SQLITE.format(verb=verb, VERB=verb.upper()))
    else:
        op.execute(_POSTGRES_FUNCTION)
        op.execute(_POSTGRES)


def downgrade() -> None:
    """Take everything away."""
    for table in ("labels", "assignments", "annotators", "items", "collection"):
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION labels_append_only()")
