"""Resources by path: links, filters and pages, as clients use them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehearsal.errors import ApiError, Json
from rehearsal.store import PREFIX, Store, fingerprint, link, normalize, page, path_of, select

VMS: list[Json] = [
    {"name": "vm1", "status": "RUNNING", "id": "10", "labels": {"env": "prod", "a-b": "x"},
     "protected": True, "tags": ["web", "db"], "n": 5},
    {"name": "vm2", "status": "TERMINATED", "id": "9", "labels": {"env": "test"},
     "protected": False, "n": 10},
    {"name": "vm10", "status": "RUNNING", "id": "100", "note": 'say "hi" (twice)'},
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "vm1 vm2 vm10"),
        ("  ", "vm1 vm2 vm10"),
        # gcloud's own
        (r'name eq ".*\bvm1\b.*"', "vm1"),
        (r'(name eq ".*\bvm1\b.*")', "vm1"),
        ('name eq "vm1|vm2"', "vm1 vm2"),
        ("name eq vm1", "vm1"),
        ("name ne vm1", "vm2 vm10"),
        ('name ne "vm1.*"', "vm2"),
        # comparisons
        ("status = RUNNING", "vm1 vm10"),
        ("status=RUNNING", "vm1 vm10"),
        ('status="RUNNING"', "vm1 vm10"),
        ("status='RUNNING'", "vm1 vm10"),
        ("status != RUNNING", "vm2"),
        ("status = running", ""),
        ("name = vm1*", "vm1 vm10"),
        ('name = "vm1*"', ""),
        ("name = vm.", ""),
        ("labels.env:prod", "vm1"),
        ("labels.env:*", "vm1 vm2"),
        ("labels.env = test", "vm2"),
        ("labels.a-b = x", "vm1"),
        ("labels.env.more = x", ""),
        ("name:VM1", "vm1 vm10"),
        ("tags:web", "vm1"),
        ("tags = db", "vm1"),
        ("protected = true", "vm1"),
        ("protected = false", "vm2"),
        ("n > 5", "vm2"),
        ("n >= 5", "vm1 vm2"),
        ("n < 10", "vm1"),
        ("n <= 10", "vm1 vm2"),
        ("name > 5", ""),
        ('note = "say \\"hi\\" (twice)"', "vm10"),
        ("none = x", ""),
        # in combination
        ("status = RUNNING AND labels.env:*", "vm1"),
        ("status = RUNNING labels.env:*", "vm1"),
        ("(status = RUNNING) (labels.env:*)", "vm1"),
        ("name = vm1 OR name = vm2", "vm1 vm2"),
        ("NOT status = RUNNING", "vm2"),
        ("NOT (name = vm1 OR name = vm2)", "vm10"),
        ("status = RUNNING AND NOT name = vm1", "vm10"),
        ("name = vm2 OR status = RUNNING AND labels.env:prod", "vm1 vm2"),
        ("(name = vm2 OR status = RUNNING) AND labels.env:prod", "vm1"),
        ("((name = vm1))", "vm1"),
    ],
)
def test_a_filter_keeps(text: str, names: str) -> None:
    assert [vm["name"] for vm in select(VMS, text)] == names.split()


@pytest.mark.parametrize(
    "text",
    [
        "name", "name =", "= x", "()", "(", ")", "(name = x", "name = x)", "AND", "OR", "NOT",
        "AND name = x", "name = x AND", "name = x OR", "OR name = x", "name = x AND AND name = y",
        "NOT NOT", "(name = x AND)", "name ~ x", 'name = "x', "name = 'x", 'name eq "["',
        'name eq "a{99999999999}"', "name = x; y", "(" * 5000, "🙂",
    ],
)  # fmt: skip
def test_a_filter_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        select(VMS, text)
    message = f"Invalid value for field 'filter': '{text}'. Invalid list filter expression."
    assert (caught.value.code, caught.value.message) == (400, message)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 25), st.integers(1, 9))
def test_pages_cover_every_item_once(count: int, size: int) -> None:
    items: list[Json] = [{"name": f"i{n:02}"} for n in range(count)]
    seen: list[Json] = []
    query = {"maxResults": str(size)}
    for _ in range(count // size + 1):
        answer = page(items, query)
        assert ("items" in answer) == bool(items)
        seen += answer.get("items", [])
        if "nextPageToken" not in answer:
            break
        query["pageToken"] = answer["nextPageToken"]
    assert "nextPageToken" not in answer
    assert seen == items


def test_a_page_is_of_what_the_filter_keeps() -> None:
    answer = page(VMS, {"filter": "status = RUNNING", "maxResults": "1"})
    assert [vm["name"] for vm in answer["items"]] == ["vm1"]
    answer = page(VMS, {"filter": "status = RUNNING", "pageToken": answer["nextPageToken"]})
    assert [vm["name"] for vm in answer["items"]] == ["vm10"]
    assert page(VMS, {"filter": "name = none"}) == {}


def test_a_list_has_an_order() -> None:
    items: list[Json] = [{"name": "b", "creationTimestamp": "1"}, {"name": "a", "creationTimestamp": "2"},
                         {"name": "c", "creationTimestamp": "3"}]  # fmt: skip
    for order, names in (("", "abc"), ("name", "abc"), ("creationTimestamp desc", "cab")):
        assert [i["name"] for i in page(items, {"orderBy": order})["items"]] == list(names)
    with pytest.raises(ApiError):
        page(items, {"orderBy": "size"})


@pytest.mark.parametrize("token", ["x", "!", "LTU=", "é", "//8=", "MS41"])
def test_a_page_token_of_ones_own_is_refused(token: str) -> None:
    with pytest.raises(ApiError, match="Invalid value for field 'pageToken'"):
        page(VMS, {"pageToken": token})


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("http://127.0.0.1:18500/compute/v1/projects/p/global/networks/n", "p/global/networks/n"),
        ("https://compute.googleapis.com/compute/v1/projects/p/zones/z", "p/zones/z"),
        ("https://www.googleapis.com/compute/beta/projects/p/regions/r", "p/regions/r"),
        ("projects/p/global/networks/n", "p/global/networks/n"),
        ("global/networks/n", "own/global/networks/n"),
        ("zones/z/machineTypes/e2-medium", "own/zones/z/machineTypes/e2-medium"),
        ("regions/r/subnetworks/s", "own/regions/r/subnetworks/s"),
        (
            "projects/debian-cloud/global/images/family/debian-12",
            "debian-cloud/global/images/family/debian-12",
        ),
    ],
)
def test_a_link_of_any_form_is_brought_to_one(given: str, path: str) -> None:
    full = f"{PREFIX}projects/{path}"
    assert normalize({"a": [{"b": given}]}, "own") == {"a": [{"b": full}]}
    assert normalize(full, "own") == full
    assert link(path_of(full)) == full


@pytest.mark.parametrize(
    "text",
    ["n", "", "10.0.0.0/8", "a global/networks/n", "https://example.com/x", "projects/p", "zone/z",
     "folders/f/global/networks/n", "global/networks/n/"],
)  # fmt: skip
def test_other_text_is_left_alone(text: str) -> None:
    assert normalize({"a": text, "b": 1, "c": None}, "own") == {"a": text, "b": 1, "c": None}


def test_free_text_is_left_alone_even_when_it_looks_like_a_link() -> None:
    text = "global/networks/n"
    free = {"metadata": {"items": [{"key": "k", "value": text}]}, "labels": {"l": text},
            "description": text, "tags": {"items": [text]}}  # fmt: skip
    assert normalize(free, "own") == free


def test_a_resource_gets_what_every_resource_has() -> None:
    store = Store()
    path = "projects/p/zones/z/instances/vm"
    first = store.add(path, "compute#instance", {"size": 1})
    assert first["zone"] == link("projects/p/zones/z")
    assert (first["name"], first["kind"], first["selfLink"]) == (
        "vm",
        "compute#instance",
        link(path),
    )
    second = store.add("projects/p/regions/r/routers/x", None, {})
    assert second["region"] == link("projects/p/regions/r")
    assert first["id"].isdecimal()
    assert first["id"] != second["id"]
    with pytest.raises(ApiError, match="already exists"):
        store.add(path, "compute#instance", {})
    assert store.find(path) is store.find(f"projects/p/zones/z/instances/{first['id']}")
    assert store.get(link(path)) is first
    assert store.children("projects/p/zones/z/instances") == [first]
    assert list(store.every("instances")) == [first]
    assert list(store.every("instances", "other")) == []
    store.remove(path)
    store.remove(path)
    assert store.get(link(path)) is None
    with pytest.raises(ApiError, match=f"The resource '{path}' was not found"):
        store.find(path)


def test_a_fingerprint_follows_the_content_and_not_its_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert json.dumps(fingerprint([])).isascii()
