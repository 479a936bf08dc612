"""What is pure about speech: where to cut a recording, and how words of chunks become a transcript.

`chunking.plan_chunks` cuts PCM at silences, `stitching.Stitcher` joins the words of overlapping
chunks, `speech_gate` drops words that a model imagined, `holes` decodes again what it skipped, and
both ask `activity` where speech is; `segmentation` makes sentences, and `language_detection` names
their language. Imports `settings` and `transcript`; no model, no I/O.
"""
