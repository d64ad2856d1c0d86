"""Finds the network interface by which the hosts of a run reach each other."""

from __future__ import annotations

import os
import socket

_VIRTUAL = ("docker", "br-", "virbr", "veth")  # bridges to containers and virtual machines
_ANY_PORT = 9  # no packet is sent to it


def choose_interface() -> None:
    """Points Gloo at the interface towards rank 0's host, unless `GLOO_SOCKET_IFNAME` is set.

    Gloo's own choice is the address of the host's name, which often is the loopback address.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = interface_towards(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface


def interface_towards(master_address: str) -> str | None:
    """The network interface by which this host and the other hosts of a run reach each other.

    It is the interface of the route to the master. On the master itself it is the interface of the
    master's address. If that is the loopback address (Debian's /etc/hosts gives the host's own name
    127.0.1.1), it is the first interface with an address that other hosts could reach. Returns None
    if there is no such interface, or if all ranks run on this host.
    """
    import psutil  # imported late, for `cpo-ds doctor` where packages are missing

    if master_address == "localhost" or _is_loopback(master_address):
        return None
    own_address = _address_towards(master_address)
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = [
        (name, entry.address.split("%")[0])  # an IPv6 address may end in %interface
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in families
    ]
    if own_address and not _is_loopback(own_address):
        return next((name for name, address in addresses if address == own_address), None)
    statistics = psutil.net_if_stats()
    reachable = [
        name
        for name, address in addresses
        if not _is_loopback(address) and not address.startswith("fe80")  # valid on one link only
        if statistics[name.partition(":")[0]].isup and not name.startswith(_VIRTUAL)
    ]
    return next(iter(reachable), None)


def _address_towards(address: str) -> str:
    """This host's own address on the route to `address`; "" if there is no route."""
    try:
        info = socket.getaddrinfo(address, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(info[0], socket.SOCK_DGRAM) as probe:
            probe.connect(info[4])  # for UDP this only asks the kernel for the route
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
