"""Automations of a Prefect server, and the notification block that some of them speak through.

Prefect makes another automation at every create, even of the same name: it is read first. A run is
told by the event of its state change, which the server itself emits: nothing has to work on the side
of the run. Its name cannot be relied on (a failed run may be called Unhealthy), its type can.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import BlockDocumentCreate, BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument, StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Automation as Made
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from flows.errors import Final
from flows.reconcile import Change, State
from flows.resources.orchestration import Api

RUNS = "prefect.flow-run.*"
REMINDER = timedelta(hours=1)
"""A failure that lasts is told again after this time."""
SAME = "as on the laptop"


@dataclass(frozen=True)
class Message:
    """A notification through ``block``, written as type/name; subject and body are Jinja."""

    block: str
    subject: str
    body: str


@dataclass(frozen=True)
class Automation:
    """One action that a server takes when its trigger fires."""

    api: Api = field(repr=False)
    automation: str
    trigger: EventTrigger
    action: ChangeFlowRunState | Message

    @property
    def name(self) -> str:
        return f"automation {self.automation}"

    def desired(self) -> State:
        wanted = [_plain(self.action)]
        return {"enabled": True, "copies": 1, **_parts(self.trigger), "actions": _text(wanted)}

    def read(self) -> State | None:
        made = self._made()
        if not made:
            return None
        first, actions = made[0], [_plain(self._by_name(each)) for each in made[0].actions]
        parts, copies = _parts(first.trigger), len(made)
        return {"enabled": first.enabled, "copies": copies, **parts, "actions": _text(actions)}

    def apply(self, changes: tuple[Change, ...]) -> None:
        wanted = AutomationCore(
            name=self.automation,
            description="Made by prefect-bootstrap: a change made here is drift.",
            enabled=True,
            trigger=self.trigger,
            actions=[self._action()],
        )
        api, made = self.api(), self._made()
        if not made:
            api.create_automation(wanted)
        for index, each in enumerate(made):
            if index:
                api.delete_automation(each.id)
            else:
                api.update_automation(each.id, wanted)

    def _made(self) -> list[Made]:
        """All of that name; the one changed last is first."""
        return self.api().read_automations_by_name(self.automation)

    def _action(self) -> ActionTypes:
        if not isinstance(self.action, Message):
            return self.action
        if (block := _document(self.api(), self.action.block)) is None:
            raise Final(
                f"There is no block {self.action.block}.",
                repair="Make it in the laptop's UI under Blocks, or correct notify in the spec.",
            )
        return SendNotification(
            block_document_id=block.id, subject=self.action.subject, body=self.action.body
        )

    def _by_name(self, action: ActionTypes) -> ActionTypes | Message:
        """A notification with its block by name: an id says nothing, and "" is a block that is gone."""
        if not isinstance(action, SendNotification):
            return action
        block = ""
        with suppress(ObjectNotFound):
            found = self.api().read_block_document(action.block_document_id, include_secrets=False)
            block = f"{found.block_type.slug if found.block_type else ''}/{found.name}"
        return Message(block, action.subject, action.body)


@dataclass(frozen=True)
class NotificationBlock:
    """The copy of a notification block of the laptop's server.

    Its values are secrets: they go from one API to the other, and no state and no error has them.
    """

    api: Api = field(repr=False)
    laptop: Api = field(repr=False)
    block: str
    """Written as type/name, such as slack-webhook/alerts."""

    @property
    def name(self) -> str:
        return f"notification block {self.block}"

    def desired(self) -> State:
        return {"values": SAME}

    def read(self) -> State | None:
        """Raises Final when there is nothing on the laptop to compare with."""
        original = self._original()
        copy = _document(self.api(), self.block)
        if copy is None:
            return None
        return {"values": SAME if copy.data == original.data else "others"}

    def apply(self, changes: tuple[Change, ...]) -> None:
        api, data = self.api(), self._original().data
        slug, _, name = self.block.partition("/")
        try:
            if copy := _document(api, self.block):
                update = BlockDocumentUpdate(data=data, merge_existing_data=False)
                return api.update_block_document(copy.id, update)
            kind = api.read_block_type_by_slug(slug)
            schema = api.get_most_recent_block_schema_for_block_type(kind.id)
            assert schema, "a type comes with its schema"  # noqa: S101 - Prefect's own promise
            new = BlockDocumentCreate(
                name=name, data=data, block_type_id=kind.id, block_schema_id=schema.id
            )
            api.create_block_document(new)
        except ObjectNotFound:
            raise Final(
                f"The server does not know blocks of the type {slug}.",
                repair="Use a type that Prefect brings itself, such as slack-webhook.",
            ) from None
        except PrefectHTTPStatusError as error:  # its text repeats the values
            said = f"The server refuses block {self.block}: HTTP {error.response.status_code}."
            raise Final(said, repair="Make the block anew on the laptop.") from None

    def _original(self) -> BlockDocument:
        found = _document(self.laptop(), self.block)
        if found is None:
            raise Final(
                f"There is no block {self.block} on the laptop's server.",
                repair="Make it in the laptop's UI under Blocks, or correct notify in the spec.",
            )
        if not (found.block_schema and "notify" in found.block_schema.capabilities):
            raise Final(
                f"Block {self.block} cannot notify.",
                repair="Name one that can in the spec, such as slack-webhook/alerts.",
            )
        return found


def zombies(api: Api, silence: int) -> Automation:
    """A run whose heartbeats have stopped for so many seconds has crashed."""
    said = f"No heartbeat for {silence} s: its process, or the machine, is gone."
    return _silent(api, "crash-silent-runs", {"prefect.flow-run.heartbeat"}, silence, said)


def strays(api: Api, deployment: str, seconds: int) -> Automation:
    """A run of the deployment that has been pending for so long, or being submitted, has crashed: it
    was cut off before its first heartbeat. Only of ours, for others may wait for a machine to be made.
    """
    said = f"Pending for {seconds} s: the worker, or the machine, is gone."
    ours = {"prefect.resource.role": "deployment", "prefect.resource.name": deployment}
    pending = {"prefect.flow-run.Submitting", "prefect.flow-run.Pending"}
    return _silent(api, "crash-stray-checks", pending, seconds, said, ours)


def _silent(
    api: Api,
    name: str,
    after: set[str],
    seconds: int,
    said: str,
    related: dict[str, Any] | None = None,
) -> Automation:
    """Any other event of the run ends the wait, so that one that has ended, under whatever name, or
    is suspended is left alone; the next such event begins another one."""
    trigger = EventTrigger(
        match={"prefect.resource.id": RUNS},
        match_related=related or {},
        after=after,
        expect={RUNS},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    return Automation(api, name, trigger, ChangeFlowRunState(state=StateType.CRASHED, message=said))


def failures(api: Api, name: str, deployment: str, flows: Sequence[str], block: str) -> Automation:
    """Who is told through ``block`` when a run of the flows, as deployed under this name, has
    failed or crashed; once an hour for each flow and state."""
    return Automation(
        api,
        name,
        EventTrigger(
            match={"prefect.resource.id": RUNS, "prefect.state-type": ["FAILED", "CRASHED"]},
            match_related=[
                {"prefect.resource.role": "flow", "prefect.resource.name": [*flows]},
                {"prefect.resource.role": "deployment", "prefect.resource.name": deployment},
            ],
            expect={RUNS},
            for_each={"related:flow:prefect.resource.name", "prefect.state-name"},
            posture=Posture.Reactive,
            threshold=1,
            within=REMINDER,
        ),
        Message(
            block,
            f"{deployment}: {{{{ flow.name }}}} ended as {{{{ event.resource['prefect.state-name'] }}}}",
            "{{ event.resource['prefect.state-message'] }}",
        ),
    )


def _document(api: SyncPrefectClient, block: str) -> BlockDocument | None:
    """A block with its values."""
    slug, _, name = block.partition("/")
    try:
        return api.read_block_document_by_name(name, slug)
    except ObjectNotFound:
        return None


def _plain(action: ActionTypes | Message) -> dict[str, Any]:
    return asdict(action) if isinstance(action, Message) else action.model_dump(mode="json")


def _parts(trigger: Any) -> dict[str, str]:
    """All of a trigger: what somebody has added may keep it from firing."""
    parts = trigger.model_dump(mode="json", exclude={"id"})
    return {f"trigger.{key}": _text(value) for key, value in parts.items()}


def _text(value: Any) -> str:
    """For people and for comparison: a set has no order, so lists of words get one."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(sorted(value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
