"""The laptop's side: hosts, connections, transfers, jobs, and the verbs. It knows nothing of models."""
