"""Bringing files to a host without internet: the laptop downloads them in chunks and streams them on.

`send` runs on the laptop: it lists, downloads ahead into a bounded spool, and answers what the host asks
for. `take` runs on the host: it stages, hashes and names the files, as a fetch there would have. Both legs go
on where they stopped; no leg ever joins bytes of two versions.
"""
