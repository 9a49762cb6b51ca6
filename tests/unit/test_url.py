# SPDX-License-Identifier: Apache-2.0
"""URLs, against the standard library's idea of them."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.errors import ServerError
from update_agent.url import Url, join, quote, unquote, without_query

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.text("abc", min_size=1, max_size=3)
PATHS = st.lists(st.one_of(NAMES, st.just("."), st.just("..")), max_size=5).map("/".join)


@pytest.mark.parametrize("server", ["https://s/prefix", "https://s/prefix/", "https://s/prefix//"])
def test_join_has_one_slash(server: str) -> None:
    assert join(server, "/api") == "https://s/prefix/api"


def test_url_parts() -> None:
    url = Url("https://[::1]:8443/a b?c=d%20é#fragment")
    assert (url.host, url.port, url.is_tls, url.authority) == ("::1", 8443, True, "[::1]:8443")
    assert url.target == "/a%20b?c=d%20%C3%A9"
    assert Url("http://Host.example").authority == "host.example"
    assert Url("http://Host.example").place == "host.example:80"
    assert Url("HTTP://h:/").port == 80
    assert Url("http://h?x=1").target == "/?x=1"
    assert Url("https://a:b@h/").user == "a:b"
    assert Url("https://[::1]").authority == "[::1]"


def test_signed_links_reach_the_server_unchanged() -> None:
    path = "/a/b%2Fc.mender?X-Amz-Signature=ab%3D&e=1+2&f=~._-"
    assert Url("https://s" + path).target == path


def test_no_line_is_smuggled_into_a_request() -> None:
    assert Url("http://h/a\r\nX: y").target == "/a%0D%0AX:%20y"
    with pytest.raises(ServerError):
        Url("http://h\r\nX/")


@pytest.mark.parametrize(
    "text",
    [
        *("", "ftp://x/", "file:///x", "https://", "http://h:99999/", "/path", "http://[::1/", "http:/h/"),
        *("http:h", "http://h:x/", "http://h:1:2/", "http://h:-1/", "http://h:\uff11/", "http://[h]/"),
        *("http://[::1]x/", "http://a b/", "http://?x", "http://:80/", "http://a\\b/", "http://h:000080/"),
    ],
)
def test_not_a_server(text: str) -> None:
    with pytest.raises(ServerError):
        Url(text)


def test_secrets_stay_out_of_log_lines() -> None:
    assert without_query("https://user:word@h/p?sig=1#f") == "https://h/p"


@given(TEXT)
def test_quoting(text: str) -> None:
    assert quote(text) == urllib.parse.quote(text, safe="")
    assert unquote(quote(text)) == text
    assert unquote(text) == urllib.parse.unquote(text)


@given(
    scheme=st.sampled_from(["http", "https"]),
    host=st.sampled_from(["h", "updates.example.com", "10.0.2.2", "[fe80::1]"]),
    port=st.sampled_from(["", ":", ":1", ":443", ":80", ":65535"]),
    user=st.sampled_from(["", "u@", "u:p%40@"]),
    path=PATHS,
    query=st.sampled_from(["", "?", "?a=b/c", "?x#y", "#f"]),
)
def test_parts_are_what_the_library_finds(
    scheme: str, host: str, port: str, user: str, path: str, query: str
) -> None:
    text = f"{scheme}://{user}{host}{port}/{path}{query}"
    ours, theirs = Url(text), urllib.parse.urlsplit(text)
    assert ours.host == theirs.hostname
    assert ours.port == (theirs.port or (443 if scheme == "https" else 80))
    assert ours.target.rstrip("?") == theirs._replace(scheme="", netloc="", fragment="").geturl().rstrip("?")


@given(
    base=PATHS,
    query=st.sampled_from(["", "?a/b"]),
    location=st.one_of(
        PATHS,
        PATHS.map(lambda path: "/" + path.replace("..", "d").replace(".", "e")),
        st.sampled_from(["http://x/y", "https://x", "//x:8/y?z", "?q", "", "a?b/../c", "x:y", "ftp://z"]),
    ),
)
def test_redirects_lead_where_the_library_says(base: str, query: str, location: str) -> None:
    base = base.replace("..", "d").replace(".", "e")
    text = f"https://h:8443/{base}{query}"
    if not location:
        return  # RFC 3986: the same document; nobody redirects so
    assert Url(text).resolve(location).rstrip("/") == urllib.parse.urljoin(text, location).rstrip("/")
