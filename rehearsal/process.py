"""Running the host's commands."""

from __future__ import annotations

import asyncio


class CommandFailed(Exception):
    """A command of the host failed; the message has its arguments and the end of its stderr."""


async def run(*argv: str, stdin: str = "", seconds: float = 60) -> str:
    """Standard output of a command. Raises CommandFailed when it fails or takes too long."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), seconds)
    except TimeoutError:
        process.kill()
        raise CommandFailed(f"{' '.join(argv)}: no end after {seconds:.0f} s") from None
    if process.returncode:
        tail = err.decode(errors="replace").strip()[-2000:]
        raise CommandFailed(f"{' '.join(argv)}: exit {process.returncode}: {tail}")
    return out.decode(errors="replace")
