"""The laptop's side, downward: tasks, appliance, host, transfer, ssh, loopback.

It meets models only through argv, JSON and contracts.
"""
