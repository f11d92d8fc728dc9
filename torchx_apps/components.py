"""One TorchX component a heavy stage: the AppDef that runs an ``mtmh`` verb on a scheduler's hosts.

TorchX reads this file as text, signatures and docstrings included, and takes each function in it for a component: hence
annotations of an older form, arguments spelled out in each component, and what they share in ``job.py``.
"""
# ruff: noqa: UP006, UP035, UP045 (TorchX 0.7 parses no other forms)

from typing import Dict, List, Optional

from mtmh.torchx_apps import job
from torchx import specs


def prepare(
    recipe: str,
    *overrides: str,
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Turns raw events and items into a dataset; the verb is `mtmh prepare`, one process.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        h: named resource of the host: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
    """
    return job.app_def(["prepare"], recipe, overrides, None, h, image, max_retries, env, mounts)


def prepare_spark(
    recipe: str,
    master: str,
    *overrides: str,
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Turns raw events and items into a dataset on a Spark cluster; the verb is `mtmh prepare`, its driver.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        master: URL of the cluster, such as spark://HOST:7077
        overrides: settings to change, KEY=VALUE each, after all options
        h: named resource of the host: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
    """
    cluster = ("data.engine=spark", f"data.spark.master={master}")
    return job.app_def(["prepare"], recipe, (*cluster, *overrides), None, h, image, max_retries, env, mounts)


def content_simulate(
    recipe: str,
    *overrides: str,
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Draws pictures and concepts for a simulated catalogue; the verb is `mtmh content simulate`, one process.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        h: named resource of the host: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
    """
    return job.app_def(["content", "simulate"], recipe, overrides, None, h, image, max_retries, env, mounts)


def content_train(
    recipe: str,
    *overrides: str,
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    log_dir: str = "",
) -> specs.AppDef:
    """Trains the content encoder on nodes x processes; the verb is `mtmh content train`.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        j: nodes x processes a node
        h: named resource of a node: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that torchrun restarts crashed processes, and that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
        log_dir: folder where torchrun keeps what each process prints; empty: the scheduler's logs alone
    """
    return job.app_def(["content", "train"], recipe, overrides, j, h, image, max_retries, env, mounts, log_dir=log_dir)


def content_check(
    recipe: str,
    *overrides: str,
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Measures how well the teacher tells topics apart, with gates; the verb is `mtmh content check`, one process.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        h: named resource of the host: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
    """
    return job.app_def(["content", "check"], recipe, overrides, None, h, image, max_retries, env, mounts)


def content_embed(
    recipe: str,
    *overrides: str,
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    log_dir: str = "",
) -> specs.AppDef:
    """Embeds the catalogue with an encoder on nodes x processes; the verb is `mtmh content embed`.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        j: nodes x processes a node; 1x1 for content.kind=column
        h: named resource of a node: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that torchrun restarts crashed processes, and that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
        log_dir: folder where torchrun keeps what each process prints; empty: the scheduler's logs alone
    """
    return job.app_def(["content", "embed"], recipe, overrides, j, h, image, max_retries, env, mounts, log_dir=log_dir)


def train(
    recipe: str,
    *overrides: str,
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    log_dir: str = "",
    resume: bool = True,
    continue_from: str = "",
    profile: int = 0,
) -> specs.AppDef:
    """Trains a recipe on nodes x processes; the verb is `mtmh train`. The paper's 48 A100: -j 6x8 -h a100x8.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        j: nodes x processes a node; the number of processes must divide training.num_shards
        h: named resource of a node: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that torchrun restarts crashed processes, and that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
        log_dir: folder where torchrun keeps what each process prints; empty: the scheduler's logs alone
        resume: go on from the newest checkpoint; False: an error if there is one, so a restart ends with it
        continue_from: checkpoint of the period before, whose model a fresh run starts from
        profile: steps to trace for ui.perfetto.dev, into checkpoints/trace
    """
    options = ["--resume" if resume else "--no-resume"]
    options += ["--continue-from", continue_from] if continue_from else []
    options += ["--profile", str(profile)] if profile else []
    return job.app_def(["train"], recipe, overrides, j, h, image, max_retries, env, mounts, options, log_dir)


def embed(
    recipe: str,
    *overrides: str,
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    log_dir: str = "",
    delta_from: str = "",
) -> specs.AppDef:
    """Embeds the catalogue under every head of the newest checkpoint, on nodes x processes; the verb is `mtmh embed`.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        j: nodes x processes a node
        h: named resource of a node: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that torchrun restarts crashed processes, and that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
        log_dir: folder where torchrun keeps what each process prints; empty: the scheduler's logs alone
        delta_from: checkpoint that the model was continued from; embeds only items whose rows have changed
    """
    options = ["--delta-from", delta_from] if delta_from else []
    return job.app_def(["embed"], recipe, overrides, j, h, image, max_retries, env, mounts, options, log_dir)


def build_index(
    recipe: str,
    *overrides: str,
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    log_dir: str = "",
    publish: bool = True,
) -> specs.AppDef:
    """Builds one index a head and publishes it, on nodes x processes; the verb is `mtmh build-index`.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        j: nodes x processes a node
        h: named resource of a node: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that torchrun restarts crashed processes, and that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
        log_dir: folder where torchrun keeps what each process prints; empty: the scheduler's logs alone
        publish: publish the version that was built; False leaves that to `mtmh index publish`
    """
    options = ["--publish" if publish else "--no-publish"]
    return job.app_def(["build-index"], recipe, overrides, j, h, image, max_retries, env, mounts, options, log_dir)


def train_preranker(
    recipe: str,
    *overrides: str,
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    log_dir: str = "",
    resume: bool = True,
) -> specs.AppDef:
    """Trains the user-to-item preranker on nodes x processes; the verb is `mtmh train-preranker`.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        j: nodes x processes a node; the number of processes must divide preranker.training.num_shards
        h: named resource of a node: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that torchrun restarts crashed processes, and that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
        log_dir: folder where torchrun keeps what each process prints; empty: the scheduler's logs alone
        resume: go on from the newest checkpoint; False: an error if there is one, so a restart ends with it
    """
    options = ["--resume" if resume else "--no-resume"]
    return job.app_def(["train-preranker"], recipe, overrides, j, h, image, max_retries, env, mounts, options, log_dir)


def similar_items(
    recipe: str,
    *overrides: str,
    out: str = "",
    k: int = 0,
    alpha: float = -1.0,
    items: str = "",
    j: str = "1x2",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    log_dir: str = "",
) -> specs.AppDef:
    """Writes the answers of every item as Parquet on nodes x processes; the verb is `mtmh similar-items`.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        out: folder of the Parquet files, on a disk that all hosts see; empty: the recipe's folder for them
        k: answers an item; 0: those of the recipe, retrieval.k
        alpha: percent from the engagement head; negative: that of the recipe, retrieval.alpha
        items: text file of item ids, a line each; empty: all items
        j: nodes x processes a node
        h: named resource of a node: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that torchrun restarts crashed processes, and that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
        log_dir: folder where torchrun keeps what each process prints; empty: the scheduler's logs alone
    """
    options = ["--out", out] if out else []
    options += ["--k", str(k)] if k else []
    options += ["--alpha", str(alpha)] if alpha >= 0 else []
    options += ["--items", items] if items else []
    return job.app_def(["similar-items"], recipe, overrides, j, h, image, max_retries, env, mounts, options, log_dir)


def evaluate(
    recipe: str,
    *overrides: str,
    compare: Optional[List[str]] = None,
    index_version: str = "",
    published_version: str = "",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Measures recall and topic match and writes report.html; the verb is `mtmh evaluate`, one process.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        compare: evaluation folders of other models, shown beside, comma between them
        index_version: of the index, as `mtmh index list` shows it; empty: the published one
        published_version: to measure beside, of whatever data, as it was built; empty: none
        h: named resource of the host: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
    """
    options = [word for folder in compare or [] for word in ("--compare", folder)]
    options += ["--index-version", index_version] if index_version else []
    options += ["--published-version", published_version] if published_version else []
    return job.app_def(["evaluate"], recipe, overrides, None, h, image, max_retries, env, mounts, options)


def chain(
    recipe: str,
    *overrides: str,
    scheduler: str = "local_cwd",
    scheduler_cfg: str = "",
    continue_from: str = "",
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Runs every stage that has changed as a job of its own, then publishes; the verb is `mtmh chain`, one process.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that this job and those of the stages can read
        overrides: settings to change, KEY=VALUE each, after all options
        scheduler: where the stages' jobs run; this job must be able to submit there
        scheduler_cfg: settings of that scheduler, NAME=VALUE,NAME=VALUE
        continue_from: checkpoint of the period before, whose model training starts from
        h: named resource of the host of this job: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image of this job; those of the stages' jobs is the recipe's chain.image
        max_retries: times that the scheduler starts a failed job again; it goes on where it stopped
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
    """
    options = ["--scheduler", scheduler, *(["--cfg", scheduler_cfg] if scheduler_cfg else [])]
    options += ["--continue-from", continue_from] if continue_from else []
    return job.app_def(["chain"], recipe, overrides, None, h, image, max_retries, env, mounts, options)


def serve(
    recipe: str,
    *overrides: str,
    host: str = "0.0.0.0",
    port: int = 8080,
    h: str = "cpu_small",
    image: str = "",
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Serves the published index over HTTP; the verb is `mtmh serve`, one process.

    Args:
        recipe: a recipe that ships with mtmh, or a YAML file that the job can read
        overrides: settings to change, KEY=VALUE each, after all options
        host: address to listen on; 0.0.0.0 is all of the machine's, for a job that others reach; 127.0.0.1 itself alone
        port: of the service
        h: named resource of the host: cpu_small, a100x8, h100x8, h200x8 or your own
        image: container image; local_cwd and slurm use none
        max_retries: times that the scheduler starts a failed job again
        env: environment variables, NAME=VALUE,NAME=VALUE; they win over those of the component
        mounts: type=volume,src=CLAIM,dst=/path or type=bind,src=/host,dst=/path (kubernetes, docker)
    """
    options = ["--host", host, "--port", str(port)]
    env = {"OMP_NUM_THREADS": "1", **(env or {})}  # its search threads are as many as the cores
    return job.app_def(["serve"], recipe, overrides, None, h, image, max_retries, env, mounts, options, port=port)
