"""The teacher: embed the catalogue with a frozen content encoder."""
