"""The AppDef of one verb, its processes and their environment, as all components submit it."""

from torchx import specs
from torchx.components.dist import ddp, parse_nnodes


def app_def(
    verb: list[str],
    recipe: str,
    overrides: tuple[str, ...],
    j: str | None,
    h: str,
    image: str,
    max_retries: int,
    env: dict[str, str] | None,
    mounts: list[str] | None,
    options: list[str] | None = None,
    log_dir: str = "",
    port: int | None = None,
) -> specs.AppDef:
    """The AppDef of ``mtmh VERB RECIPE``: under torchrun where ``j`` is given, else one plain process.

    Raises:
        ValueError: an override is not KEY=VALUE, or ``j`` asks for more processes than the host has GPUs.
    """
    for override in overrides:
        if override.startswith("-") or "=" not in override:
            raise ValueError(f"expected KEY=VALUE after the options, got {override!r}; options such as -j go before")
    words = [*verb, recipe, *(word for override in overrides for word in ("--set", override)), *(options or [])]
    name = f"mtmh-{'-'.join(verb)}"
    if j is None:
        procs = 1
        role = specs.Role(
            name=verb[-1],
            image=image,
            entrypoint="python",
            args=["-m", "mtmh.cli", *words],
            resource=specs.resource(h=h),
            max_retries=max_retries,
            mounts=specs.parse_mounts(mounts) if mounts else [],
            port_map={"http": port} if port else {},
        )
        app = specs.AppDef(name=name, roles=[role])
    else:
        procs = parse_nnodes(j)[2]
        app = ddp(*words, m="mtmh.cli", name=name, image=image, j=j, h=h, max_retries=max_retries, mounts=mounts)
        (role,) = app.roles
        # dist.ddp names it after the module, the same for all verbs. On Kubernetes the name becomes part of a shell
        # variable, the rendezvous host's: one word, without a hyphen.
        role.name = verb[-1].replace("-", "")
        # dist.ddp hands max_retries to the scheduler alone; this is torchrun's own --max_restarts.
        role.env["PET_MAX_RESTARTS"] = str(max_retries)
        # torchrun shares one store among all starts of the ranks, and a node that joins in place of a lost one never
        # learns its address (torch 2.11 to 2.13): the job ends after a minute's wait. So: one a start.
        role.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        if log_dir:
            role.env["PET_LOG_DIR"] = log_dir
    gpus = role.resource.gpu
    if gpus and procs > gpus:
        raise ValueError(f"-j {j} asks for {procs} processes on a host of {gpus} GPUs ({h}); use at most one a GPU")
    # Idle OpenMP threads that spin stall the processes they share cores with.
    role.env["OMP_WAIT_POLICY"] = "passive"
    # A process alone may use the whole host. Ranks on CPU get one thread each: their pools slow each other down many
    # times over. Beside a GPU, a rank has its share of the host's cores for the planner and the loader.
    role.env["OMP_NUM_THREADS"] = str(1 if j is not None and not gpus else max(1, role.resource.cpu // procs))
    if gpus:
        role.env["NCCL_DEBUG"] = "WARN"
        # A rank that waits for a dead one ends with an error instead of hanging, so that torchrun can restart.
        role.env["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "1"
        # Before that it writes its last collectives to /tmp/nccl_trace_rank_*: the flight recorder tells who hung.
        role.env["TORCH_FR_BUFFER_SIZE"] = "2000"
        role.env["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "1"
        # Batches differ in their distinct items: segments that grow leave no gaps between blocks of many sizes.
        role.env["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    role.env.update(env or {})
    return app
