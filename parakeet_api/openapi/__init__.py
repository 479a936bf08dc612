"""The running server described as an OpenAPI document.

`document` puts it together from the operations, `schemas` of all JSON bodies, `examples` that are
rendered from one real transcript, and `parts` that operations share. It imports what it describes
and does no I/O.
"""
