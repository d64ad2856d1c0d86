"""A switch that passes frames on after a fixed time: a long cable between simulated hosts.

    python benchmarks/hosts/delay_line.py DELAY_MS PORT...

Not every kernel has tc's netem, so this program does its work. One process serves all ports. It
passes the kernel's large segments whole, about 20 frames for each megabyte, so its work is light.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3
_VNET_HEADER = 10  # bytes: how to cut and check a large segment; handed on as it is
_LARGEST = 1 << 17  # bytes of a frame


def run(delay: float, names: list[str]) -> None:
    """Passes frames on between network interfaces after `delay` seconds, without end."""
    ports = [_open(name) for name in names]
    port_of: dict[bytes, socket.socket] = {}  # by hardware address
    line: deque[tuple[float, socket.socket, bytes]] = deque()
    print("ready", flush=True)
    while True:
        wait = max(0.0, line[0][0] - time.monotonic()) if line else None
        for port in select.select(ports, [], [], wait)[0]:
            frame = port.recv(_LARGEST)
            address = frame[_VNET_HEADER:]
            port_of[address[6:12]] = port
            known = port_of.get(address[:6])
            due = time.monotonic() + delay
            for other in ports if known is None else [known]:
                if other is not port:
                    line.append((due, other, frame))
        while line and line[0][0] <= time.monotonic():
            _, port, frame = line.popleft()
            with contextlib.suppress(OSError):  # a cable that is out, a queue that is full
                port.send(frame)


def _open(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
    port.bind((name, 0))
    return port


if __name__ == "__main__":
    run(float(sys.argv[1]) / 1000, sys.argv[2:])
