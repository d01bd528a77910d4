"""What a person sees in a browser: the new server's UI behind its auth string, and the laptop's.

Debian's chromium, headless. ``SCREENSHOTS=docs`` makes the pictures of the documentation anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright
from pydantic import BaseModel

from flows.spec import ServerSpec
from rehearsal import follow
from tests.story.conftest import DRIFT, Story

pytestmark = pytest.mark.rehearsal

CHROMIUM = "/usr/bin/chromium"
NAME = "prefect-1"
SIZE: ViewportSize = {"width": 1280, "height": 800}
SECONDS = 20.0
"""For anything to appear."""


@pytest.fixture
def page() -> Iterator[Page]:
    """A browser that nobody is logged in with."""
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        # chromium refuses its sandbox to root, whom the rehearsal needs
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport=SIZE, locale="en-GB", timezone_id="UTC")
        context.set_default_timeout(SECONDS * 1000)
        yield context.new_page()
        browser.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where the pictures go."""
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


def picture(page: Page, file: Path) -> None:
    """Save what is in view, once nothing in it has moved for a second."""
    seen: list[bytes] = []
    for _ in range(40):
        seen.append(page.screenshot())
        if len(seen) > 4 and len(set(seen[-4:])) == 1:
            break
        page.wait_for_timeout(300)
    file.write_bytes(seen[-1])


def menu(page: Page, item: str) -> None:
    page.get_by_role("link", name=item, exact=True).first.click()


def open_run(page: Page, flow: str, state: str) -> None:
    """Open the oldest run of a flow that ended in a state, from the list of all."""
    menu(page, "Runs")
    # The list loads twice, for all time and for this week, and goes back to itself in between.
    expect(page.get_by_role("button", name="Past 7 days")).to_be_visible()
    card = page.get_by_role("listitem").filter(has_text=flow).filter(has_text=state)
    card.last.get_by_role("navigation").get_by_role("link").nth(1).click()
    expect(page.get_by_role("tab", name="Artifacts")).to_be_visible()


def open_deployment(page: Page, flow: str) -> None:
    """Open the only deployment of a flow."""
    menu(page, "Deployments")
    page.get_by_role("row").filter(has_text=flow).get_by_role("link", name=NAME).click()
    expect(page.get_by_role("main").get_by_role("link", name=flow).first).to_be_visible()


def open_form(page: Page, rehearsed: dict[str, Any]) -> None:
    """Open the form of a custom run of the bootstrap."""
    page.goto(rehearsed["urls"]["laptop"])
    open_deployment(page, "bootstrap-server")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()


def titles(model: type[BaseModel]) -> list[str]:
    """Of a form's fields, those of groups within, in order."""
    found = []
    for field in model.model_fields.values():
        found.append(str(field.title))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += titles(field.annotation)
    return found


def test_the_new_servers_ui_opens_with_the_auth_string_and_shows_its_self_check(
    story: Story, rehearsed: dict[str, Any], page: Page, pictures: Path
) -> None:
    page.goto(rehearsed["urls"]["server"])
    field, login = page.get_by_role("textbox"), page.get_by_role("button", name="Login")
    field.fill("admin:not-the-auth-string")
    login.click()
    expect(page.get_by_text("Invalid credentials")).to_be_visible()
    auth = story.secret("prefect-auth")
    field.fill(auth)
    login.click()
    open_deployment(page, "check-health")
    expect(page.get_by_text("Every 5 minutes")).to_be_visible()
    open_run(page, "check-health", rehearsed["self_check"]["state"])
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_role("tabpanel").get_by_role("listitem").first).to_be_visible()
    picture(page, pictures / "server-ui.png")
    page.set_viewport_size({"width": 1500, "height": 1000})
    open_artifact(page, story.urls["server"], auth, "health")
    for name in ("database: connections", "machine: disk", "events: way"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    picture(page, pictures / "health.png")


def test_the_custom_run_form_has_the_fields_of_the_spec_in_order(
    rehearsed: dict[str, Any], page: Page, pictures: Path
) -> None:
    open_form(page, rehearsed)
    expect(page.get_by_role("textbox", name="Google Cloud project")).to_have_value("rehearsal")
    expect(page.get_by_role("textbox", name="Machine type")).to_have_value("e2-medium")
    picture(page, pictures / "laptop-form.png")
    wanted = titles(ServerSpec)
    lines = (
        line.removesuffix(" (Optional)")
        for line in page.get_by_role("main").inner_text().splitlines()
    )
    assert [line for line in lines if line in wanted] == wanted


def test_the_form_refuses_what_the_flow_would_refuse_in_the_same_words(
    rehearsed: dict[str, Any], page: Page
) -> None:
    open_form(page, rehearsed)
    page.get_by_role("textbox", name="Zone").fill("us central")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'a zone, such as europe-west4-a' was expected").first).to_be_visible()


def test_a_runs_artifacts_are_a_table_of_resources_and_the_way_to_connect(
    rehearsed: dict[str, Any], page: Page, pictures: Path
) -> None:
    page.goto(rehearsed["urls"]["laptop"])
    open_run(page, "bootstrap-server", rehearsed["bootstrap"]["state"])
    page.get_by_role("tab", name="Artifacts").click()
    rows = page.get_by_role("cell", name=f"instance {NAME}", exact=True)
    command = page.get_by_role("code").filter(has_text=f"python -m flows.connect --server {NAME}")
    run = page.url
    expect(page.get_by_role("link", name=f"{NAME}-connect")).to_be_visible()
    picture(page, pictures / "laptop-run.png")
    for key, content in (("resources", rows), ("connect", command)):
        page.goto(run)
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_role("link", name=f"{NAME}-{key}").click()
        page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()
        expect(content).to_be_visible()


def test_the_drift_report_is_a_table_in_the_ui_and_so_is_the_plan(
    story: Story, page: Page, pictures: Path
) -> None:
    """Of a server that was changed by hand, in several places."""
    story.root(
        "systemctl stop prefect-worker; chmod 644 /var/lib/prefect/.prefect/prefect.toml;"
        " echo '# by hand' >> /etc/systemd/system/prefect-server.service"
    )
    opened = ("compute", "firewall-rules", "update", "prefect-1-clients")
    story.google(*opened, "--source-ranges=0.0.0.0/0")
    try:
        assert story.run(DRIFT).state == "Drifted"
        page.set_viewport_size({"width": 1900, "height": 560})  # all columns
        shows(page, story, "drift")
        picture(page, pictures / "drift.png")
    finally:
        assert story.run().state == "Changed"
    shows(page, story, "plan")


def shows(page: Page, story: Story, key: str) -> None:
    """The newest table of a key names what was changed by hand."""
    open_artifact(page, story.urls["laptop"], "", key)
    for name in ("firewall rule prefect-1-clients", "sourceRanges", "service prefect-worker"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def open_artifact(page: Page, url: str, auth: str, key: str) -> None:
    """Open the newest artifact of a key."""
    which = {"artifacts": {"key": {"any_": [f"{NAME}-{key}"]}}, "sort": "CREATED_DESC", "limit": 1}
    with follow.api(url, auth) as client:
        [found] = follow.ask(client, "POST", "/artifacts/filter", which)
    page.goto(f"{url}/artifacts/artifact/{found['id']}")
