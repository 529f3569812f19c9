"""The local page: hosts, one operation at a time, two systems side by side, and the history of runs."""
