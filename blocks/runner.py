"""What runs on the machine: commands from stdin as JSON, their results to stdout as JSON.

Sent whole, before the request: standard library only, Python 3.9 on. Request: {"together": bool,
"commands": [{"argv", "stdin", "bytes", "seconds", "cwd"}]}; answer: a list of {"code", "stdout",
"stderr"}, in order. One after the other, it ends at the first that fails; its result is then the last
one. ``code`` is 124 when ``seconds`` have passed, 127 when there is no such command, and negative
after a signal. What ``bytes`` counts follows the request, for each command that has it in turn: that
is then its stdin.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

KEPT = 1_000_000  # characters of an output; its end counts
CHUNK = 1 << 20


def run(command: dict[str, Any]) -> dict[str, Any]:
    if not command["bytes"]:
        return execute(command, subprocess.PIPE)
    with tempfile.TemporaryFile() as stdin:
        receive(stdin, command["bytes"])
        stdin.seek(0)
        return execute(command, stdin)


def receive(file: IO[bytes], left: int) -> None:
    """As many bytes of our stdin; fewer when it ends, which the command then has to notice."""
    while left and (chunk := sys.stdin.buffer.read(min(left, CHUNK))):
        left -= file.write(chunk)


def execute(command: dict[str, Any], stdin: Any) -> dict[str, Any]:
    try:
        process = subprocess.Popen(
            command["argv"],
            cwd=command["cwd"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return {"code": 127, "stdout": "", "stderr": str(error)}
    code = 0
    try:
        output = process.communicate(command["stdin"].encode(), timeout=command["seconds"])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()
        code = 124
    stdout, stderr = (text.decode(errors="replace")[-KEPT:] for text in output)
    if code:
        stderr += "\nnot done after {:g} s".format(command["seconds"])
    return {"code": code or process.returncode, "stdout": stdout, "stderr": stderr}


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    commands = request["commands"]
    if request["together"]:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(run, commands))
    else:
        results = []
        for command in commands:
            results.append(run(command))
            if results[-1]["code"]:
                break
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
