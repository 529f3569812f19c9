"""The local page as a verb."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lean.errors import PreflightError
from remote.console import Console
from remote.tasks.verb import verb, whole_number

if TYPE_CHECKING:
    from remote.ui.guard import Keys


@verb(port="of this machine's 127.0.0.1; a free one when left out", open="open it in a browser")
def ui(console: Console, port: int = 0, open: bool = True) -> None:
    """Serve the local page until Ctrl-C: hosts, measuring, two systems side by side, history of runs."""
    try:
        from remote.ui.server import open_browser, serve_page
    except ImportError as error:
        raise PreflightError(
            f"the page needs {error.name}; run: pip install -c constraints.txt -e .[ui]"
        ) from None

    def ready(keys: Keys) -> None:
        def show() -> None:
            console.line(keys.url)
            console.line("the address holds this start's token; Ctrl-C ends the page")

        console.result({"url": keys.url, "port": keys.port}, show)
        if open:
            open_browser(keys)

    serve_page(ready, port=whole_number("--port", port) or 0)
    console.line("the page has ended; nothing of it is left running")
