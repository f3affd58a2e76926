"""HOST:PORT: what is accepted, what is refused, and with which message."""

import pytest

from pelago import address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("gps.example:7700", "gps.example", 7700),
        ("my_gps:1", "my_gps", 1),
        ("10.0.0.7:65534", "10.0.0.7", 65534),
        ("*:7700", "*", 7700),
        ("[::1]:7700", "::1", 7700),
        ("[::]:7700", "::", 7700),
        ("0.0.0.0:7700", "0.0.0.0", 7700),
        ("[fe80::1%eth0]:7700", "fe80::1%eth0", 7700),
        ("bücher.example:7700", "xn--bcher-kva.example", 7700),
        ("例え.テスト:7700", "xn--r8jz45g.xn--zckzah", 7700),
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert address.split(text, listens=True) == (host, port)
    assert address.split(address.join(host, port), listens=True) == (host, port)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere", "must be HOST:PORT"),
        (":7700", "must be HOST:PORT"),
        ("", "must be HOST:PORT"),
        ("host:", "with a port from 1 to 65534"),
        ("host:0", "with a port from 1 to 65534"),
        ("host:65535", "with a port from 1 to 65534"),
        ("host:7²", "with a port from 1 to 65534"),
        ("tcp://host:7700", "without tcp://"),
        ("::1:7700", "an IPv6 address stands in brackets"),
        ("[::1]", "must be HOST:PORT"),
        ("[::1]7700", "must be HOST:PORT"),
        ("[::1:7700", "must be HOST:PORT"),
        ("[host]:7700", "'host' in brackets is no IPv6 address"),
        ("*:7700", "* is all addresses of a machine"),
        ("0.0.0.0:7700", "0.0.0.0 is all addresses of a machine"),
        ("0:7700", "0 is all addresses of a machine"),
        ("[::]:7700", ":: is all addresses of a machine"),
        ("[0:0::0]:7700", "0:0::0 is all addresses of a machine"),
        ("[::ffff:0.0.0.0]:7700", "::ffff:0.0.0.0 is all addresses of a machine"),
        ("my host:7700", "it has ' ', and names have letters, digits"),
        ("a..b:7700", "between dots stand 1 to 63 characters"),
        ("ü" * 64 + ":7700", "between dots stand 1 to 63 characters"),
    ],
)
def test_what_is_no_address_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        address.split(text)
    assert said in str(refused.value)


def test_a_server_that_listens_everywhere_is_found_on_the_loopback() -> None:
    assert {address.reached_at(each) for each in address.ANY} == {"127.0.0.1"}
    assert address.reached_at("::1") == "::1"
