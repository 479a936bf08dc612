"""Live transcription: audio is streamed in, and words are sent while they are spoken.

The events are those of OpenAI's Realtime API; `http` transports them. Imports from `speech`,
`pipeline`, `served_models` and `formats`.
"""
