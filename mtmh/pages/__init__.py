"""The HTML pages that stages write: one frame and stylesheet, and drawings that follow its colours."""
