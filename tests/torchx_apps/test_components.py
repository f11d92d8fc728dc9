"""The job that each component submits, by TorchX's own runner for local, Slurm and Kubernetes hosts."""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer.main
from kubernetes.client import ApiClient
from torch.distributed.run import get_args_parser
from torchx.runner import Runner, get_runner
from torchx.specs import AppState, BindMount, Role, VolumeMount, named_resources
from torchx.specs.finder import get_component, get_components

from mtmh.cli import app
from mtmh.config import load_config

COMPONENTS = Path(__file__).parents[2] / "torchx_apps" / "components.py"
RANKS = {
    "content_train": "content train",
    "content_embed": "content embed",
    "train": "train",
    "embed": "embed",
    "build_index": "build-index",
    "train_preranker": "train-preranker",
    "similar_items": "similar-items",
}
ALONE = {
    "prepare": "prepare",
    "content_simulate": "content simulate",
    "content_check": "content check",
    "evaluate": "evaluate",
    "chain": "chain",
    "serve": "serve",
}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with get_runner() as opened:
        yield opened


def role_of(runner: Runner, component: str, *args: str) -> Role:
    """The one role of a component, as TorchX makes it from command-line arguments."""
    dry = runner.dryrun_component(component, list(args), "local_cwd", workspace="")
    (role,) = dry._app.roles
    return role


def words_of(role: Role) -> list[str]:
    """Program and arguments of a role; those of torchrun are taken out of their shell line."""
    return shlex.split(role.args[1]) if role.entrypoint == "bash" else [role.entrypoint, *role.args]


def verb_of(words: list[str]) -> list[str]:
    return words[words.index("mtmh.cli") + 1 :]


def parsed(words: list[str]) -> dict[str, Any]:
    """The words as the command line reads them; unknown verbs and options raise."""
    command: Any = typer.main.get_command(app)
    context: Any = None
    while hasattr(command, "resolve_command"):
        context = command.make_context("mtmh", words, parent=context)
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    return command.make_context("verb", words, parent=context).params


@pytest.mark.parametrize(("component", "verb"), RANKS.items())
def test_a_verb_of_several_ranks_runs_under_torchrun(runner: Runner, component: str, verb: str) -> None:
    role = role_of(runner, f"mtmh.{component}", "-j", "3x2", "--recipe", "demo", "seed=4", "data.options.a=b c")
    words = words_of(role)
    assert words[0] == "torchrun"
    assert words[words.index("--nnodes") + 1] == "3"
    assert words[words.index("--nproc_per_node") + 1] == "2"
    assert words[words.index("--rdzv_backend") + 1] == "c10d"
    assert words[words.index("--rdzv_endpoint") + 1].endswith(":29500")
    assert words[words.index("-m") + 1] == "mtmh.cli"
    said = verb_of(words)
    expected = [*verb.split(), "demo", "--set", "seed=4", "--set", "data.options.a=b c"]
    assert said[: len(expected)] == expected
    assert parsed(said)["overrides"] == ["seed=4", "data.options.a=b c"]
    assert role.name.isalpha()  # becomes part of a shell variable on Kubernetes
    assert role.num_replicas == 3
    assert role.env["OMP_NUM_THREADS"] == "1"
    assert role.env["OMP_WAIT_POLICY"] == "passive"
    assert role.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert not [name for name in role.env if "NCCL" in name]


@pytest.mark.parametrize(("component", "verb"), ALONE.items())
def test_a_verb_of_one_process_runs_plainly(runner: Runner, component: str, verb: str) -> None:
    role = role_of(runner, f"mtmh.{component}", "--recipe", "demo", "--max_retries", "2", "seed=4")
    expected = ["python", "-m", "mtmh.cli", *verb.split(), "demo", "--set", "seed=4"]
    assert words_of(role)[: len(expected)] == expected
    assert parsed(verb_of(words_of(role)))["recipe"] == "demo"
    assert role.num_replicas == 1
    assert role.max_retries == 2
    # The whole of cpu_small; but a service has as many threads of its own.
    assert role.env["OMP_NUM_THREADS"] == ("1" if component == "serve" else "2")


def test_prepare_on_spark_is_the_same_verb_with_a_cluster(runner: Runner) -> None:
    master = "spark://master:7077"
    role = role_of(runner, "mtmh.prepare_spark", "--recipe", "demo", "--master", master, "data.threads=1")
    said = parsed(verb_of(words_of(role)))
    assert said["recipe"] == "demo"
    data = load_config("demo", said["overrides"]).data
    assert (data.engine, data.spark.master, data.threads) == ("spark", master, 1)


def test_every_heavy_verb_has_a_component_that_explains_its_arguments() -> None:
    found = {name: c for name, c in get_components().items() if name.startswith("mtmh.")}
    assert set(found) == {f"mtmh.{name}" for name in [*RANKS, *ALONE, "prepare_spark"]}
    for component in found.values():
        assert component.description.startswith(
            ("Turns", "Trains", "Embeds", "Builds", "Measures", "Draws", "Runs", "Serves", "Writes")
        )
        assert "the verb is `mtmh" in component.description


def test_torchx_keeps_its_own_components() -> None:
    assert {"dist.ddp", "utils.echo", "utils.sh"} <= set(get_components())


def test_a_checkout_runs_by_file_path(runner: Runner) -> None:
    by_path = role_of(runner, f"{COMPONENTS}:train", "-j", "1x2", "--recipe", "demo")
    by_name = role_of(runner, "mtmh.train", "-j", "1x2", "--recipe", "demo")
    assert by_path == by_name
    assert not get_component(f"{COMPONENTS}:train").validation_errors


def test_train_resumes_unless_told_otherwise(runner: Runner) -> None:
    on = role_of(runner, "mtmh.train", "--recipe", "demo")
    off = role_of(runner, "mtmh.train", "--recipe", "demo", "--resume", "False")
    assert parsed(verb_of(words_of(on)))["resume"] is True
    assert parsed(verb_of(words_of(off)))["resume"] is False
    onward = role_of(
        runner, "mtmh.train", "--recipe", "demo", "--continue_from", "runs/before/step-00000010", "--profile", "5"
    )
    assert parsed(verb_of(words_of(onward)))["profile"] == 5
    assert parsed(verb_of(words_of(onward)))["continue_from"] == Path("runs/before/step-00000010")


def test_evaluate_compares_with_other_folders(runner: Runner) -> None:
    role = role_of(runner, "mtmh.evaluate", "--recipe", "demo", "--compare", "runs/a,runs/b", "seed=1")
    assert parsed(verb_of(words_of(role)))["compare"] == [Path("runs/a"), Path("runs/b")]


def test_a_stage_of_a_chain_leaves_publishing_to_it(runner: Runner) -> None:
    built = role_of(runner, "mtmh.build_index", "--recipe", "demo", "--publish", "False")
    assert parsed(verb_of(words_of(built)))["publish"] is False
    versions = ["--index_version", "000004", "--published_version", "000003"]
    judged = parsed(verb_of(words_of(role_of(runner, "mtmh.evaluate", "--recipe", "demo", *versions))))
    assert (judged["index_version"], judged["published_version"]) == ("000004", "000003")
    chain = role_of(runner, "mtmh.chain", "--recipe", "demo", "--scheduler", "slurm", "--scheduler_cfg", "partition=a")
    options = parsed(verb_of(words_of(chain)))
    assert (options["scheduler"], options["cfg"]) == ("slurm", "partition=a")


def test_a_chain_and_its_stages_go_on_from_the_period_before(runner: Runner) -> None:
    chain = role_of(runner, "mtmh.chain", "--recipe", "demo", "--continue_from", "runs/before/step-00000010")
    assert parsed(verb_of(words_of(chain)))["continue_from"] == Path("runs/before/step-00000010")
    embedded = role_of(runner, "mtmh.embed", "--recipe", "demo", "--delta_from", "runs/before/step-00000010")
    assert parsed(verb_of(words_of(embedded)))["delta_from"] == Path("runs/before/step-00000010")


def test_a_service_listens_where_others_reach_it(runner: Runner) -> None:
    role = role_of(runner, "mtmh.serve", "--recipe", "demo", "--port", "9000")
    options = parsed(verb_of(words_of(role)))
    assert (options["host"], options["port"]) == ("0.0.0.0", 9000)
    assert role.port_map == {"http": 9000}
    alone = role_of(runner, "mtmh.serve", "--recipe", "demo", "--host", "127.0.0.1")
    assert parsed(verb_of(words_of(alone)))["host"] == "127.0.0.1"


def test_torchrun_reads_the_restarts(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    role = role_of(runner, "mtmh.train", "--recipe", "demo", "--max_retries", "3")
    assert role.max_retries == 3
    monkeypatch.setenv("PET_MAX_RESTARTS", role.env["PET_MAX_RESTARTS"])
    assert get_args_parser().parse_args(words_of(role)[1:]).max_restarts == 3


def test_torchrun_reads_the_log_folder(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PET_LOG_DIR" not in role_of(runner, "mtmh.train", "--recipe", "demo").env
    role = role_of(runner, "mtmh.train", "--recipe", "demo", "--log_dir", "runs/logs")
    monkeypatch.setenv("PET_LOG_DIR", role.env["PET_LOG_DIR"])
    assert get_args_parser().parse_args(words_of(role)[1:]).log_dir == "runs/logs"


def test_the_users_environment_wins(runner: Runner) -> None:
    given = "OMP_NUM_THREADS=5,NCCL_SOCKET_IFNAME=eth0"
    for component in ("mtmh.train", "mtmh.prepare"):
        role = role_of(runner, component, "--recipe", "demo", "--env", given)
        assert role.env["OMP_NUM_THREADS"] == "5"
        assert role.env["NCCL_SOCKET_IFNAME"] == "eth0"


def test_mounts_reach_the_role(runner: Runner) -> None:
    mounts = "type=volume,src=runs,dst=/work/runs,type=bind,src=/data,dst=/data,readonly"
    for component in ("mtmh.train", "mtmh.prepare"):
        assert role_of(runner, component, "--recipe", "demo", "--mounts", mounts).mounts == [
            VolumeMount(src="runs", dst_path="/work/runs"),
            BindMount(src_path="/data", dst_path="/data", read_only=True),
        ]


@pytest.mark.parametrize(
    ("name", "cpus", "gibibytes"), [("a100x8", 96, 1152), ("h100x8", 192, 2048), ("h200x8", 192, 2048)]
)
def test_a_gpu_host_leaves_room_for_its_system(name: str, cpus: int, gibibytes: int) -> None:
    host = named_resources[name]
    assert host.gpu == 8
    assert host.cpu == cpus - 8
    assert 0.85 < host.memMB / (gibibytes * 1024) <= 0.90


def test_the_papers_48_gpus(runner: Runner) -> None:
    role = role_of(runner, "mtmh.train", "-j", "6x8", "-h", "a100x8", "--recipe", "demo", "training.num_shards=48")
    words = words_of(role)
    assert role.num_replicas * int(words[words.index("--nproc_per_node") + 1]) == 48
    assert role.num_replicas * role.resource.gpu == 48
    assert role.env["OMP_NUM_THREADS"] == "11"
    assert role.env["NCCL_DEBUG"] == "WARN"
    assert role.env["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
    assert role.env["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert (role.env["TORCH_FR_BUFFER_SIZE"], role.env["TORCH_NCCL_DUMP_ON_TIMEOUT"]) == ("2000", "1")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-j", "1x9", "-h", "a100x8", "--recipe", "demo"], "9 processes on a host of 8 GPUs"),
        (["--recipe", "demo", "seed"], "expected KEY=VALUE after the options, got 'seed'"),
        (["--recipe", "demo", "seed=1", "-j", "1x4"], "got '-j'; options such as -j go before"),
        (["--recipe", "demo", "-j", "two"], "Invalid format for -j"),
    ],
)
def test_what_cannot_run_is_refused_at_submission(runner: Runner, args: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        role_of(runner, "mtmh.train", *args)


def test_slurm_script(runner: Runner) -> None:
    args = ["-j", "6x8", "-h", "a100x8", "--max_retries", "2", "--recipe", "demo", "training.num_shards=48"]
    cfg = {"partition": "gpu", "time": "2-00:00:00"}
    script = runner.dryrun_component("mtmh.train", args, "slurm", cfg, workspace="").request.materialize()
    header = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name=train-")]
    assert len(header) == 6
    for line in header:
        assert "--partition=gpu --time=2-00:00:00" in line
        assert "--cpus-per-task=88 --mem=1061683 --gpus-per-task=8" in line
    assert script.count("mtmh.cli train demo --set training.num_shards=48 --resume") == 6
    assert script.count("--nnodes 6 --nproc_per_node 8") == 6
    assert "${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500" in script
    assert "export TORCHX_MAX_RETRIES=2" in script
    for variable in ("OMP_NUM_THREADS=11", "OMP_WAIT_POLICY=passive", "NCCL_DEBUG=WARN", "PET_MAX_RESTARTS=2"):
        assert script.count(variable) == 6


@pytest.mark.parametrize("component", ALONE)
def test_slurm_script_of_one_process(runner: Runner, component: str) -> None:
    args = ["-h", "h100x8", "--recipe", "demo"]
    script = runner.dryrun_component(f"mtmh.{component}", args, "slurm", {}, workspace="").request.materialize()
    assert f"python -m mtmh.cli {ALONE[component]} demo" in script.replace("'", "")
    assert "--cpus-per-task=184 --mem=1887436 --gpus-per-task=8" in script
    assert f"OMP_NUM_THREADS={1 if component == 'serve' else 184}" in script
    assert "hetjob" not in script


@pytest.mark.parametrize("component", RANKS)
def test_kubernetes_manifest(runner: Runner, component: str) -> None:
    args = ["-j", "2x8", "-h", "h100x8", "--image", "registry/mtmh:1", "--max_retries", "2", "--mounts",
            "type=volume,src=runs,dst=/work/runs", "--recipe", "demo"]  # fmt: skip
    cfg = {"queue": "gpu", "namespace": "ml"}
    job = runner.dryrun_component(f"mtmh.{component}", args, "kubernetes", cfg, workspace="").request.resource
    assert job["spec"]["queue"] == "gpu"
    assert job["spec"]["maxRetry"] == 2
    assert len(job["spec"]["tasks"]) == 2
    name = RANKS[component].split()[-1].replace("-", "")
    for index, task in enumerate(job["spec"]["tasks"]):
        assert task["name"] == f"{name}-{index}"
        pod = task["template"].spec
        assert pod.node_selector == {"node.kubernetes.io/instance-type": "p5.48xlarge"}
        shared, mounted = pod.volumes
        # In memory without a size of its own: Kubernetes bounds it by the pod's memory limit, asked for below.
        assert (shared.name, shared.empty_dir.medium, shared.empty_dir.size_limit) == ("dshm", "Memory", None)
        assert mounted.persistent_volume_claim.claim_name == "runs"
        (container,) = pod.containers
        assert container.image == "registry/mtmh:1"
        assert {mount.mount_path for mount in container.volume_mounts} == {"/dev/shm", "/work/runs"}
        limits = container.resources.limits
        assert (limits["cpu"], limits["memory"]) == ("184000m", "1887436M")
        assert (limits["nvidia.com/gpu"], limits["vpc.amazonaws.com/efa"]) == ("8", "32")
        assert container.command[:2] == ["bash", "-c"]
        assert f"-m mtmh.cli {RANKS[component]} demo" in container.command[2]
        environment = {variable.name: variable.value for variable in container.env}
        assert environment["OMP_NUM_THREADS"] == "23"
        assert environment["NCCL_DEBUG"] == "WARN"
    check_schema(job)
    # Volcano writes the host of task NAME-0 to this variable of the other pods.
    host = f"${{VC_{name.upper()}_0_HOSTS:=localhost}}:29500"
    assert host in job["spec"]["tasks"][1]["template"].spec.containers[0].command[2]


@pytest.mark.parametrize("component", ALONE)
def test_kubernetes_manifest_of_one_process(runner: Runner, component: str) -> None:
    args = ["-h", "a100x8", "--image", "registry/mtmh:1", "--mounts", "type=bind,src=/data,dst=/data", "--env",
            "NCCL_SOCKET_IFNAME=eth0", "--recipe", "demo", "seed=2"]  # fmt: skip
    dry = runner.dryrun_component(f"mtmh.{component}", args, "kubernetes", {"queue": "q"}, workspace="")
    job = dry.request.resource
    check_schema(job)
    (task,) = job["spec"]["tasks"]
    assert task["template"].spec.node_selector == {"node.kubernetes.io/instance-type": "p4d.24xlarge"}


def test_a_wrong_manifest_is_noticed(runner: Runner) -> None:
    args = ["--image", "registry/mtmh:1", "--recipe", "demo"]
    job = runner.dryrun_component("mtmh.train", args, "kubernetes", {"queue": "q"}, workspace="").request.resource
    manifest = ApiClient().sanitize_for_serialization(job)
    manifest["spec"]["tasks"][0]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_schema(manifest)


def check_schema(job: Any) -> None:
    """Compares a manifest with the schemas of Volcano's Job and, strictly, of Kubernetes' Pod."""
    manifest = ApiClient().sanitize_for_serialization(job)
    jsonschema.validate(manifest, VOLCANO_JOB)
    for task in manifest["spec"]["tasks"]:
        pod = {"apiVersion": "v1", "kind": "Pod", **task["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


# Of Volcano's API batch.volcano.sh/v1alpha1: names and types of all fields that a job may have, its pods apart.
VOLCANO_POLICIES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "event": {"type": "string"},
            "events": {"type": "array", "items": {"type": "string"}},
            "action": {"type": "string"},
            "exitCode": {"type": "integer"},
            "timeout": {"type": "string"},
        },
        "additionalProperties": False,
    },
}
VOLCANO_JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "batch.volcano.sh/v1alpha1"},
        "kind": {"const": "Job"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}},
        },
        "spec": {
            "type": "object",
            "required": ["tasks"],
            "additionalProperties": False,
            "properties": {
                "schedulerName": {"type": "string"},
                "queue": {"type": "string"},
                "priorityClassName": {"type": "string"},
                "minAvailable": {"type": "integer"},
                "maxRetry": {"type": "integer"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "plugins": {
                    "type": "object",
                    "additionalProperties": {"type": "array", "items": {"type": "string"}},
                },
                "policies": VOLCANO_POLICIES,
                "tasks": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "replicas", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                            "replicas": {"type": "integer", "minimum": 0},
                            "minAvailable": {"type": "integer"},
                            "maxRetry": {"type": "integer"},
                            "policies": VOLCANO_POLICIES,
                            "template": {"type": "object", "required": ["metadata", "spec"]},
                        },
                    },
                },
            },
        },
    },
}


def test_a_job_on_this_machine_runs_and_a_wrong_one_fails(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "tiny.yaml").write_text(
        "{name: tiny, description: the smallest dataset, paths: {root: here},\n"
        "data: {source: synthetic, options: {num_users: 60, num_items: 80, num_events: 900, num_topics_l1: 2}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    jobs = {
        recipe: runner.run_component(
            "mtmh.prepare", ["--recipe", recipe], "local_cwd", {"log_dir": str(tmp_path / recipe[:4])}
        )
        for recipe in ("tiny.yaml", "nowhere")
    }
    states = {recipe: runner.wait(job, wait_interval=0.2) for recipe, job in jobs.items()}
    logs = {recipe: "".join(p.read_text() for p in (tmp_path / recipe[:4]).rglob("std*.log")) for recipe in jobs}
    assert states["tiny.yaml"].state is AppState.SUCCEEDED, logs["tiny.yaml"]
    assert (tmp_path / "here/dataset/manifest.json").exists()
    assert states["nowhere"].state is AppState.FAILED
    assert "error: no recipe nowhere" in logs["nowhere"]
