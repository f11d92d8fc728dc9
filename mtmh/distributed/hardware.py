"""The machines that `mtmh plan` and training know: memory and bandwidth of a rank, for TorchRec's planner.

All figures are from data sheets, none is measured; a step reaches part of them. What CUDA reports as memory is a little
below the name plate of the GPUs, so it is rounded down here.

    GPU          memory and its bandwidth, NVLink: NVIDIA data sheets of A100 (40 and 80 GB SXM), H100 SXM, H200 SXM.
                 NVLink is stated for both directions together; half of it goes one way, as an all-to-all uses it.
    between      one network card a GPU, as in DGX A100 (ConnectX-6, 200 Gb/s) and DGX H100/H200 (ConnectX-7, 400 Gb/s);
                 p4d and p4de of Amazon EC2 have 400 Gb/s for all eight GPUs, p5 and p5e 3,200, as a DGX has
    host memory  DGX A100: 1 TB (40 GB GPUs) or 2 TB, 16 channels of DDR4-3200; DGX H100/H200: 2 TB, 16 of DDR5-4800
    PCIe         x16 one way: generation 4, 32 GB/s; generation 5, 64 GB/s
    products     float32 without tensor cores: NVIDIA data sheets, 19.5 TFLOP/s (A100) and 67 (H100, H200 SXM)
    cpu          an assumption: 512 GB, 8 channels of DDR4-3200, 25 Gb/s network, gloo at 4 GB/s inside a host,
                 2 TFLOP/s
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner import types as planner_types

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One kind of machine. Memory in GiB, bandwidth in GB/s and one direction.

    Attributes:
        kind: what computes.
        memory: of a GPU.
        memory_bandwidth: of a GPU.
        inside_host: from one rank to the others of its host.
        between_hosts: from one rank to other hosts.
        host_memory: of a host, shared by its ranks.
        host_bandwidth: of the memory of a host, shared by its ranks.
        host_link: from host memory to a GPU.
        tflops: float32 products, 10^12 a second, without tensor cores (PyTorch's default); of a GPU, or of a host.
    """

    kind: Literal["cuda", "cpu"]
    memory: int
    memory_bandwidth: float
    inside_host: float
    between_hosts: float
    host_memory: int
    host_bandwidth: float
    host_link: float
    tflops: float


DEVICES = {
    "a100-40gb": Device("cuda", 39, 1555.0, 300.0, 25.0, 1024, 409.6, 32.0, 19.5),
    "a100-80gb": Device("cuda", 79, 2039.0, 300.0, 25.0, 2048, 409.6, 32.0, 19.5),
    "p4d": Device("cuda", 39, 1555.0, 300.0, 6.25, 1152, 409.6, 32.0, 19.5),
    "p4de": Device("cuda", 79, 2039.0, 300.0, 6.25, 1152, 409.6, 32.0, 19.5),
    "h100-80gb": Device("cuda", 79, 3350.0, 450.0, 50.0, 2048, 614.4, 64.0, 67.0),
    "h200-141gb": Device("cuda", 139, 4800.0, 450.0, 50.0, 2048, 614.4, 64.0, 67.0),
    "cpu": Device("cpu", 0, 0.0, 4.0, 3.125, 512, 204.8, 0.0, 2.0),
}


@dataclass(frozen=True)
class Cluster:
    """Hosts of one kind, with the same number of ranks each.

    Attributes:
        device_name: key of `DEVICES`.
        num_hosts: 1 or more.
        ranks_per_host: GPUs, or processes where there are none.
    """

    device_name: str
    num_hosts: int
    ranks_per_host: int

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: an unknown device, or no host or rank.
        """
        if self.device_name not in DEVICES:
            raise ValueError(f"no device {self.device_name}: not one of {', '.join(DEVICES)}")
        if self.num_hosts < 1 or self.ranks_per_host < 1:
            raise ValueError(f"a cluster needs hosts and ranks, got {self.num_hosts} x {self.ranks_per_host}")

    @property
    def device(self) -> Device:
        """The machine's figures."""
        return DEVICES[self.device_name]

    @property
    def world_size(self) -> int:
        """Ranks of all hosts."""
        return self.num_hosts * self.ranks_per_host

    @property
    def rank_memory(self) -> int:
        """Bytes of the memory where a rank keeps its tables: of its GPU, or its part of the host's."""
        return self.device.memory * GIB if self.device.kind == "cuda" else self.rank_host_memory

    @property
    def rank_host_memory(self) -> int:
        """Bytes of host memory a rank."""
        return self.device.host_memory * GIB // self.ranks_per_host

    @property
    def rank_flops(self) -> float:
        """Float32 operations a second of a rank."""
        return self.device.tflops * 1e12 / (1 if self.device.kind == "cuda" else self.ranks_per_host)

    @property
    def rank_bandwidth(self) -> float:
        """Bytes a second of the memory where a rank computes."""
        if self.device.kind == "cuda":
            return self.device.memory_bandwidth * 1e9
        return self.device.host_bandwidth * 1e9 / self.ranks_per_host

    def topology(self) -> Topology:
        """The cluster for TorchRec's planner; no GPU and no process group is touched."""
        memory = self.device.memory * GIB
        return topology_of(self.device, self.world_size, self.ranks_per_host, memory, self.rank_host_memory)


def device_like(name: str, memory: int) -> Device:
    """The entry of `DEVICES` for a GPU, by the name and the bytes of memory that CUDA reports.

    The one with the nearest memory among those whose model (as in ``NVIDIA H100 80GB HBM3``) is in the name; A100
    where there is none: what matters to a plan is the ratio of its bandwidths.
    """
    known = {key: device for key, device in DEVICES.items() if device.kind == "cuda"}
    alike = {key: device for key, device in known.items() if key.split("-")[0].upper() in name.upper()}
    candidates = alike or {"a100-80gb": known["a100-80gb"]}
    return min(candidates.values(), key=lambda device: abs(device.memory * GIB - memory))


def topology_of(device: Device, world_size: int, ranks_per_host: int, memory: int, host_memory: int) -> Topology:
    """A machine for TorchRec's planner.

    Args:
        device: its bandwidths.
        world_size: all ranks.
        ranks_per_host: of them on a host.
        memory: bytes of a rank's GPU.
        host_memory: bytes of host memory a rank.
    """
    bandwidths = {
        "intra_host_bw": _bytes_per_ms(device.inside_host),
        "inter_host_bw": _bytes_per_ms(device.between_hosts),
        "ddr_mem_bw": _bytes_per_ms(device.host_bandwidth / ranks_per_host),
    }
    if device.kind == "cuda":
        bandwidths["hbm_mem_bw"] = _bytes_per_ms(device.memory_bandwidth)
        bandwidths["hbm_to_ddr_mem_bw"] = _bytes_per_ms(device.host_link)
    if hasattr(planner_types, "TopologyFactory"):
        return planner_types.TopologyFactory.create_topology(
            trainer_config=planner_types.TrainerConfig(world_size=world_size, local_world_size=ranks_per_host),
            hardware_config=planner_types.HardwareConfig(hbm_cap_bytes=memory, ddr_cap_bytes=host_memory, **bandwidths),
            kernel_config=planner_types.KernelConfig(
                compute_device=device.kind,
                use_hardware_based_bandwidth=True,  # otherwise the factory drops every bandwidth without a word
            ),
        )
    return Topology(  # TorchRec before the factory
        world_size=world_size,
        local_world_size=ranks_per_host,
        compute_device=device.kind,
        hbm_cap=memory,
        ddr_cap=host_memory,
        **bandwidths,
    )


def _bytes_per_ms(gigabytes_per_second: float) -> float:
    return gigabytes_per_second * 1e6
