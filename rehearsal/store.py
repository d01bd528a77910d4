"""Resources by path, and what every Compute collection does with them: names, links, fingerprints,
lists, filters, pages.

A path is ``projects/P/zones/Z/instances/N``; a link is a path with Google's prefix. Clients put
their own host into links, so every link in a request body is brought to one form (``normalize``),
or references would silently never match.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rehearsal.errors import ApiError, Json, exists, invalid, not_found

PREFIX = "https://www.googleapis.com/compute/v1/"
_LINK = re.compile(
    r"(?:https?://[^/]+/compute/[^/]+/)?(?:projects/([^/]+)/)?"
    r"((?:global|zones/[^/]+|regions/[^/]+)(?:/\w+/[-\w]+(?:/[-\w]+)?)?)"
)
_FREE_TEXT = {"metadata", "labels", "description", "tags", "filter"}
_CLAUSE = re.compile(
    r"""\s*(?:(?P<paren>[()])|(?P<word>AND|OR|NOT)\b|(?P<field>[\w.-]+)\s*
    (?P<op>!=|>=|<=|=|:|<|>|\beq\b|\bne\b)\s*
    (?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s()"'][^\s()]*))""",
    re.VERBOSE,
)


def link(path: str) -> str:
    return PREFIX + path


def path_of(url: str) -> str:
    """The path in a normalized link."""
    return url.removeprefix(PREFIX)


def short(url: str) -> str:
    """The last segment: ``us-central1-a`` of a zone's link."""
    return url.rpartition("/")[2]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def fingerprint(value: Any) -> str:
    """A short digest as the API shows it: 8 bytes in the URL-safe base64 that clients send back."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return base64.urlsafe_b64encode(digest[:8]).decode()


def normalize(value: Any, project: str) -> Any:
    """``value`` with every link, full or partial, in the one form we store."""
    if isinstance(value, dict):
        return {k: v if k in _FREE_TEXT else normalize(v, project) for k, v in value.items()}
    if isinstance(value, list):
        return [normalize(item, project) for item in value]
    if isinstance(value, str) and (found := _LINK.fullmatch(value)):
        return link(f"projects/{found[1] or project}/{found[2]}")
    return value


class Store:
    """Every resource of the cloud, in memory."""

    def __init__(self) -> None:
        self._resources: dict[str, Json] = {}
        self._ids = itertools.count(
            1_000_000_000_000_000_000 + int(datetime.now(UTC).timestamp()) * 1000
        )

    def new_id(self) -> str:
        """A resource id: numeric, as clients insist."""
        return str(next(self._ids))

    def add(self, path: str, kind: str | None, resource: Json) -> Json:
        """Put a resource under a free path; the members every resource has are filled in."""
        if path in self._resources:
            raise exists(path)
        resource.update(id=self.new_id(), name=short(path), selfLink=link(path))
        resource["creationTimestamp"] = now()
        if kind:
            resource["kind"] = kind
        match path.split("/"):
            case [_, _, ("zones" | "regions") as scope, name, *_]:
                resource[scope[:-1]] = link("/".join(path.split("/")[:3]) + f"/{name}")
        self._resources[path] = resource
        return resource

    def put(self, path: str, resource: Json) -> None:
        """Set a resource as it is, such as a zone of the inventory."""
        self._resources[path] = resource

    def remove(self, path: str) -> None:
        self._resources.pop(path, None)

    def find(self, path: str) -> Json:
        """The resource at a path, whose last segment may be the id; 404 otherwise."""
        if path in self._resources:
            return self._resources[path]
        parent, _, last = path.rpartition("/")
        if last.isdecimal():
            for resource in self.children(parent):
                if resource.get("id") == last:
                    return resource
        raise not_found(path)

    def get(self, url: str) -> Json | None:
        """The resource behind a link, or None."""
        return self._resources.get(path_of(url))

    def children(self, parent: str) -> list[Json]:
        """Resources directly in a collection, such as ``projects/P/zones/Z/instances``."""
        return [r for p, r in self._resources.items() if p.rpartition("/")[0] == parent]

    def every(self, collection: str, project: str | None = None) -> Iterator[Json]:
        """Resources of a collection in all scopes."""
        for path, resource in list(self._resources.items()):
            parts = path.split("/")
            if parts[-2] == collection and project in (None, parts[1]):
                yield resource


def page(items: list[Json], query: Mapping[str, str]) -> Json:
    """One page of a list answer: ``items`` (absent when empty) and ``nextPageToken``."""
    chosen = select(items, query.get("filter", ""))
    match query.get("orderBy", ""):
        case "creationTimestamp desc":
            chosen.sort(key=lambda r: str(r["creationTimestamp"]), reverse=True)
        case "" | "name":
            chosen.sort(key=lambda r: str(r["name"]))
        case other:
            raise invalid("orderBy", other, "Use 'name' or 'creationTimestamp desc'.")
    size = int(query.get("maxResults", 500)) or 500
    token = query.get("pageToken", "")
    try:
        start = int(base64.urlsafe_b64decode(token)) if token else 0
        if start < 0 or token not in ("", _token(start)):
            raise ValueError
    except ValueError:
        raise ApiError(400, "invalid", "Invalid value for field 'pageToken'.") from None
    answer: Json = {}
    if chosen[start : start + size]:
        answer["items"] = chosen[start : start + size]
    if start + size < len(chosen):
        answer["nextPageToken"] = _token(start + size)
    return answer


def _token(start: int) -> str:
    return base64.urlsafe_b64encode(str(start).encode()).decode()


def select(items: list[Json], text: str) -> list[Json]:
    """Items that a filter expression keeps. Comparisons, AND, OR, NOT and parentheses are known;
    ``eq`` and ``ne`` take regular expressions, as the API documents."""
    tokens = _tokens(text)
    if not tokens:
        return list(items)
    try:
        test, rest = _alternatives(tokens, text)
    except RecursionError:
        raise _bad_filter(text) from None
    if rest:
        raise _bad_filter(text)
    return [item for item in items if test(item)]


def _bad_filter(text: str) -> ApiError:
    return ApiError(
        400,
        "invalid",
        f"Invalid value for field 'filter': '{text}'. Invalid list filter expression.",
    )


def _tokens(text: str) -> list[re.Match[str]]:
    tokens, position = [], 0
    while text[position:].strip():
        found = _CLAUSE.match(text, position)
        if not found:
            raise _bad_filter(text)
        tokens.append(found)
        position = found.end()
    return tokens


def _alternatives(tokens: list[re.Match[str]], text: str) -> tuple[Any, list[re.Match[str]]]:
    tests: list[Any] = []
    while True:
        test, tokens = _conjunction(tokens, text)
        tests.append(test)
        if not (tokens and tokens[0]["word"] == "OR"):
            return (lambda item: any(t(item) for t in tests)), tokens
        tokens = tokens[1:]


def _conjunction(tokens: list[re.Match[str]], text: str) -> tuple[Any, list[re.Match[str]]]:
    tests: list[Any] = []
    while tokens and tokens[0]["word"] != "OR" and tokens[0]["paren"] != ")":
        head, tokens = tokens[0], tokens[1:]
        if head["word"] == "AND":
            if (
                not tests
                or not tokens
                or tokens[0]["word"] in ("AND", "OR")
                or tokens[0]["paren"] == ")"
            ):
                raise _bad_filter(text)
            continue
        negate = head["word"] == "NOT"
        if negate:
            if not tokens:
                raise _bad_filter(text)
            head, tokens = tokens[0], tokens[1:]
        if head["paren"] == "(":
            test, tokens = _alternatives(tokens, text)
            if not tokens or tokens[0]["paren"] != ")":
                raise _bad_filter(text)
            tokens = tokens[1:]
        elif head["field"]:
            test = _comparison(head, text)
        else:
            raise _bad_filter(text)
        tests.append((lambda item, t=test: not t(item)) if negate else test)
    if not tests:
        raise _bad_filter(text)
    return (lambda item: all(t(item) for t in tests)), tokens


def _comparison(clause: re.Match[str], text: str) -> Any:
    raw = clause["value"]
    quoted = raw[:1] in "\"'"
    wanted = re.sub(r"\\(.)", r"\1", raw[1:-1]) if raw[0] == "'" else raw
    if quoted and raw[0] == '"':
        wanted = raw[1:-1].replace('\\"', '"')
    if clause["op"] in ("eq", "ne"):
        try:
            pattern = re.compile(wanted.replace("\\\\", "\\"))
        except (re.error, OverflowError, RecursionError):
            raise _bad_filter(text) from None
    else:
        pattern = re.compile(
            re.escape(wanted).replace(r"\*", ".*") if not quoted else re.escape(wanted)
        )

    def test(item: Json) -> bool:
        actual: Any = item
        for part in clause["field"].split("."):
            actual = actual.get(part) if isinstance(actual, dict) else None
        if clause["op"] == ":" and wanted == "*":
            return actual is not None
        if isinstance(actual, bool):
            actual = str(actual).lower()
        values = actual if isinstance(actual, list) else [actual]
        shown = ["" if v is None else str(v) for v in values]
        match clause["op"]:
            case "=" | "eq":
                return any(pattern.fullmatch(v) for v in shown)
            case "!=" | "ne":
                return not any(pattern.fullmatch(v) for v in shown)
            case ":":
                return any(wanted.lower() in v.lower() for v in shown)
            case op:
                return any(_ordered(v, op, wanted) for v in shown)

    return test


def _ordered(actual: str, op: str, wanted: str) -> bool:
    try:
        left, right = float(actual), float(wanted)
    except ValueError:
        return False
    return {"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}[op]
