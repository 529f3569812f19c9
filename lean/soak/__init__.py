"""The soak: arms and phases, hour after hour, resumable, and a verdict by rules that were fixed before.

`lean.contracts.soak` is the plan; `data`, `tasks`, `conversations` and `workload` what is asked, `rows` what
one request left, `state` the folder that survives a reboot. `engine` is an arm that serves; `perturb`,
`proxy`, `control` and `controlled` make one that is damaged on purpose. `phases` is one replay, `run` the
order of it all; `summary`, `coherence` and `verdict` judge, `report` and `plots` show, `finish` and `record`
keep.
"""
