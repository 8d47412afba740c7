"""Network cards of a guest, in pairs: what one of a pair sends, the other receives.

Only guests have them, and say so by :data:`GUEST`: no test takes a card of the machine it runs on.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from packet_tracer.lab import Lab
from packet_tracer.lab.commands import ip, wait_for_carrier

#: What QEMU calls the card that a driver is for. Debian's cloud kernels have the first two.
CARDS = {"virtio_net": "virtio-net-pci", "vmxnet3": "vmxnet3", "e1000e": "e1000e"}
#: Set where these cards are.
GUEST = "MATRIX_CARDS"


def address(driver: str, end: int) -> str:
    """Return the Ethernet address of one of a driver's cards; ``end`` is 1 or 2."""
    return f"02:00:00:00:c{list(CARDS).index(driver)}:0{end}"


def arguments() -> list[str]:
    """Return what QEMU is told to give a guest all pairs."""
    words = []
    for wire, (driver, model) in enumerate(CARDS.items()):
        for end in (1, 2):
            name = f"{driver}{end}"
            words += ["-netdev", f"hubport,id={name},hubid={wire}"]
            # Without the ROM to boot from a network, which takes time.
            words += ["-device", f"{model},netdev={name},mac={address(driver, end)},romfile="]
    return words


@contextmanager
def plugged(network: Lab) -> Iterator[list[str]]:
    """Give the lab's client and server one card each of every driver that this kernel has, and yield those.

    A card's name is its driver's; see :func:`addresses`. Nothing happens where there are no cards.
    """
    with ExitStack() as stack:
        found = []
        for driver in CARDS if os.environ.get(GUEST) else ():
            if subprocess.run(["modprobe", driver], capture_output=True, check=False).returncode:
                continue
            found.append(driver)
            for end, node in enumerate((network.client, network.server), 1):
                ip([f"link set {_device(address(driver, end))} netns {node.name} name {driver}"])
                stack.callback(ip, [f"link set {driver} netns 1 name {driver}{end}"], node.netns)
            for end, node in enumerate((network.client, network.server), 1):
                commands = [f"link set {driver} up"]
                for mine, other in zip(addresses(driver, end), addresses(driver, 3 - end), strict=True):
                    nodad = " nodad" if ":" in mine else ""
                    commands.append(f"address add {mine}/{64 if nodad else 24} dev {driver}{nodad}")
                    there = f"lladdr {address(driver, 3 - end)} dev {driver} nud permanent"
                    commands.append(f"neighbour replace {other} {there}")
                ip(commands, node.netns)
                wait_for_carrier(node.netns, driver)
        yield found


def addresses(driver: str, end: int) -> tuple[str, str]:
    """Return the IPv4 and the IPv6 address of a card's interface."""
    wire = 100 + list(CARDS).index(driver)
    return f"10.{wire}.0.{end}", f"2001:db8:{wire}::{end}"


def _device(mac: str) -> str:
    return next(
        path.parent.name
        for path in Path("/sys/class/net").glob("*/address")
        if path.read_text().strip() == mac
    )
