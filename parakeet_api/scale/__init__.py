"""Recognition on a Ray cluster, for servers that have outgrown one machine.

`cluster` connects this process to it, `deployment` describes a model's replicas to Ray Serve,
`replica` is what runs in each of them, and `remote_recognizer` is the `Recognizer` of a server
without a model of its own. Imports `model`; imports Ray inside functions, and only if `RAY_ADDRESS`
is set.
"""
