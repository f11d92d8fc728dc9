"""The protocol of the papers, the yardsticks and the report."""
