"""The stage that turns raw logs into a dataset artifact: sources, the SQL of its steps, reports of dropped rows."""
