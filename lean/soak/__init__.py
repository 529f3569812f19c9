"""The soak: arms and phases, hour after hour, resumable, and a verdict by rules that were fixed before.

`lean.contracts.soak` is the plan; `data`, `tasks` and `conversations` what is asked, `rows` what one request
left, `state` the folder that survives a reboot, `engine` an arm that serves; `perturb`, `controlled`,
`control` and `proxy` one that is damaged on purpose; `phases` one pass, `run` the order of it all; `summary`,
`coherence` and `verdict` judge, `report` and `plots` show.
"""
