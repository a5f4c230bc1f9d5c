"""Addresses of clients as they are compared and counted."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

IPV6_NETWORK = 64
"""Whoever has an IPv6 address has all that share so many of its first bits."""


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """An address; IPv4 also for how a socket of both families shows it (`::ffff:192.0.2.1`). Raises `ValueError` for anything else."""
    parsed = ip_address(text)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


@lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """What stands for everybody who shares an address: itself, the network of an IPv6 address, or the text if it is no address."""
    try:
        parsed = parse_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(IPv6Address(int(parsed) >> (128 - IPV6_NETWORK) << (128 - IPV6_NETWORK)))
