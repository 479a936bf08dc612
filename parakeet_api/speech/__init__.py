"""Pure functions of speech: cut a recording into chunks, merge the words of chunks.

`chunking.plan_chunks` cuts PCM at silences; `stitching.Stitcher` merges the words of overlapping
chunks; `speech_gate` drops hallucinated words; `holes` decodes speech again that the model skipped;
both use `activity`, which measures where speech is; `segmentation` groups words into sentences;
`language_detection` detects their language.

Who spoke: `diarization` is the interface of a model that tells voices apart, `speaker_hearing` lets
it hear a recording, `speakers` gives each word its speaker, `speaker_segments` groups the words of
voices or channels. `assembly` puts the words of chunks together, with speakers or without. Imports
`settings` and `transcript`; no model, no I/O.
"""
