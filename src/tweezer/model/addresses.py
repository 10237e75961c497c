"""Policy for webhook targets: which URLs and addresses a courier may connect to.

A courier runs inside its operator's network. A user who chooses a webhook URL must not reach internal hosts through
it (server-side request forgery), so addresses that are not public are refused. Nothing here uses the network: once a
name is resolved, :func:`why_refused` checks its addresses.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

import msgspec

from tweezer.model.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_MAX = 2048

_NAME_MAX = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?]*)(?:[/?].*)?", re.ASCII | re.IGNORECASE)
_USUAL_PORT = {"https": 443, "http": 80}
_ALLOW = "an operator can allow it with TWEEZER_WEBHOOK_ALLOW"

# IANA's registries of special-purpose addresses, and the metadata services of cloud providers.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),
    )
)
_SPECIAL: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        ("0.0.0.0/32", "unspecified"),
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a provider's customers (CGNAT)"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("100::/64", "discarded"),
        ("2001:2::/48", "for benchmarks"),
        ("2001:db8::/32", "for documentation"),
        ("2001::/23", "reserved"),
        ("3fff::/20", "for documentation"),
        ("fc00::/7", "unique local (private)"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local (private)"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only part of IPv6 that is assigned to the public

_TEREDO = "a Teredo address"
# IPv6 addresses that embed an IPv4 address: the network, its name, and how many bits to the right of that address.
_CARRIERS: Final[tuple[tuple[ipaddress.IPv6Network, str, int], ...]] = tuple(
    (ipaddress.IPv6Network(network), name, shift)
    for network, name, shift in (
        ("::ffff:0:0/96", "an IPv4-mapped address", 0),
        ("::ffff:0:0:0/96", "an IPv4-translated address", 0),
        ("64:ff9b::/96", "a NAT64 address", 0),
        ("64:ff9b:1::/48", "a local NAT64 address", 0),
        ("2002::/16", "a 6to4 address", 80),
        ("2001::/32", _TEREDO, 0),
        ("::/96", "an IPv4-compatible address", 0),
    )
)
_ISATAP = (0x00005EFE, 0x02005EFE)  # the third 32-bit word of an ISATAP address, in any network


class WebhookPolicy(msgspec.Struct, frozen=True):
    """The webhook targets that an operator allows.

    Attributes:
        networks: Networks whose addresses are allowed although they are not public.
        names: Allowed host names, in lower case; ``*.lab`` allows all names below ``lab``. The addresses that they
            resolve to are not checked. Plain http and any port are allowed for these names and networks.
        ports: The ports that are allowed for all other targets.
    """

    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset({443, 8443})

    @classmethod
    def parse(cls, allow: str, ports: str) -> WebhookPolicy:
        """Parse the two comma-separated settings. Raises InvalidInput("webhook_allow" or "webhook_ports", …)."""
        networks: list[Network] = []
        names: set[str] = set()
        for entry in _entries(allow):
            network = _network(entry)
            if network is not None:
                networks.append(network)
            else:
                names.add(_allowed_name(entry))
        numbers = (_port("webhook_ports", it, f"{it} is not a port number (1 to 65535)") for it in _entries(ports))
        return cls(tuple(networks), frozenset(names), frozenset(numbers))

    def trusts_name(self, host: str) -> bool:
        """Return whether the operator allows this host name or a domain above it."""
        if not self.names:
            return False
        name = host.lower().removesuffix(".")
        if name in self.names:
            return True
        labels = name.split(".")
        return any("*." + ".".join(labels[start:]) in self.names for start in range(1, len(labels)))

    def trusts_address(self, address: Address) -> bool:
        """Return whether the address is in an allowed network."""
        return any(address in network for network in self.networks)


class Target(msgspec.Struct, frozen=True):
    """The host and port of a URL. If ``trusted``, the operator allows the host by name: do not check its addresses."""

    host: str
    port: int
    trusted: bool


PUBLIC_ONLY = WebhookPolicy()


def why_refused(address: str, policy: WebhookPolicy = PUBLIC_ONLY) -> str | None:
    """Return why connections to an IP address are refused, as a predicate ("is private"); None if they are allowed.

    An IPv4 address that is embedded in an IPv6 address is checked as well: through an allowed NAT64 network only
    public IPv4 addresses are reachable.
    """
    if "%" in address:
        return "has a scope id, which refers to a local network of this machine"
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "is not a valid IP address"
    trusted = policy.trusts_address(parsed)
    carried = _carried(parsed)
    if carried is not None:
        name, inner = carried
        if not trusted:
            return f"is {name} of {inner}"
        reason = why_refused(str(inner), policy)
        return None if reason is None else f"leads to {inner}, which {reason}"
    return None if trusted else _why_special(parsed)


def check_url(url: str, policy: WebhookPolicy, field: str = "webhook") -> Target:
    """Return the host and port of a URL that webhooks may be sent to. Raises InvalidInput(field, …).

    Only one notation of addresses is accepted, and only ASCII host names: a URL that two programs could read
    differently is refused. Messages never quote the URL, because its path and query may contain a secret.
    """
    if len(url) > URL_MAX:
        raise InvalidInput(field, f"must be at most {URL_MAX} characters (got {len(url)})")
    if any(it == "\\" or it.isspace() or unicodedata.category(it) in ("Cc", "Cf", "Cs") for it in url):
        raise InvalidInput(field, "must not contain spaces, backslashes or control characters")
    if "#" in url:
        raise InvalidInput(field, "must not contain a fragment (#…): it is never sent")
    match = _URL.fullmatch(url)
    scheme = "" if match is None else match[1].lower()
    if match is None or scheme not in _USUAL_PORT:
        raise InvalidInput(field, "is not a complete URL; expected https://host/path")
    host, literal, port = _authority(field, match[2])
    trusted = policy.trusts_name(host)
    if literal is not None:
        _check_address(field, literal, policy)
    elif not trusted and (host == "localhost" or host.endswith((".localhost", ".localdomain"))):
        raise InvalidInput(field, f"must not point to {host}, which is the local machine; {_ALLOW}")
    free = trusted or (literal is not None and policy.trusts_address(literal))
    if scheme != "https" and not free:
        raise InvalidInput(
            field, f"must use https://; an operator can allow plain http for {host} with TWEEZER_WEBHOOK_ALLOW"
        )
    port = _USUAL_PORT[scheme] if port is None else port
    if port not in policy.ports and not free:
        usual = ", ".join(map(str, sorted(policy.ports)))
        raise InvalidInput(field, f"port {port} is not allowed; use {usual} (see TWEEZER_WEBHOOK_PORTS)")
    return Target(host, port, trusted)


def _authority(field: str, authority: str) -> tuple[str, Address | None, int | None]:
    """Return the host in lower case, its address if it is a literal one, and the port if there is one."""
    if "@" in authority:
        raise InvalidInput(field, "must not contain a user name or password; deliveries are signed instead")
    if "%" in authority:
        raise InvalidInput(field, "has a % in its host; write the name unescaped, and an address without a scope id")
    if not authority.isascii():
        raise InvalidInput(field, "has a host that is not ASCII; write its name in punycode (xn--…)")
    literal: Address | None = None
    if authority.startswith("["):
        host, bracket, rest = authority[1:].lower().partition("]")
        try:
            literal = ipaddress.IPv6Address(host)
        except ValueError:
            raise InvalidInput(field, "does not have a valid IPv6 address between its brackets") from None
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidInput(field, "has an IPv6 address whose brackets are not closed, or text after the brackets")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = authority.lower().partition(":")
        literal = _check_host(field, host)
    problem = "has a port that is not a number from 1 to 65535"
    return host, literal, _port(field, port, problem) if colon else None


def _check_host(field: str, host: str) -> Address | None:
    """Return the IPv4 address if the host is one, or None for a name."""
    labels = host.split(".")
    if host.endswith("."):
        raise InvalidInput(field, "has a host that ends in a dot; remove the dot")
    if _NUMBER.fullmatch(labels[-1]):  # browsers and resolvers read it as an address, in one of many notations
        try:
            return ipaddress.IPv4Address(host)
        except ValueError:
            raise InvalidInput(
                field, "has a number as its host; write an address as four decimal numbers, such as 198.51.100.7"
            ) from None
    if not host or not _is_name(host):
        raise InvalidInput(field, "does not have a valid host name (letters, digits and dashes, separated by dots)")
    return None


def _check_address(field: str, literal: Address, policy: WebhookPolicy) -> None:
    reason = why_refused(str(literal), policy)
    if reason is not None:
        raise InvalidInput(field, f"must not point to {literal}, which {reason}; {_ALLOW}")


def _port(field: str, text: str, problem: str) -> int:
    port = int(text) if _PORT.fullmatch(text) else 0
    if not 1 <= port <= 65_535:
        raise InvalidInput(field, problem)
    return port


def _why_special(address: Address) -> str | None:
    if address in _METADATA:
        return "is a cloud provider's metadata service, which hands out credentials"
    for network, what in _SPECIAL:
        if address in network:
            return f"is {what}"
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return "is reserved"
    return None


def _carried(address: Address) -> tuple[str, ipaddress.IPv4Address] | None:
    """Return the kind of an IPv6 address that embeds an IPv4 address, and the latter; None for other addresses."""
    if isinstance(address, ipaddress.IPv4Address) or int(address) < 2:  # :: and ::1 are in _SPECIAL
        return None
    number = int(address)
    for network, name, shift in _CARRIERS:
        if address in network:
            inner = number >> shift & 0xFFFFFFFF
            return name, ipaddress.IPv4Address(inner ^ 0xFFFFFFFF if name is _TEREDO else inner)
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        return "an ISATAP address", ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return None


def _entries(text: str) -> Iterator[str]:
    return (entry.strip() for entry in text.split(",") if entry.strip())


def _network(entry: str) -> Network | None:
    """Parse a network or address; return None for a name."""
    try:
        return ipaddress.ip_network(entry)
    except ValueError:
        pass
    try:
        near = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
    raise InvalidInput("webhook_allow", f"{entry} has host bits set; write {near}")


def _allowed_name(entry: str) -> str:
    name = entry.lower().removesuffix(".")
    bare = name.removeprefix("*.")
    if not _is_name(bare) or _NUMBER.fullmatch(bare.rpartition(".")[2]):
        raise InvalidInput(
            "webhook_allow",
            f"{entry} is not a network (10.1.0.0/16), an address or a name (hooks.lab, *.lab); "
            "0.0.0.0/0 and ::/0 allow everything",
        )
    return name


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _NAME_MAX and all(_LABEL.fullmatch(label) for label in text.split("."))
