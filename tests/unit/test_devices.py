"""Devices by the names that drivers report."""

import pytest

from cpo_ds.devices import DEVICES, device_by_name, find_device
from cpo_ds.errors import UserError


@pytest.mark.parametrize(
    ("reported", "memory", "name"),
    [
        ("NVIDIA GB300", 277, "GB300"),
        ("NVIDIA GB200", 184, "GB200"),
        ("NVIDIA B300 SXM6 AC", 267, "B300"),
        ("NVIDIA B200", 178, "B200"),
        ("NVIDIA GH200 480GB", 95, "GH200-96GB"),
        ("NVIDIA GH200 144G HBM3e", 140, "GH200-144GB"),
        ("NVIDIA H200", 139, "H200"),
        ("NVIDIA H200 NVL", 139, "H200-NVL"),
        ("NVIDIA H100 PCIe", 79, "H100-PCIe"),
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA H100 NVL", 93, "H100-NVL"),
        ("NVIDIA A100-SXM4-80GB", 79, "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", 39, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 79, "A100-PCIe-80GB"),
        ("NVIDIA A100-PCIE-40GB", 39, "A100-PCIe-40GB"),
        ("A100-SXM4-40GB", 39, "A100-40GB"),
        ("NVIDIA L40S", 44, "L40S"),
        ("NVIDIA L40", 44, "L40"),
        ("NVIDIA L4", 22, "L4"),
        ("NVIDIA RTX 6000 Ada Generation", 47, "RTX-6000-Ada"),
        ("NVIDIA RTX A6000", 47, "RTX-A6000"),
        ("NVIDIA A40", 44, "A40"),
        ("NVIDIA A30", 23, "A30"),
        ("NVIDIA A10", 22, "A10"),
        ("NVIDIA A10G", 22, "A10G"),
        ("NVIDIA GeForce RTX 5090", 31, "RTX-5090"),
        ("NVIDIA GeForce RTX 4090", 23, "RTX-4090"),
        ("NVIDIA GeForce RTX 3090", 23, "RTX-3090"),
        ("Tesla T4", 14, "T4"),
        ("Tesla V100-SXM2-16GB", 15, "V100-16GB"),
        ("Tesla V100-SXM2-32GB", 31, "V100-32GB"),
        ("Tesla V100-PCIE-32GB", 31, "V100-PCIe-32GB"),
    ],
)
def test_devices_are_known_by_the_names_that_drivers_report(reported, memory, name):
    device = find_device(reported, memory)
    assert device is not None and device.name == name


@pytest.mark.parametrize(
    "reported",
    [
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA H800",
        "NVIDIA H20",
        "NVIDIA L20",
        "NVIDIA A10M",
        "NVIDIA A1000",
        "GRID A100-10C",
        "Quadro RTX 6000",
        "Tesla V100-FHHL-16GB",
        "AMD Instinct MI300X",
        "NVIDIA",
    ],
)
def test_a_variant_is_not_taken_for_the_device_whose_name_it_contains(reported):
    assert find_device(reported, 79) is None


def test_every_device_is_found_by_its_own_name_and_memory():
    for device in DEVICES.values():
        assert find_device(device.name, device.memory_gib) is device
        assert device_by_name(device.name.lower().replace("-", " ")) is device


def test_peaks_are_those_without_sparsity():
    peaks = {name: DEVICES[name].peak_bf16_tflops for name in ("H100-NVL", "H100", "L40", "L40S")}
    assert peaks == {"H100-NVL": 835, "H100": 989, "L40": 181, "L40S": 362}


def test_an_unknown_name_is_refused_with_the_known_ones():
    assert device_by_name("rtx 4090").name == "RTX-4090"
    with pytest.raises(UserError, match="A100-40GB"):
        device_by_name("A1000")
