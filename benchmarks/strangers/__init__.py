"""Ten-line recipes on data that nobody tuned for, against the yardsticks that a user would pick instead."""
