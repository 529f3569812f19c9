"""Copies between this machine and a host: whole or not at all."""
