"""Background transcriptions that survive disconnects and restarts.

`service.Jobs` accepts, finds, cancels and removes jobs; `store` persists them, in SQLite
(`sqlite_store`) or, for several servers, in PostgreSQL (`postgres_store`), with their recordings in
`recordings`; `runner` processes them, `webhooks` reports their end, and `job` holds their values
and their JSON. Imports `pipeline` and `formats`; does not depend on HTTP requests.
"""
