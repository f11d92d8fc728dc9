"""Named hosts for ``torchx run -h NAME``: whole machines, less what the system on them needs.

CPU cores, memory, GPUs and network adapters are those of AWS EC2's instance types P4, P5 and P5e as AWS publishes them
("Amazon EC2 instance types: accelerated computing") and as TorchX lists them in ``torchx.specs.named_resources_aws``.
A job that asks for all of a host never starts, because daemons of the system and of the cluster hold a part: AWS
ParallelCluster lets Slurm give away 95 % of the memory by default, and Kubernetes' kubelet keeps cores and memory for
itself. So a host here offers 8 vCPU less and 90 % of the memory.

On Kubernetes a job goes only to hosts of the instance type named here. For another type (p4de, p5e, your own hosts)
register a function like these under ``torchx.named_resources`` in your package.
"""

from torchx.specs import Resource
from torchx.specs.named_resources_aws import EFA_DEVICE, K8S_ITYPE


def cpu_small() -> Resource:
    """A laptop or a small cloud host: 2 cores, 8 GB, no GPU."""
    return Resource(cpu=2, gpu=0, memMB=8_000)


def a100x8() -> Resource:
    """8 A100 of 40 GB: p4d.24xlarge, 96 vCPU, 1152 GiB. p4de.24xlarge is the same host with 80 GB a GPU."""
    return _host("p4d.24xlarge", vcpus=96, gibibytes=1152, network_adapters=4)


def h100x8() -> Resource:
    """8 H100 of 80 GB: p5.48xlarge, 192 vCPU, 2048 GiB."""
    return _host("p5.48xlarge", vcpus=192, gibibytes=2048, network_adapters=32)


def h200x8() -> Resource:
    """8 H200 of 141 GB: p5en.48xlarge, 192 vCPU, 2048 GiB. p5e.48xlarge has the same cores, memory and GPUs."""
    return _host("p5en.48xlarge", vcpus=192, gibibytes=2048, network_adapters=16)


def _host(instance_type: str, vcpus: int, gibibytes: int, network_adapters: int) -> Resource:
    """A host with 8 GPUs, less 8 vCPU and a tenth of the memory."""
    return Resource(
        cpu=vcpus - 8,
        gpu=8,
        # Slurm reads MB as MiB, Kubernetes as 10^6 bytes: MiB here is right for the one and 5 % low for the other.
        memMB=gibibytes * 1024 * 9 // 10,
        capabilities={K8S_ITYPE: instance_type},
        devices={EFA_DEVICE: network_adapters},
    )
