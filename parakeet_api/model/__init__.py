"""Everything that knows torch and NeMo: chunks in, words out.

From the outside in: `batching` collects chunks of all requests into batches, `model_pool` and
`model_manager` load and unload models, `recognizer` turns a batch into words, `nemo_model` restores
a checkpoint that `checkpoints` found, `encoder` and `token_decoder` are its two halves, and `cuda`,
`devices`, `memory` and `heap` know the hardware. Private interfaces of torch and NeMo stand in
`nemo_internals`. Imports `speech` and the modules above; knows nothing of files, jobs or HTTP.
"""
