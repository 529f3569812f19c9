"""The embedded host `loopback`: an SSH server on 127.0.0.1 with keys of its own."""
