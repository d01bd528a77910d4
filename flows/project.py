"""The spec of a server, as ``prefect.yaml`` has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.utilities.templating import apply_values
from pydantic import ValidationError

from flows.errors import Final
from flows.spec import ServerSpec

DRIFT = "flows.drift.check_drift"


def spec_in(file: Path, server: str) -> ServerSpec:
    """The spec that the deployment of check-drift for ``server`` has, with the values of the
    environment that ``prefect deploy`` would put in. Raises Final."""
    if not file.exists():
        raise Final(f"There is no {file} here.", repair="Run it in the project's own folder.")
    found: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
    deployments = [d for d in found.get("deployments", ()) if d.get("entrypoint") == DRIFT]
    specs = {d["name"]: d["parameters"]["server"] for d in deployments}
    if server not in specs:
        raise Final(
            f"There is no server {server} in {file}.",
            repair=f"Pass --server with one of: {', '.join(specs) or 'none is there'}.",
        )
    try:
        return ServerSpec.model_validate(apply_values(specs[server], {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = str(first["msg"]).removeprefix("Value error, ")
        raise Final(f"{file}: {server}: {where}: {said}.") from None
