"""Pure functions of speech: cut a recording into chunks, merge the words of chunks.

`chunking.plan_chunks` cuts PCM at silences; `stitching.Stitcher` merges the words of overlapping
chunks; `speech_gate` drops hallucinated words; `holes` decodes speech again that the model skipped;
both use `activity`, which measures where speech is; `segmentation` groups words into sentences;
`language_detection` detects their language. Imports `settings` and `transcript`; no model, no I/O.
"""
