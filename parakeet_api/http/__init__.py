"""HTTP: from the socket to a route and back.

`server` is waitress with limits and a graceful stop, `upload_form` parses a body while it arrives,
`web` holds what every request passes (key, admission, log, errors), and each `*_routes` module is
one API on top of it. `clip_front`, `clip_link` and `clip_desk` receive short clips in processes of
their own. Imports everything else, and nothing imports this package but `app.py`.
"""
