"""Everything that knows torch and NeMo: chunks in, words out.

From the outside in: `batching` makes batches of all requests' chunks (`batch_queue`); `pool` loads
and evicts the models of `slot`, whose files `checkpoints` finds or downloads; `recognizer` turns a
batch into words. `loading` prepares a model: `restore` builds its network, `precision` casts it,
`encoder` and `token_decoder` are its two halves. `cuda`, `devices`, `gpu_check`, `memory` and `heap`
know the hardware; private interfaces of torch and NeMo stand in `nemo_internals`. Imports `speech`
and the modules at the top; knows nothing of files of sound, jobs or HTTP.
"""
