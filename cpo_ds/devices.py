"""Known GPUs: memory, speed and links, from the vendors' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cpo_ds.errors import UserError


@dataclass(frozen=True)
class Device:
    """A kind of GPU, and the links by which such GPUs are usually connected.

    Bandwidths are in GB/s (1e9 bytes per second). Those of links are per GPU and in one direction.
    """

    name: str
    memory_gib: float  # available to a program, a little less than in the data sheet
    peak_bf16_tflops: float  # for dense matrix products in bfloat16, 1e12 FLOPs per second
    memory_bandwidth: float  # GB/s
    node_link: str  # between GPUs of a node
    node_bandwidth: float
    network: str  # between nodes, with one adapter for each GPU
    network_bandwidth: float
    has_bfloat16: bool = True  # else the peak is that of float16

    def knows_peak(self, dtype: str) -> bool:
        """Whether the peak holds for a precision: for 16 bits, if the device computes them."""
        return dtype == "float16" or (dtype == "bfloat16" and self.has_bfloat16)


_NVLINK_5 = ("NVLink 5", 900.0)
_NVLINK_4 = ("NVLink 4", 450.0)
_NVLINK_3 = ("NVLink 3", 300.0)
_NVLINK_2 = ("NVLink 2", 150.0)
_PCIE_5 = ("PCIe 5 x16", 64.0)
_PCIE_4 = ("PCIe 4 x16", 32.0)
_PCIE_3 = ("PCIe 3 x16", 16.0)
_HDR = ("InfiniBand HDR, 200 Gbit/s", 25.0)
_NDR = ("InfiniBand NDR, 400 Gbit/s", 50.0)
_ETHERNET = ("Ethernet, 100 Gbit/s for a node of 8", 1.5625)

# Cards are listed with PCIe even if bridges can join two or four of them by NVLink, since a node
# has more. Sizes of memory are in a name only if nothing else tells two devices apart.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        # Blackwell
        Device("GB300", 275.0, 2500.0, 8000.0, *_NVLINK_5, *_NDR),
        Device("GB200", 184.0, 2500.0, 8000.0, *_NVLINK_5, *_NDR),
        Device("B300", 267.0, 2250.0, 8000.0, *_NVLINK_5, *_NDR),
        Device("B200", 178.0, 2250.0, 8000.0, *_NVLINK_5, *_NDR),
        Device("B100", 178.0, 1750.0, 8000.0, *_NVLINK_5, *_NDR),
        Device("RTX-5090", 31.3, 209.5, 1792.0, *_PCIE_5, *_ETHERNET),
        # Hopper
        Device("GH200-96GB", 94.5, 989.0, 4000.0, *_NVLINK_4, *_NDR),
        Device("GH200-144GB", 139.0, 989.0, 4900.0, *_NVLINK_4, *_NDR),
        Device("H200", 139.0, 989.0, 4800.0, *_NVLINK_4, *_NDR),
        Device("H200-NVL", 139.0, 835.0, 4800.0, *_PCIE_5, *_NDR),
        Device("H100-PCIe", 79.0, 756.0, 2000.0, *_PCIE_5, *_HDR),
        Device("H100-NVL", 93.0, 835.0, 3900.0, *_PCIE_5, *_HDR),
        Device("H100", 79.0, 989.0, 3350.0, *_NVLINK_4, *_NDR),
        # Ada
        Device("L40S", 44.4, 362.0, 864.0, *_PCIE_4, *_HDR),
        Device("L40", 44.4, 181.0, 864.0, *_PCIE_4, *_HDR),
        Device("L4", 22.0, 121.0, 300.0, *_PCIE_4, *_ETHERNET),
        Device("RTX-6000-Ada", 47.4, 364.2, 960.0, *_PCIE_4, *_ETHERNET),
        Device("RTX-4090", 23.5, 165.0, 1008.0, *_PCIE_4, *_ETHERNET),
        # Ampere
        Device("A100-40GB", 39.4, 312.0, 1555.0, *_NVLINK_3, *_HDR),
        Device("A100-80GB", 79.0, 312.0, 2039.0, *_NVLINK_3, *_HDR),
        Device("A100-PCIe-40GB", 39.4, 312.0, 1555.0, *_PCIE_4, *_HDR),
        Device("A100-PCIe-80GB", 79.0, 312.0, 1935.0, *_PCIE_4, *_HDR),
        Device("A40", 44.4, 149.7, 696.0, *_PCIE_4, *_HDR),
        Device("A30", 23.5, 165.0, 933.0, *_PCIE_4, *_HDR),
        Device("A10", 22.0, 125.0, 600.0, *_PCIE_4, *_ETHERNET),
        Device("A10G", 22.0, 70.0, 600.0, *_PCIE_4, *_ETHERNET),
        Device("RTX-A6000", 47.4, 154.8, 768.0, *_PCIE_4, *_ETHERNET),
        Device("RTX-3090", 23.6, 71.0, 936.0, *_PCIE_4, *_ETHERNET),
        # Older ones, which have fast float16 only
        Device("T4", 14.6, 65.0, 320.0, *_PCIE_3, *_ETHERNET, has_bfloat16=False),
        Device("V100-16GB", 15.7, 125.0, 900.0, *_NVLINK_2, *_HDR, has_bfloat16=False),
        Device("V100-32GB", 31.7, 125.0, 900.0, *_NVLINK_2, *_HDR, has_bfloat16=False),
        Device("V100-PCIe-16GB", 15.7, 112.0, 900.0, *_PCIE_3, *_HDR, has_bfloat16=False),
        Device("V100-PCIe-32GB", 31.7, 112.0, 900.0, *_PCIE_3, *_HDR, has_bfloat16=False),
    )
}

# Words of a reported name that do not tell devices apart: of makers, families, sockets, cooling and
# memories.
_COMMON = re.compile(
    r"nvidia|tesla|geforce|generation|sxm\d?|ac|hbm\d?e?|\d+gb?", re.ASCII | re.IGNORECASE
)


def _plain(name: str) -> str:
    """A name without case and punctuation, for comparisons."""
    return "".join(character for character in name.lower() if character.isalnum())


def device_by_name(name: str) -> Device:
    """Finds a device by its name in `DEVICES`, in any case and punctuation.

    Raises `UserError` if there is none.
    """
    for device in DEVICES.values():
        if _plain(device.name) == _plain(name):
            return device
    variants = [known for known in DEVICES if _plain(known).startswith(_plain(name))]
    hint = f" alone (it may be {' or '.join(variants)})" if variants else ""
    raise UserError(
        f"there is no device {name}{hint}; known are {', '.join(DEVICES)}. "
        "For any other device, give --gpu-memory in GiB."
    )


def find_device(reported: str, memory_gib: float) -> Device | None:
    """Finds the device with the name that a driver reports, like "NVIDIA A100-SXM4-80GB".

    `memory_gib` decides between devices that differ only in memory. Returns None if the device is
    not known, which a variant of a known one is too: a laptop's GPU, or a part of a GPU (MIG).
    """
    words = _words(reported)
    return min(
        (device for device in DEVICES.values() if _words(device.name) == words),
        key=lambda device: abs(device.memory_gib - memory_gib),
        default=None,
    )


def _words(name: str) -> frozenset[str]:
    """The words that tell a device from others, memory left out: {"h100", "pcie"}."""
    words = name.lower().replace("-", " ").split()
    return frozenset(word for word in words if not _COMMON.fullmatch(word))
