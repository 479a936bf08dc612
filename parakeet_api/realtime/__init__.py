"""Live transcription: sound comes bit by bit, and words go out while they are spoken.

The events are those of OpenAI's Realtime API; how they reach a client is `http`'s. Imports from
`speech`, `pipeline`, `served_models` and `formats`.
"""
