"""Model directories: bringing them to the host (`fetch`) and saying what they hold (`probe`).

A snapshot lies in `models/<org>__<name>/<revision>/` and is complete when its `fetch.json` is there. The
sources are `huggingface`, `modelscope` and `directory`; a hub's client library is imported only where that
hub is talked to.
"""
