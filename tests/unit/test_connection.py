# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from update_agent.connection import Url, is_excluded, join, proxy_for, without_query
from update_agent.errors import ServerError


@pytest.mark.parametrize("server", ["https://s/prefix", "https://s/prefix/", "https://s/prefix//"])
def test_join_has_one_slash(server: str) -> None:
    assert join(server, "/api") == "https://s/prefix/api"


def test_url_parts() -> None:
    url = Url("https://[::1]:8443/a b?c=d%20é#fragment")
    assert (url.host, url.port, url.is_tls, url.authority) == ("::1", 8443, True, "[::1]:8443")
    assert url.target == "/a%20b?c=d%20%C3%A9"
    assert Url("http://Host.example").authority == "host.example"
    assert Url("http://h?x=1").target == "/?x=1"


def test_signed_links_reach_the_server_unchanged() -> None:
    path = "/a/b%2Fc.mender?X-Amz-Signature=ab%3D&e=1+2&f=~._-"
    assert Url("https://s" + path).target == path


@pytest.mark.parametrize(
    "text", ["", "ftp://x/", "file:///x", "https://", "http://h:99999/", "/path", "http://[::1/"]
)
def test_not_a_server(text: str) -> None:
    with pytest.raises(ServerError):
        Url(text)


def test_secrets_stay_out_of_log_lines() -> None:
    assert without_query("https://user:word@h/p?sig=1#f") == "https://h/p"


@pytest.mark.parametrize(
    ("no_proxy", "excluded"),
    [
        ("", False),
        ("server.example.com", True),
        ("SERVER.example.com", True),
        ("other .example.com", True),
        ("other,.example.com", True),
        (".ample.com", False),
        ("example.com", False),
        (".server.example.com", False),
        ("server.example.com:8443", True),
        ("server.example.com:443", False),
        ("*", True),
    ],
)
def test_no_proxy(no_proxy: str, excluded: bool) -> None:
    assert is_excluded(Url("https://server.example.com:8443/"), no_proxy) is excluded


def test_the_proxy_follows_the_scheme_and_lower_case_comes_first() -> None:
    environ = {"http_proxy": "http://a:1", "HTTP_PROXY": "http://b:2", "HTTPS_PROXY": "c:3"}
    plain, tls = proxy_for(Url("http://s"), environ), proxy_for(Url("https://s"), environ)
    assert plain is not None
    assert (plain.hostname, plain.port) == ("a", 1)
    assert tls is not None
    assert (tls.hostname, tls.port) == ("c", 3)
    assert proxy_for(Url("http://s"), {**environ, "NO_PROXY": "s"}) is None
    assert proxy_for(Url("https://s"), {"http_proxy": "http://a:1"}) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_PROXY": "http://a:1", "REQUEST_METHOD": "GET"},
        {"http_proxy": "socks5://user:word@a:1"},
        {"http_proxy": "http://a:port"},
    ],
)
def test_proxies_that_cannot_be_used(environ: dict[str, str]) -> None:
    with pytest.raises(ServerError) as caught:
        proxy_for(Url("http://s"), environ)
    assert "word" not in str(caught.value)
