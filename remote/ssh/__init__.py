"""Reaching a host as OpenSSH would: resolution, keys, commands, forwards."""
