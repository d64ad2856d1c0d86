"""Known GPUs: memory, speed and links, from the vendors' data sheets."""

from __future__ import annotations

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


_HDR = ("InfiniBand HDR, 200 Gbit/s", 25.0)
_NDR = ("InfiniBand NDR, 400 Gbit/s", 50.0)
_ETHERNET = ("Ethernet, 100 Gbit/s for a node of 8", 1.5625)

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("B200", 178.0, 2250.0, 8000.0, "NVLink 5", 900.0, *_NDR),
        Device("H200", 139.0, 989.0, 4800.0, "NVLink 4", 450.0, *_NDR),
        Device("H100-PCIe", 79.0, 756.0, 2000.0, "PCIe 5 x16", 64.0, *_HDR),
        Device("H100", 79.0, 989.0, 3350.0, "NVLink 4", 450.0, *_NDR),
        Device("A100-40GB", 39.4, 312.0, 1555.0, "NVLink 3", 300.0, *_HDR),
        Device("A100-80GB", 79.0, 312.0, 2039.0, "NVLink 3", 300.0, *_HDR),
        Device("L40S", 44.4, 362.0, 864.0, "PCIe 4 x16", 32.0, *_HDR),
        Device("RTX-4090", 23.5, 165.0, 1008.0, "PCIe 4 x16", 32.0, *_ETHERNET),
    )
}


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
    raise UserError(
        f"there is no device {name}; known are {', '.join(DEVICES)}. "
        "For any other device, give --gpu-memory in GiB."
    )


def find_device(reported: str, memory_gib: float) -> Device | None:
    """Finds the device with the name that a driver reports, like "NVIDIA A100-SXM4-80GB".

    `memory_gib` decides between devices that differ only in memory. Returns None if the device is
    not known.
    """
    # Candidates are all devices whose words are in the name; the most words win, so that an
    # "H100 PCIe" is not taken for an "H100".
    text = _plain(reported)
    named = {
        device: _kind(device)
        for device in DEVICES.values()
        if all(_plain(word) in text for word in _kind(device))
    }
    most = max(map(len, named.values()), default=0)
    return min(
        (device for device, words in named.items() if len(words) == most),
        key=lambda device: abs(device.memory_gib - memory_gib),
        default=None,
    )


def _kind(device: Device) -> list[str]:
    """The words of a device's name without its memory: ["H100", "PCIe"]."""
    return [word for word in device.name.split("-") if not word.endswith("GB")]
