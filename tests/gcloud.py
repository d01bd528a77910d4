"""What Google's own linter says of gcloud commands; nothing is called."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def linted(lines: Sequence[str], folder: Path) -> list[str]:
    """The errors in the commands. The linter makes the files that options name, in ``folder``."""
    (folder / "lines.json").write_text(json.dumps([{"command_string": line} for line in lines]))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", "--commands-file=lines.json"],
        cwd=folder,
        env={**os.environ, "CLOUDSDK_CONFIG": str(folder / "config")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == len(lines)
    return [each["error_message"] for each in answers if not each["success"]]
