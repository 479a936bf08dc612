"""Everything that knows torch and NeMo: chunks in, words out.

From the outside in: `batching` makes batches of all requests' chunks (`batch_queue`); `pool` loads
and evicts the models of `slot`, whose files `checkpoints` finds or downloads; `recognizer` turns a
batch into words. `loading` prepares a model: `restore` builds its network, `whisper_encoder` is the
part of it that NeMo lacks, `precision` casts it, `encoder` and `token_decoder` are its two halves.
`cuda`, `devices`, `gpu_check`, `memory` and `heap` know the hardware; `nemo_internals` holds the
private interfaces of torch and NeMo. Imports `speech` and the modules at the top; knows nothing of
audio files, jobs or HTTP.
"""
