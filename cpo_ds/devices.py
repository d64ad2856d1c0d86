"""Known devices: memory, speed and links, as the vendors' data sheets give them."""

from __future__ import annotations

from dataclasses import dataclass

from cpo_ds.errors import UserError


@dataclass(frozen=True)
class Device:
    """One GPU of a kind, and how such GPUs are usually connected.

    Bandwidths are in GB/s (1e9 bytes); those of links are per GPU and in one direction.
    """

    name: str
    memory_gib: float  # what a program sees, a little less than the data sheet's
    peak_bf16_tflops: float  # dense matrix products, bfloat16
    memory_bandwidth: float
    node_link: str  # inside a node
    node_bandwidth: float
    network: str  # between nodes, one adapter for each GPU
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
    return "".join(character for character in name.lower() if character.isalnum())


def device_by_name(name: str) -> Device:
    """A device by its name here, in any case and punctuation. Raises `UserError`."""
    for device in DEVICES.values():
        if _plain(device.name) == _plain(name):
            return device
    raise UserError(
        f"there is no device {name}; known are {', '.join(DEVICES)}. "
        "For another, give --gpu-memory in GiB."
    )


def find_device(reported: str, memory_gib: float) -> Device | None:
    """The device that a driver reports as "NVIDIA A100-SXM4-80GB", say; None if not known.

    Of kinds that differ in memory alone, the one nearest to `memory_gib`.
    """
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
    """The words of a device's name but its memory: ["H100", "PCIe"]."""
    return [word for word in device.name.split("-") if not word.endswith("GB")]
