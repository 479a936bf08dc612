"""HTTP: from the socket to a route and back.

`server` sets up waitress (`waitress_internals`), which calls the application when the head of a
request has been read. Key, rate limit and queue are checked (`auth`, `rate_limits`, `admission`);
then `received_form` reads the body (`request_body`) while it arrives and writes its files once
(`upload_form`). Each `*_routes` module is one API; `streamed_transcription` is one streamed answer.
`clip_front`, `clip_link` and `clip_desk` receive short clips in processes of their own.

Imports all other packages; nothing but `app.py` imports this one.
"""
