"""Whether this machine can be the one the others of a run connect to. Names are not looked up: that can take long."""

from __future__ import annotations

import errno
import ipaddress
import socket

import psutil

from studio.config import RunConfig
from studio.estimate import Advice

ADDRESS = "parallel.main_process_ip"
PORT = "parallel.main_process_port"


def own_addresses() -> list[str]:
    """The addresses of this machine that others may reach, IPv4 first."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = [one for card in psutil.net_if_addrs().values() for one in card if one.family in families]
    plain = sorted((one.address for one in found if "%" not in one.address), key=lambda text: (":" in text, text))
    return [text for text in plain if not ipaddress.ip_address(text).is_loopback]


def about_network(config: RunConfig) -> list[Advice]:
    """What stands against this machine as machine 0 of a run on several."""
    section = config.parallel
    if section.num_machines == 1 or section.machine_rank or not section.main_process_ip:
        return []
    address, port = section.main_process_ip, section.port
    try:
        known = ipaddress.ip_address(address)
    except ValueError:  # a name
        return []
    try:
        with socket.socket(socket.AF_INET6 if known.version == 6 else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as problem:
        if problem.errno == errno.EADDRNOTAVAIL:
            there = ", ".join(own_addresses()[:6]) or "none but itself"
            message = f"{address} is no address of this machine, which is machine 0; it has {there}"
            return [Advice("error", ADDRESS, message, "give one of these, or give this machine another number")]
        if problem.errno == errno.EADDRINUSE:
            message = f"port {port} is in use on this machine now"
            return [Advice("warning", PORT, message, "choose another port, the same on all machines, or wait")]
    return []
