"""The far end as a program.

`receive TARGET IDLE WHO keep|replace [BASIS…]`, `send SOURCE IDLE`, `release ROOT ID`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys

from lean.transfer.channel import Channel, ChannelError, Refused
from lean.transfer.receive import Target, receive
from lean.transfer.release import release_state
from lean.transfer.send import Source, send


def main(argv: list[str]) -> int:
    """Hold one conversation on standard input and output, or answer one question.

    0: done; 8: refused, as the other end was told; 3: cut.
    """
    os.umask(0o077)
    if argv[0] == "release":
        print(json.dumps(release_state(argv[1], argv[2])))
        return 0
    verb, path, idle_s, *rest = argv
    channel = Channel(0, 1, idle_s=float(idle_s))
    try:
        if verb == "receive":
            who, loss, *basis = rest
            target = Target(path=path, who=who, replace=loss == "replace", basis=tuple(basis))
            receive(channel, target)
        else:
            _send(channel, path)
    except Refused:
        return 8
    except ChannelError as error:
        print(f"lean.transfer: {error}", file=sys.stderr)
        return 3
    return 0


def _send(channel: Channel, path: str) -> None:
    try:
        source = Source.of(path)
    except Refused as error:
        channel.send(error.document())
        channel.flush()
        raise
    send(channel, source, rsync=shutil.which("rsync") is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
