"""A flow from the command line: servers by their names, with their specs in prefect.yaml.

Several servers go side by side in one process, for Prefect takes a second to import.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow, State, get_client
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.errors import BootstrapError
from flows.project import spec_in
from flows.spec import ServerSpec

Ended = tuple[ServerSpec, State[Any]]


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """With the options that all have: the servers, and the way to them."""
    found = argparse.ArgumentParser(
        prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--server", required=True, nargs="+", metavar="NAME", help="their names, such as prefect-1"
    )
    found.add_argument("--target", default="gcp", help="the ServerTarget block (default gcp)")
    return found


def ended(
    flow: Flow[..., State[Any]], names: Sequence[str], target: str, **more: Any
) -> list[Ended]:
    """How a flow ended for each server. Raises BootstrapError, httpx.HTTPError."""
    specs = [spec_in(Path("prefect.yaml"), name) for name in dict.fromkeys(names)]
    with get_client(sync_client=True) as client:
        client.api_version()

    def run(spec: ServerSpec) -> State[Any]:
        # Who has started it sees its end. Heartbeats are for others, and to stop them takes a second.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            state: State[Any] = flow(spec, target, return_state=True, **more)
        return state

    if len(specs) == 1:  # in the main thread a flow can be interrupted, and has its time limit
        return [(specs[0], run(specs[0]))]
    with ThreadPoolExecutor(len(specs)) as pool:
        return list(zip(specs, pool.map(run, specs), strict=True))


def status(found: Sequence[Ended], codes: Mapping[str, int]) -> int:
    """Say how each ended; the exit status: 0, unless one of them has another. ``codes``: by the name
    of the state; one that is not there is a failure, 1, which comes first."""
    for spec, state in found:
        out = sys.stdout if state.name in codes else sys.stderr
        print(f"{spec.name}: {state.name}: {state.message}", file=out)
    got = {codes.get(str(state.name), 1) for _, state in found}
    return 1 if 1 in got else max(got)


def explained(main: Callable[[], int]) -> int:
    """The exit status of ``main``, with which the process ends; an error is a line, and 1."""
    try:
        return main()
    except httpx.HTTPError as error:
        print(f"Prefect does not answer ({error}): set PREFECT_API_URL", file=sys.stderr)
    except (BootstrapError, OSError) as error:
        print(error, file=sys.stderr)
    finally:
        gc.freeze()  # Python would look for garbage in all that was imported: most of a second
    return 1
