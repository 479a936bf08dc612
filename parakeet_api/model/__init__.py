"""Everything that uses torch and NeMo: chunks in, words out.

From the outside in: `batching` forms batches from the chunks of all requests (`batch_queue`);
`pool` loads and evicts the models of `slot`, whose files `checkpoints` finds or downloads;
`recognizer` turns a batch into words. `loading` loads a model: `restore` builds its network,
`whisper_encoder` adds the part that NeMo lacks, `precision` casts it, `encoder` and `token_decoder`
are its two halves. `diarizer` tells speakers apart with the network of `sortformer`, whose file
`diarizer_checkpoints` chooses. `cuda`, `devices`, `gpu_check`, `memory` and `heap` deal with the
hardware; `nemo_internals` holds the private interfaces of torch and NeMo. Imports `speech` and the
modules at the top; does not depend on audio files, jobs or HTTP.
"""
