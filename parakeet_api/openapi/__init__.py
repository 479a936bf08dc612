"""Describe the running server as an OpenAPI document.

`document` builds it from the operations, whose shared parts are in `parts`. `schemas` publishes the
types of JSON bodies, `json_schema` has helpers for handwritten schemas, `examples` renders one real
transcript, `speaker_fields` describes the form fields about speakers. Imports what it describes:
`formats`, `jobs`, `settings`, `errors`.
"""
