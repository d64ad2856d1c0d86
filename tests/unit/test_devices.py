"""Devices by the names that drivers report."""

import pytest

from cpo_ds.devices import device_by_name, find_device
from cpo_ds.errors import UserError


@pytest.mark.parametrize(
    ("reported", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 79, "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", 39, "A100-40GB"),
        ("NVIDIA H100 PCIe", 79, "H100-PCIe"),
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA GeForce RTX 4090", 23, "RTX-4090"),
        ("NVIDIA L40S", 44, "L40S"),
    ],
)
def test_devices_are_known_by_what_drivers_report(reported, memory, name):
    device = find_device(reported, memory)
    assert device is not None and device.name == name


def test_unknown_devices_are_said_to_be():
    assert find_device("Tesla T4", 15) is None
    assert device_by_name("rtx 4090").name == "RTX-4090"
    with pytest.raises(UserError, match="A100-40GB"):
        device_by_name("A1000")
