"""Open a tunnel to a server and leave it open until Ctrl-C.

    python -m flows.connect --server prefect-1 [--port 4201]

The spec is that of the deployment ``bootstrap-server/<server>`` on the laptop's Prefect server.
"""

from __future__ import annotations

import argparse
import signal
import sys
import uuid
from argparse import RawDescriptionHelpFormatter

import httpx
from prefect import get_client
from prefect.exceptions import ObjectNotFound

from blocks.compute import Run
from blocks.secrets import read_secrets
from flows.errors import BootstrapError
from flows.reach import Reach, reached
from flows.spec import ServerSpec

PORT = 4201  # 4200 is where the laptop's own server is


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        "python -m flows.connect", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", required=True, help="its name, such as prefect-1")
    parser.add_argument("--port", type=int, default=PORT, help=f"of this machine (default {PORT})")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _connect(f"bootstrap-server/{args.server}", args.port)
    except KeyboardInterrupt:
        return 0
    except ObjectNotFound:
        return _refuse(f"there is no server {args.server} in prefect.yaml: prefect deploy --all")
    except httpx.HTTPError as error:
        return _refuse(f"the laptop's Prefect does not answer ({error}): set PREFECT_API_URL")
    except BootstrapError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"port {args.port}: {error.strerror}; choose another with --port")


def _connect(deployment: str, port: int) -> int:
    """Forward the port until the connection ends; the exit status."""
    with get_client(sync_client=True) as client:
        parameters = client.read_deployment_by_name(deployment).parameters
    spec = ServerSpec.model_validate(parameters["server"])
    target, secrets = reached(parameters["target"]), read_secrets(spec)
    with (
        Reach(spec, target, secrets, Run(uuid.uuid4()), waits=False) as reach,
        reach.ssh().forward(spec.server.port, port),
    ):
        print(f"http://127.0.0.1:{port} is {spec.name}; Ctrl-C closes it.", flush=True)
        reach.ssh().wait()
    return _refuse("the connection was lost; open it again")


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
