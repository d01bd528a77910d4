"""Automations on a real server: made, named when a person has changed them, healed; and what they do."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.events import Event, Resource
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import Automation as Made
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.states import Completed, Crashed, Failed, Pending, Running, Submitting

from flows.catalog import Server
from flows.errors import Final
from flows.reconcile import reconcile
from flows.resources.automation import NotificationBlock, failures, strays, zombies
from tests.flows.paper_world import SECRETS
from tests.flows.test_compute_resources import spec
from tests.flows.two_servers import (
    BLOCK,
    SECRET,
    api,
    heals,
    heard,
    knows,
    laptop,
    named,
    new_server,
    saved,
    wait,
)
from tests.prefect_server import prefect_api

__all__ = ["api", "heard", "laptop", "new_server", "prefect_api"]

# The resource


def another(made: Made, **members: Any) -> AutomationCore:
    kept = made.model_dump(include={"name", "trigger", "actions"})
    return AutomationCore.model_validate({**kept, **members})


def twice(api: SyncPrefectClient, made: Made) -> None:
    api.create_automation(another(made))


def disabled(api: SyncPrefectClient, made: Made) -> None:
    api.pause_automation(made.id)


def with_another_action(api: SyncPrefectClient, made: Made) -> None:
    api.update_automation(made.id, another(made, actions=[DoNothing()]))


def narrowed(api: SyncPrefectClient, made: Made) -> None:
    trigger = {**made.trigger.model_dump(), "match": {"prefect.resource.id": "prefect.flow-run.0"}}
    api.update_automation(made.id, another(made, trigger=trigger))


SPOILED = [
    (twice, "copies"),
    (disabled, "enabled"),
    (with_another_action, "actions"),
    (narrowed, "trigger.match"),
]


@pytest.mark.parametrize("kind", ["zombies", "failures"])
def test_an_automation_is_made_once_named_when_changed_by_hand_and_healed(
    laptop: SyncPrefectClient, kind: str
) -> None:
    knows(str(laptop.api_url), CustomWebhookNotificationBlock)
    saved("http://127.0.0.1:1/")
    automation = {
        "zombies": zombies(lambda: laptop, 540),
        "failures": failures(
            lambda: laptop, "notify-prefect-1", "prefect-1", ["check-health"], BLOCK
        ),
    }[kind]
    heals(automation, [*automation.desired()])
    for spoil, attribute in SPOILED:
        [made] = laptop.read_automations_by_name(automation.automation)
        spoil(laptop, made)
        heals(automation, [attribute])
    [made] = laptop.read_automations_by_name(automation.automation)
    laptop.delete_automation(made.id)


def test_a_notification_through_a_block_that_is_gone_is_healed(laptop: SyncPrefectClient) -> None:
    automation = failures(lambda: laptop, "notify-gone", "gone", ["check-health"], BLOCK)
    knows(str(laptop.api_url), CustomWebhookNotificationBlock)
    saved("http://127.0.0.1:1/")
    heals(automation, [*automation.desired()])
    laptop.delete_block_document(laptop.read_block_document_by_name("alerts", "custom-webhook").id)
    assert named(automation) == ["actions"]
    with pytest.raises(Final, match=f"no block {BLOCK}"):
        reconcile(automation, apply=True)
    saved("http://127.0.0.1:1/")
    heals(automation, ["actions"])


# What they do


def running(api: SyncPrefectClient, flow: str, deployment: str) -> uuid.UUID:
    """A run of that deployment."""
    made = api.create_deployment(
        flow_id=api.create_flow_from_name(flow), name=deployment, entrypoint="a.b"
    )
    run = api.create_flow_run_from_deployment(made)
    api.set_flow_run_state(run.id, Running(), force=True)
    return run.id


def test_a_run_of_ours_that_never_starts_has_crashed_and_nobody_elses(
    api: SyncPrefectClient,
) -> None:
    automation = strays(lambda: api, "prefect-1", 10)
    reconcile(automation, apply=True)
    ours, other, started, submitted = (
        running(api, "check-health", name)
        for name in ("prefect-1", "etl", "prefect-1", "prefect-1")
    )
    for run in (ours, other, started):
        api.set_flow_run_state(run, Pending(), force=True)
    api.set_flow_run_state(submitted, Submitting(), force=True)  # and its worker is gone
    api.set_flow_run_state(started, Running(), force=True)

    def name(run: uuid.UUID) -> str | None:
        state = api.read_flow_run(run).state
        return state.name if state else None

    wait(lambda: {name(ours), name(submitted)} == {"Crashed"}, 40)
    assert (name(other), name(started)) == ("Pending", "Running")
    api.delete_automation(api.read_automations_by_name(automation.automation)[0].id)


def test_a_run_whose_heartbeats_stop_has_crashed_and_no_other(api: SyncPrefectClient) -> None:
    automation = zombies(lambda: api, 10)
    reconcile(automation, apply=True)
    silent, alive = (running(api, "long", f"long-{uuid.uuid4()}") for _ in range(2))

    def beat(run: uuid.UUID) -> None:
        labels = {"prefect.resource.id": f"prefect.flow-run.{run}"}
        event = Event(event="prefect.flow-run.heartbeat", resource=Resource(labels))
        api.request("POST", "/events", json=[event.model_dump(mode="json")])

    def told(run: uuid.UUID) -> tuple[str | None, str | None]:
        state = api.read_flow_run(run).state
        assert state
        return state.name, state.message

    def crashed() -> bool:
        beat(alive)
        return told(silent)[0] == "Crashed"

    beat(silent)
    wait(crashed, 40)
    said = "No heartbeat for 10 s: its process, or the machine, is gone."
    assert told(silent) == ("Crashed", said)
    assert told(alive)[0] == "Running"
    api.delete_automation(api.read_automations_by_name(automation.automation)[0].id)


@pytest.mark.parametrize("state", ["Healthy", "Unhealthy", "Completed", "Suspended"])
def test_a_run_that_has_ended_under_any_name_or_is_suspended_needs_no_heartbeat(state: str) -> None:
    """As the server judges it, which knows runs by the names of their states only."""

    def never() -> SyncPrefectClient:
        raise AssertionError

    trigger = EventTrigger.model_validate(zombies(never, 540).trigger.model_dump())
    assert trigger.starts_after("prefect.flow-run.heartbeat")
    assert trigger.expects(f"prefect.flow-run.{state}")
    assert not trigger.starts_after(f"prefect.flow-run.{state}")


def test_a_check_that_failed_is_told_through_the_copy_of_the_laptops_block(
    laptop: SyncPrefectClient, api: SyncPrefectClient, heard: tuple[str, list[str]]
) -> None:
    url, told = heard
    knows(str(laptop.api_url), CustomWebhookNotificationBlock)
    saved(url)
    reconcile(NotificationBlock(lambda: api, lambda: laptop, BLOCK), apply=True)
    automation = failures(lambda: api, "notify", "prefect-1", ["check-health"], BLOCK)
    reconcile(automation, apply=True)

    def ended(flow: str, deployment: str, state: State[Any]) -> None:
        api.set_flow_run_state(running(api, flow, deployment), state, force=True)

    ended("check-health", "prefect-2", Failed(name="Unhealthy", message="another's"))
    ended("etl", "prefect-1", Failed(message="a person's own"))
    ended("check-health", "prefect-1", Completed(name="Degraded", message="disk: 8 %"))
    ended("check-health", "prefect-1", Failed(name="Unhealthy", message="disk: 1 %"))
    wait(lambda: len(told) == 1)
    ended("check-health", "prefect-1", Failed(name="Unhealthy", message="disk: still 1 %"))
    ended("check-health", "prefect-1", Crashed(message="killed"))
    wait(lambda: len(told) == 2)
    assert told == [
        f"prefect-1: check-health ended as Unhealthy: disk: 1 % [{SECRET}]",
        f"prefect-1: check-health ended as Crashed: killed [{SECRET}]",
    ]


def test_nobody_is_told_unless_the_spec_names_a_block() -> None:
    def never() -> SyncPrefectClient:
        raise AssertionError

    def made(notify: str) -> list[str]:
        return [
            each.name for each in Server(spec(notify=notify), SECRETS).notifications(never, never)
        ]

    assert made("") == []
    assert made(BLOCK) == [
        f"notification block {BLOCK}", "automation notify-self-check", "automation notify-prefect-1",
    ]  # fmt: skip
