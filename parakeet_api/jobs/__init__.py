"""Background transcriptions that survive disconnects and restarts.

`service.Jobs` accepts, finds, cancels and removes jobs; `store` persists them in SQLite, `runner`
processes them, `webhooks` reports their end, and `job` holds their values and their JSON. Imports
`pipeline` and `formats`; does not depend on HTTP requests.
"""
