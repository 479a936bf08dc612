"""Transcriptions that outlast a connection and a restart.

`service.Jobs` accepts, finds, cancels and removes jobs; `store` keeps them in SQLite, `runner`
works on them, `webhooks` reports their end, and `job` holds their values and what clients see of
them. Imports `pipeline` and `formats`; knows nothing of HTTP requests.
"""
