"""The detached job runner on the host: `python -m lean.jobs`. Standard library only.

`launch` starts a job in its own session, `supervisor` is the process that stays with it, `store` holds its
files, `process` knows a process from a stranger with the same number, `control` observes, stops and cleans.
"""

from lean.jobs.control import JobTail, clean, list_jobs, observe, stop, tail
from lean.jobs.launch import JobRequest, start
from lean.jobs.store import FINISHED, JobStatus, JobStore, State

__all__ = [
    "FINISHED",
    "JobRequest",
    "JobStatus",
    "JobStore",
    "JobTail",
    "State",
    "clean",
    "list_jobs",
    "observe",
    "start",
    "stop",
    "tail",
]
