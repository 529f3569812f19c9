"""What every test process starts from."""

from __future__ import annotations

import signal

# ssh ends its gateway with SIGHUP. Under nohup, and some CI runners, that is ignored: the gateway would stay.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
