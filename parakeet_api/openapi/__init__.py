"""The running server described as an OpenAPI document.

`document` builds it from the operations, whose shared parts are in `parts`. `schemas` publishes the
types of JSON bodies, `json_schema` helps to write schemas by hand, `examples` renders one real
transcript. Imports what it describes: `formats`, `jobs`, `settings`, `errors`.
"""
