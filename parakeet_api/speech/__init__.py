"""Pure functions of speech: cut a recording into chunks, merge the words of chunks.

`chunking.plan_chunks` cuts PCM at silences; `stitching.Stitcher` merges the words of overlapping
chunks; `speech_gate` drops hallucinated words; `holes` decodes speech again that the model skipped;
both use `activity`, which measures where speech is; `keyword_choice` merges the plain and the
boosted transcript of a chunk; `segmentation` groups words into sentences; `language_detection`
detects their language.

Speakers: `diarization` is the interface of a diarizer, `speaker_hearing` feeds it a recording,
`speakers` assigns a speaker to each word, `speaker_segments` groups the words of speakers or
channels. `assembly` joins the words of chunks, with speakers or without. Imports `keywords`,
`settings` and `transcript`; no model, no I/O.
"""
