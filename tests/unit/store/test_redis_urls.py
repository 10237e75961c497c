"""URLs of Redis: ambiguous ones are refused, with the reason and without the password."""

from __future__ import annotations

import pytest

import tweezer
from tweezer.model.errors import InvalidInput
from tweezer.store.connection import check_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost/",
        "redis://:p%40ss@localhost:6380/3",
        "redis://user:pass@[::1]:6379/0",
        "redis:///2",
        "redis://localhost?db=4",
        "rediss://lab/0?ssl_cert_reqs=none&ssl_check_hostname=false&ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock",
        "unix://:pass@/run/redis.sock?db=1",
        "redis+sentinel://a:26379,b:26379/tweezer/0",
    ],
)
def test_unambiguous_urls_are_accepted(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:hunter2@localhost/x", "the database must be a number, as in redis://127.0.0.1:6379/0 (got 'x')"),
        ("redis://:hunter2@localhost/0/1", "(got '0/1')"),
        ("redis://:hunter2@localhost/-1", "(got '-1')"),
        ("redis://:hunter2@localhost/¹", "must be a number"),
        ("redis://:hunter2@localhost/0?foo=1", "an unknown option 'foo'; the options are db"),
        ("redis://:hunter2@localhost/0?decode_responses=1", "option 'decode_responses'"),
        ("redis://:hunter2@localhost/0?protocol=3", "option 'protocol'"),
        ("redis://:hunter2@localhost/0?socket_timeout=1", "option 'socket_timeout'"),
        ("redis://:hunter2@localhost/0?ssl_cert_reqs=none", "use rediss:// for TLS"),
        ("rediss://:hunter2@localhost/0?ssl_cert_reqs=no", "one of none, optional, required"),
        ("rediss://:hunter2@localhost/0?ssl_ca_certs=", "must be a path"),
        ("redis://:hunter2@localhost/0?db=1", "has db twice"),
        ("redis://:hunter2@localhost?db=1&db=1", "has db twice"),
        ("redis://:hunter2@localhost?db=x", "must be a number"),
        ("redis://:hunter2@localhost:99999/0", "port that is not a number up to 65535"),
        ("redis://:hunter2/3@localhost/0", "port that is not a number"),
        ("redis://:hunter2#3@localhost/0", "write %23"),
        ("redis://localhost/0#", "write %23"),
        ("redis://[::1/0", "not a valid URL"),
        ("unix://", "has no socket path"),
        ("redis+sentinel://:hunter2@a:26379/tweezer?db=1", "must not have options"),
        ("redis+sentinel://:hunter2@a:26379/tweezer/x", "has no service name"),
        ("redis+sentinel://:hunter2@a/tweezer", "is not host:port"),
        ("localhost:6379", "must start with redis://"),
        ("", "must start with redis://"),
    ],
)
def test_ambiguous_urls_are_refused_with_the_reason(url: str, says: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_url(url)
    assert raised.value.field == "url"
    assert says in raised.value.problem
    assert "hunter2" not in raised.value.problem


def test_a_producer_gets_the_same_error() -> None:
    with pytest.raises(InvalidInput, match="url: has an unknown option 'protocol'"):
        tweezer.connect("redis://localhost/0?protocol=3")
