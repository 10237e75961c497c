"""The addresses that webhooks may call: which are refused, in every notation, and why; and which are allowed."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.model.addresses import PUBLIC_ONLY, URL_MAX, WebhookPolicy, check_url, why_refused
from tweezer.model.errors import InvalidInput

REFUSED_ADDRESSES = [
    ("0.0.0.0", "unspecified"),  # noqa: S104  checked, not bound
    ("0.1.2.3", "this network"),
    ("10.0.0.1", "private"),
    ("10.255.255.255", "private"),
    ("100.64.0.1", "CGNAT"),
    ("100.127.255.254", "CGNAT"),
    ("100.100.100.200", "metadata"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("168.63.129.16", "metadata"),
    ("169.254.1.1", "link-local"),
    ("169.254.169.254", "metadata"),
    ("169.254.170.2", "metadata"),
    ("172.16.0.1", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.8", "reserved"),
    ("192.0.0.192", "metadata"),
    ("192.0.2.1", "documentation"),
    ("192.88.99.1", "6to4 relay"),
    ("192.168.1.1", "private"),
    ("198.18.0.1", "benchmarks"),
    ("198.19.255.255", "benchmarks"),
    ("198.51.100.7", "documentation"),
    ("203.0.113.7", "documentation"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::127.0.0.1", "IPv4-compatible"),
    ("::8.8.8.8", "IPv4-compatible"),
    ("::ffff:127.0.0.1", "IPv4-mapped"),
    ("::ffff:8.8.8.8", "IPv4-mapped"),
    ("::ffff:7f00:1", "of 127.0.0.1"),
    ("0:0:0:0:0:ffff:0a00:0001", "of 10.0.0.1"),
    ("::ffff:0:10.0.0.1", "IPv4-translated"),
    ("64:ff9b::10.0.0.1", "NAT64"),
    ("64:ff9b::8.8.8.8", "NAT64"),
    ("64:ff9b:1::a00:1", "local NAT64"),
    ("100::1", "discarded"),
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
    ("2001:2::1", "benchmarks"),
    ("2001:10::1", "reserved"),
    ("2001:db8::1", "documentation"),
    ("2002:7f00:1::", "of 127.0.0.1"),
    ("2002:a9fe:a9fe::1", "of 169.254.169.254"),
    ("2a00:1450:4001::5efe:10.0.0.1", "ISATAP"),
    ("3fff::1", "documentation"),
    ("4000::1", "reserved"),
    ("5f00::1", "reserved"),
    ("fc00::1", "unique local"),
    ("fd12:3456:789a::1", "unique local"),
    ("fd00:ec2::254", "metadata"),
    ("fd20:ce::254", "metadata"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "scope"),
    ("2606:4700::1%1", "scope"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("2130706433", "not a valid IP address"),
    ("0x7f000001", "not a valid IP address"),
    ("0177.0.0.1", "not a valid IP address"),
    ("127.1", "not a valid IP address"),
    ("", "not a valid IP address"),
    ("1.2.3.4 ", "not a valid IP address"),
]

FINE_ADDRESSES = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "198.20.0.1",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
    "2001:4860:4860::8888",
]


@pytest.mark.parametrize(("address", "reason"), REFUSED_ADDRESSES)
def test_an_address_that_is_not_public_is_refused_with_its_reason(address: str, reason: str) -> None:
    assert reason in (why_refused(address) or "")


@pytest.mark.parametrize("address", FINE_ADDRESSES)
def test_a_public_address_is_allowed(address: str) -> None:
    assert why_refused(address) is None


@given(st.ip_addresses())
def test_only_addresses_that_python_calls_global_are_allowed(address: ipaddress.IPv4Address) -> None:
    if why_refused(str(address)) is None:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_ipv4_addresses_embedded_in_ipv6_are_not_allowed(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    carriers = (number, 0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80)
    for carrier in carriers:
        assert why_refused(str(ipaddress.IPv6Address(carrier))) is not None


REFUSED_URLS = [
    ("http://hooks.example.org/", "plain http"),
    ("ftp://hooks.example.org/", "complete URL"),
    ("file:///etc/passwd", "complete URL"),
    ("gopher://hooks.example.org/", "complete URL"),
    ("//hooks.example.org/", "complete URL"),
    ("hooks.example.org/", "complete URL"),
    ("https:hooks.example.org", "complete URL"),
    ("https:/hooks.example.org", "complete URL"),
    ("", "complete URL"),
    ("https://", "valid host name"),
    ("https:///path", "valid host name"),
    ("https://:443/", "valid host name"),
    ("https://?x=1", "valid host name"),
    ("https://user@hooks.example.org/", "user name"),
    ("https://user:password@hooks.example.org/", "user name"),
    ("https://hooks.example.org@10.0.0.1/", "user name"),
    ("https://@hooks.example.org/", "user name"),
    ("https://hooks.example.org:22/", "port 22"),
    ("https://hooks.example.org:6379/", "port 6379"),
    ("https://hooks.example.org:80/", "port 80"),
    ("https://hooks.example.org:/", "not a number from 1 to 65535"),
    ("https://hooks.example.org:0/", "not a number from 1 to 65535"),
    ("https://hooks.example.org:65536/", "not a number from 1 to 65535"),
    ("https://hooks.example.org:0443x/", "not a number from 1 to 65535"),
    ("https://hooks.example.org:-443/", "not a number from 1 to 65535"),
    ("https://hooks.example.org:４４３/", "ASCII"),
    ("https://hooks.example.org/#x", "fragment"),
    ("https://hooks.example.org#@10.0.0.1/", "fragment"),
    ("https://127.0.0.1/", "loopback"),
    ("https://127.1/", "number as its host"),
    ("https://127.0.1/", "number as its host"),
    ("https://2130706433/", "number as its host"),
    ("https://017700000001/", "number as its host"),
    ("https://0x7f000001/", "number as its host"),
    ("https://0x7f.1/", "number as its host"),
    ("https://0X7F.0.0.0x1/", "number as its host"),
    ("https://0177.0.0.1/", "number as its host"),
    ("https://127.0.0.01/", "number as its host"),
    ("https://127.0.0.1./", "ends in a dot"),
    ("https://127.0.0.0x/", "number as its host"),
    ("https://256.1.1.1/", "number as its host"),
    ("https://1.2.3.4.5/", "number as its host"),
    ("https://0/", "number as its host"),
    ("https://10.0.0.1/", "private"),
    ("https://169.254.169.254/latest/meta-data", "metadata"),
    ("https://127。0。0。1/", "ASCII"),
    ("https://１２７.0.0.1/", "ASCII"),
    ("https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "ASCII"),
    ("https://hooks.müller.example/", "ASCII"),
    ("https://%31%32%37.0.0.1/", "% in its host"),
    ("https://hooks.example.org%2f@10.0.0.1/", "user name"),
    ("https://hooks.example.org%00.evil/", "% in its host"),
    ("https://[::1]/", "loopback"),
    ("https://[::]/", "unspecified"),
    ("https://[::ffff:10.0.0.1]/", "IPv4-mapped"),
    ("https://[::FFFF:7F00:1]/", "of 127.0.0.1"),
    ("https://[0000:0000:0000:0000:0000:0000:0000:0001]/", "loopback"),
    ("https://[fe80::1%25eth0]/", "% in its host"),
    ("https://[fe80::1]/", "link-local"),
    ("https://[fd00:ec2::254]/", "metadata"),
    ("https://[64:ff9b::a9fe:a9fe]/", "NAT64"),
    ("https://[::1/", "brackets"),
    ("https://[::1]x/", "brackets"),
    ("https://[]/", "does not have a valid IPv6 address"),
    ("https://[v1.x]/", "does not have a valid IPv6 address"),
    ("https://[127.0.0.1]/", "does not have a valid IPv6 address"),
    ("https://::1/", "valid host name"),
    ("https://2606:4700::1111/", "number as its host"),
    ("https://localhost/", "the local machine"),
    ("https://LOCALHOST/", "the local machine"),
    ("https://localhost./", "ends in a dot"),
    ("https://hooks.localhost/", "the local machine"),
    ("https://localhost.localdomain/", "the local machine"),
    ("https://hooks.example.org./", "ends in a dot"),
    ("https://hooks..example.org/", "valid host name"),
    ("https://.example.org/", "valid host name"),
    ("https://-hooks.example.org/", "valid host name"),
    ("https://hooks-.example.org/", "valid host name"),
    ("https://ho*oks.example.org/", "valid host name"),
    ("https://hooks.example.org;10.0.0.1/", "number as its host"),
    ("https://hooks.example.org&x/", "valid host name"),
    (f"https://{'a' * 64}.example.org/", "valid host name"),
    (f"https://{'a.' * 127}example/", "valid host name"),
    (f"https://hooks.example.org/{'a' * URL_MAX}", "characters"),
    ("https://hooks.example.org\\@10.0.0.1/", "backslashes"),
    ("https:\\\\hooks.example.org/", "backslashes"),
    ("https://hooks.example.org/ x", "spaces"),
    (" https://hooks.example.org/", "spaces"),
    ("https://hooks.example.org/\r\nX-Header: x", "spaces"),
    ("https://hooks.example.org/\n", "spaces"),
    ("https://hooks.exam\tple.org/", "spaces"),
    ("https://hooks.example.org/\x00", "control"),
    ("https://hooks.exam\u00adple.org/", "control"),
    ("https://hooks.example\u200b.org/", "control"),
    ("https://hooks.example.org/\u2028", "spaces"),
]

FINE_URLS = [
    ("https://hooks.example.org", "hooks.example.org", 443),
    ("https://hooks.example.org/", "hooks.example.org", 443),
    ("HTTPS://HOOKS.Example.org/Path", "hooks.example.org", 443),
    ("https://hooks.example.org:443/", "hooks.example.org", 443),
    ("https://hooks.example.org:8443/a/b?token=%2Fx#".rstrip("#"), "hooks.example.org", 8443),
    ("https://hooks.example.org?token=@x:80/", "hooks.example.org", 443),
    ("https://xn--mller-kva.example/", "xn--mller-kva.example", 443),
    ("https://my_service.example/", "my_service.example", 443),
    ("https://hooks/", "hooks", 443),
    ("https://1and1.example.com/", "1and1.example.com", 443),
    ("https://8.8.8.8/", "8.8.8.8", 443),
    ("https://[2606:4700:4700::1111]:8443/", "2606:4700:4700::1111", 8443),
    ("https://hooks.example.org/ümlaut?ö=1", "hooks.example.org", 443),
    ("https://hooks.example.org//double//../slashes", "hooks.example.org", 443),
]


@pytest.mark.parametrize(("url", "reason"), REFUSED_URLS)
def test_an_ambiguous_or_misleading_url_is_refused(url: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_url(url, PUBLIC_ONLY, "url")
    assert caught.value.field == "url"
    assert reason in caught.value.problem


@pytest.mark.parametrize(("url", "host", "port"), FINE_URLS)
def test_a_url_to_a_public_host_is_allowed(url: str, host: str, port: int) -> None:
    target = check_url(url, PUBLIC_ONLY)
    assert (target.host, target.port, target.trusted) == (host, port, False)


@given(st.text(max_size=60), st.sampled_from(["", "https://", "http://", "https://[", "https://hooks.example.org"]))
def test_any_value_is_accepted_or_raises_invalid_input(text: str, before: str) -> None:
    try:
        target = check_url(before + text, PUBLIC_ONLY)
    except InvalidInput as error:
        assert error.field == "webhook"
    else:
        assert target.host.isascii()


def test_an_error_does_not_quote_the_secret_in_a_url() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_url("http://hooks.example.org/T0P/path?token=T0P", PUBLIC_ONLY)
    assert "T0P" not in caught.value.message
    assert "TWEEZER_WEBHOOK_ALLOW" in caught.value.message


LAB = WebhookPolicy.parse("10.1.0.0/16, 192.168.7.7, fd00:1::/64 ,Hooks.Lab,*.cluster.lab,64:ff9b::/96", "443")


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("http://10.1.2.3:9000/", False),
        ("https://10.1.2.3/", False),
        ("http://192.168.7.7/", False),
        ("http://[fd00:1::5]:81/", False),
        ("http://hooks.lab/", True),
        ("http://HOOKS.LAB:1234/", True),
        ("http://a.cluster.lab:80/", True),
        ("https://a.b.cluster.lab:80/", True),
    ],
)
def test_addresses_that_the_operator_allows_may_use_http_and_any_port(url: str, trusted: bool) -> None:
    assert check_url(url, LAB).trusted is trusted


@pytest.mark.parametrize(
    "url",
    [
        "https://10.2.0.1/",
        "https://192.168.7.8/",
        "http://cluster.lab/",
        "http://acluster.lab/",
        "http://a.hooks.lab/",
        "http://hooks.lab.example.org/",
        "https://hooks.example.org:8443/",
        "https://[::ffff:10.1.2.3]/",
        "https://0x0a010203/",
    ],
)
def test_addresses_outside_the_allowed_ones_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url, LAB)


def test_a_name_of_this_machine_can_be_allowed() -> None:
    assert check_url("http://localhost:8000/", WebhookPolicy.parse("localhost", "443")).trusted


def test_an_allowed_network_that_translates_leads_to_public_addresses_only() -> None:
    assert why_refused("64:ff9b::8.8.8.8", LAB) is None
    assert why_refused("64:ff9b::10.1.2.3", LAB) is None
    assert why_refused("64:ff9b::10.2.0.1", LAB) == "leads to 10.2.0.1, which is private"


@pytest.mark.parametrize(
    ("allow", "problem"),
    [
        ("10.1.2.3/16", "write 10.1.0.0/16"),
        ("10.1.2/24", "10.1.2/24 is not a network"),
        ("10.1", "10.1 is not a network"),
        ("*", "0.0.0.0/0 and ::/0 allow everything"),
        ("a.*.lab", "a.*.lab is not a network"),
        ("https://hooks.lab", "is not a network"),
        ("hooks.lab:80", "is not a network"),
        ("[fd00::1]", "is not a network"),
    ],
)
def test_an_invalid_entry_of_the_allow_list_is_named(allow: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match="webhook_allow") as caught:
        WebhookPolicy.parse(f"hooks.lab,{allow}", "443")
    assert problem in caught.value.problem


@pytest.mark.parametrize("ports", ["0", "65536", "https", "443-445", "４４３"])
def test_an_invalid_port_is_named(ports: str) -> None:
    with pytest.raises(InvalidInput, match="webhook_ports"):
        WebhookPolicy.parse("", ports)


def test_by_default_public_addresses_on_the_usual_ports_are_allowed() -> None:
    assert WebhookPolicy.parse("", "443,8443") == PUBLIC_ONLY
