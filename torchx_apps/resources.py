"""Named hosts for ``torchx run -h NAME``."""

from torchx.specs import Resource


def cpu_small() -> Resource:
    """A laptop or a small cloud host: 2 cores, 8 GB, no GPU."""
    return Resource(cpu=2, gpu=0, memMB=8_000)
