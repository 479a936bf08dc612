"""Form fields in, response bodies out: the field names and formats of OpenAI and others.

`request_params` checks the fields of OpenAI's API (`speaker_params` those about speakers, read by
`form_fields`), `asr_api` those of whisper-asr-webservice; `transcribe` applies them to a recording.
`rendering` writes a transcript as json, text, srt, vtt, verbose_json and diarized_json (cues by
`subtitles`), `server_sent_events` as a stream. `status` has the JSON of models, health and the
start report, `json_types` the types of JSON fields. Imports `pipeline`, `model` and the modules at
the top.
"""
