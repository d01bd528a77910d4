"""Make the machine of a spec as the flows' cloud stage does, and wait until it answers SSH.

``python -m tests.bench.machine FOLDER`` reads the spec, as JSON, from stdin. The folder gets what
others need to log in: ``key``, ``token`` and ``ssh_config``.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from blocks.compute import Run
from blocks.secrets import read_secrets
from flows.catalog import STAGES, Server
from flows.reach import Reach, reached
from flows.reconcile import reconcile
from flows.spec import ServerSpec
from flows.stages import steps

CONFIG = """\
Host {spec.name}
    User {spec.machine.ssh_user}
    IdentityFile {folder}/key
    IdentitiesOnly yes
    ProxyCommand {python} -m blocks.iap {spec.project} {spec.zone} %h 22
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""


def main(folder: Path) -> None:
    spec = ServerSpec.model_validate_json(sys.stdin.read())
    with Reach(spec, reached("gcp"), read_secrets(spec), Run(uuid.uuid4())) as reach:
        for step in steps(Server(spec, reach.secrets), reach):
            if step.stage == STAGES[0]:
                reconcile(step.resource, apply=True)
        key = reach.target.ssh_private_key.get_secret_value()
        for name, secret in {"key": key, "token": reach.target.token()}.items():
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(secret)
        text = CONFIG.format(spec=spec, folder=folder, python=sys.executable)
        (folder / "ssh_config").write_text(text)
        reach.ssh()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
