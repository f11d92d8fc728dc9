"""What each forked process would do again, in up to a second: digests of the code that makes its artifacts."""

from mtmh.artifacts import WRITTEN_BY, code_of

for kind in WRITTEN_BY:
    code_of(kind)
