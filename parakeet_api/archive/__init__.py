"""`app.py archive`: transcribe a whole archive with a pool of workers on Ray.

`files` reads recordings and writes transcripts, in folders and at other `fsspec` addresses,
`manifest` remembers what is done, `worker` is what each process of the pool does, and `run` hands
out the files with Ray Data and reports. Imports `served_models` and `formats`.
"""
