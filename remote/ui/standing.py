"""How far a soak is, asked of its host: an operation like any other, for a look beside one would be in it."""

from __future__ import annotations

from typing import Any

from lean.errors import NotReadyError
from remote.ui.child import Child, Ended, Patience
from remote.ui.choices import Commands, Order
from remote.ui.desk import Desk
from remote.ui.soak_progress import from_standing
from remote.ui.soaks import judged_arms


class Standings:
    """Asks hosts with `remote.soak --show`."""

    def __init__(self, commands: Commands, desk: Desk, patience: Patience | None = None) -> None:
        self._commands = commands
        self._desk = desk
        self._patience = patience or Patience(interrupt=5.0)

    async def ask(self, order: Order) -> dict[str, Any]:
        """Progress, and what would be said of each arm now.

        Errors: `PreflightError` while another operation lives, `NotReadyError` with what the verb said.
        """
        look = _Look()
        async with self._desk.hold(order, look.stop):
            argv = self._commands.argv(order.words)
            ended = await look.run(argv, self._commands, self._patience)
            if ended.exit_code != 0 and not look.stopped:
                raise NotReadyError(ended.message)
        if ended.exit_code != 0:
            raise NotReadyError("cancelled; where the soak is was not learnt")
        told = from_standing(ended.document)
        return {"host": order.host, "plan": order.plan, "progress": told, "arms": judged_arms(ended.document)}


class _Look:
    """One child that can be stopped before it has started, too."""

    def __init__(self) -> None:
        self.stopped = False
        self._child: Child | None = None

    async def run(self, argv: list[str], commands: Commands, patience: Patience) -> Ended:
        self._child = await Child.start(argv, commands.folder, patience=patience)
        return await (self._child.stop() if self.stopped else self._child.ended())

    async def stop(self) -> None:
        self.stopped = True
        if self._child is not None:
            await self._child.stop()
