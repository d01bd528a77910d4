"""How to reach things: clients, tunnels and shells as Prefect blocks.

``prefect block register -m blocks`` finds ``ServerTarget`` here, and only then is it imported: it
needs prefect-gcp, which takes seconds to import and is not on the server.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blocks.target import ServerTarget

__all__ = ["ServerTarget"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> "type[ServerTarget]":
    if name != "ServerTarget":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from blocks.target import ServerTarget

    return ServerTarget
