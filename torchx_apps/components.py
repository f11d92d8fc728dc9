"""One TorchX component a heavy stage: the AppDef that runs an ``mtmh`` verb under torchrun."""

from torchx import specs
from torchx.components.dist import ddp


def train(
    recipe: str,
    *overrides: str,
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    resume: bool = True,
) -> specs.AppDef:
    """Trains a recipe on nodes x processes; the verb is `mtmh train`.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file
        overrides: settings to change, KEY=VALUE each
        j: nodes x processes a node
        h: named resource of a node
        image: container image; empty for local_cwd
        max_retries: times that torchrun restarts a failed job from its last checkpoint
        resume: go on from the newest checkpoint of this recipe
    """
    settings = [word for override in overrides for word in ("--set", override)]
    return ddp(
        "train",
        recipe,
        *settings,
        "--resume" if resume else "--no-resume",
        m="mtmh.cli",
        name="mtmh-train",
        image=image,
        j=j,
        h=h,
        max_retries=max_retries,
        # One thread a rank: ranks that share cores with OpenMP pools slow each other down many times over.
        env={"OMP_NUM_THREADS": "1"},
    )
