"""An index that takes additions and removals while it answers: segments, and compaction into a new version."""
