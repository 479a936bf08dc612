"""The page at `/` and its files: what the browser gets, and that all strings exist."""

from __future__ import annotations

import http.client
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import PATIENCE_S, ROOT, Server
from http_helpers import request

pytestmark = pytest.mark.integration

STATIC = sorted(path.name for path in (ROOT / "static").iterdir() if path.is_file())
SOURCES = [
    *(ROOT / "static" / name for name in STATIC if not name.endswith(".ogg")),
    *sorted((ROOT / "templates").iterdir()),
]
LANGUAGES = ("en", "zh-CN")
MEDIA_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".ogg": "audio/ogg",
    ".svg": "image/svg+xml",
}


def _strings(language: str) -> dict[str, str]:
    path = ROOT / "static" / f"strings.{language}.json"

    def refuse_twins(pairs: list[tuple[str, str]]) -> dict[str, str]:
        assert len(dict(pairs)) == len(pairs), "a key stands twice"
        return dict(pairs)

    strings: dict[str, str] = json.loads(
        path.read_text(encoding="utf-8"), object_pairs_hook=refuse_twins
    )
    return strings


class _Page(HTMLParser):
    """Collect the references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.keys: list[str] = []
        self.addresses: list[str] = []
        self.inline: list[str] = []
        """Scripts, styles and handlers in the page itself, which the policy forbids."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.keys += [value for name, value in given.items() if name.startswith("data-i18n")]
        self.addresses += [given[name] for name in ("src", "href", "action") if name in given]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


@pytest.fixture(scope="module")
def page(server: Server) -> _Page:
    read = _Page()
    read.feed(request(server, "GET", "/").text)
    return read


class TestPage:
    def test_it_is_html_with_a_policy_that_allows_no_other_hosts(self, server: Server) -> None:
        answer = request(server, "GET", "/")

        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert policy["style-src"] == "'self'"
        assert policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"

    def test_it_keeps_its_own_policy(self, page: _Page) -> None:
        assert page.inline == []

    def test_all_references_exist_and_are_relative(self, server: Server, page: _Page) -> None:
        addresses = {address for address in page.addresses if not address.startswith("#")}

        assert {"static/app.css", "static/app.js"} <= addresses
        for address in addresses:
            assert re.fullmatch(r"[a-z][\w./-]*", address)
            assert request(server, "GET", f"/{address}").status_code == 200

    def test_ids_are_unique(self, page: _Page) -> None:
        assert len(page.ids) > 20
        assert len(set(page.ids)) == len(page.ids)

    def test_every_element_that_the_scripts_use_exists(self, page: _Page) -> None:
        ids = set(re.findall(r'byId\("([\w-]+)"\)', _scripts()))

        assert len(ids) > 20
        assert ids <= set(page.ids)


class TestModules:
    def test_each_module_imports_only_from_rows_above_it(self) -> None:
        guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        table = guide.partition("How the page is laid out")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
        order = [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]

        scripts = {Path(name).stem for name in STATIC if name.endswith(".js")}
        assert sorted(order) == sorted(scripts)
        for place, name in enumerate(order):
            script = (ROOT / "static" / f"{name}.js").read_text(encoding="utf-8")
            imported = set(re.findall(r'^import .*from "\./([\w-]+)\.js";$', script, re.MULTILINE))
            assert imported <= set(order[:place]), name


class TestStaticFiles:
    @pytest.mark.parametrize("name", STATIC)
    def test_each_has_its_media_type(self, server: Server, name: str) -> None:
        answer = request(server, "GET", f"/static/{name}")

        assert answer.status_code == 200
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type == MEDIA_TYPES[Path(name).suffix]
        assert answer.content == (ROOT / "static" / name).read_bytes()
        assert answer.headers["cache-control"] == "no-cache"

    def test_an_unchanged_one_is_304(self, server: Server) -> None:
        first = request(server, "GET", "/static/app.js")
        second = request(
            server, "GET", "/static/app.js", headers={"If-None-Match": first.headers["etag"]}
        )

        assert (second.status_code, second.content) == (304, b"")

    @pytest.mark.parametrize(
        "path",
        [
            "/static/",
            "/static/../app.py",
            "/static/%2e%2e/app.py",
            "/static/..%2fapp.py",
            "/static/..%2f..%2fetc%2fpasswd",
            "/templates/index.html",
        ],
    )
    def test_nothing_else_is_served(self, server: Server, path: str) -> None:
        # Unlike httpx, http.client sends a path as it stands.
        connection = http.client.HTTPConnection(
            server.url.removeprefix("http://"), timeout=PATIENCE_S
        )
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()

        assert answer.status == 404
        assert json.loads(content)["error"]["code"] == "not_found"


class TestStrings:
    def test_both_languages_have_the_same_keys(self) -> None:
        english, chinese = map(_strings, LANGUAGES)

        assert list(english) == list(chinese)
        assert all(text.strip() for text in [*english.values(), *chinese.values()])

    def test_both_languages_have_the_same_placeholders(self) -> None:
        english, chinese = map(_strings, LANGUAGES)
        holes = {
            key: (set(re.findall(r"\{\w+\}", english[key])), set(re.findall(r"\{\w+\}", text)))
            for key, text in chinese.items()
        }

        assert {key: pair for key, pair in holes.items() if pair[0] != pair[1]} == {}
        assert sum(bool(pair[0]) for pair in holes.values()) > 5

    def test_chinese_is_chinese(self) -> None:
        untranslated = [
            key
            for key, text in _strings("zh-CN").items()
            if not re.search(r"[\u4e00-\u9fff]", text)
        ]
        # Names and units need no words of a language.
        assert len(untranslated) <= 5, untranslated

    def test_every_key_of_the_page_exists(self, page: _Page) -> None:
        assert len(page.keys) > 20
        assert set(page.keys) <= set(_strings("en"))

    def test_every_key_of_the_script_exists(self) -> None:
        keys = set(re.findall(r'\btext\("([\w.]+)"', _scripts()))

        assert len(keys) > 10
        assert keys <= set(_strings("en"))

    def test_every_string_is_used(self, page: _Page) -> None:
        scripts = _scripts()
        # Keys such as `error.queue_full.title` are put together from a kind.
        families = set(re.findall(r"`([\w.]+\.)\$\{", scripts))
        unused = [
            key
            for key in _strings("en")
            if key not in page.keys and f'"{key}"' not in scripts and not _of(families, key)
        ]

        assert unused == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_comes_from_another_host(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    addresses = set(re.findall(r"""(?:https?:|wss?:)?//[\w.-]+\.\w+[^\s"'`)]*""", source))

    # XML namespaces, which are never fetched.
    assert addresses <= {"http://www.w3.org/2000/svg", "http://schemas.openxmlformats.org"}
    assert "@import" not in source
    assert not re.search(r"""(?:src|href|action)=["']/""", source), "an absolute path"


def _scripts() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.suffix == ".js")


def _of(families: set[str], key: str) -> bool:
    return any(key.startswith(family) for family in families)
