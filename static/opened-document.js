/**
 * What the document view shows: a recording that is being made, a job, or a stored transcript.
 *
 * `file` is null without a stored recording, `transcript` while it is being made. `turns` are the words
 * heard by the microphone, `deltas` those of a job; they are shown until the transcript takes their
 * place. `facts`, `{elapsedS, transcribingS}`, has the processing times, if known.
 */

import { Peaks } from "./peaks.js";

const NOTHING = {
  id: null,
  name: "",
  file: null,
  isRecording: false,
  isOver: false,
  deltas: [],
  turns: [],
  peaks: null,
  durationS: () => 0,
  transcript: null,
  facts: null,
  onEdit: () => {},
  onRename: () => {},
};

export function openedRecording({ id, name, turns }) {
  return { ...NOTHING, id, name, isRecording: true, turns, peaks: new Peaks() };
}

/** `actions` are `{onEdit(event), onRename(name)}`. */
export function openedJob(job, actions) {
  const { id, name, file, isOver, deltas, turns, peaks, transcript, elapsedS, transcribingS } = job;
  return {
    ...NOTHING,
    ...{ id, name, file, isOver, deltas, turns, peaks, transcript },
    ...actions,
    durationS: () => job.transcript?.durationS ?? job.totalS ?? peaks.seconds,
    facts: transcript && { elapsedS, transcribingS: transcribingS || elapsedS },
  };
}

/** `contents` are `{file, peaks, transcript}`. */
export function openedEntry({ id, name }, contents, actions) {
  return { ...NOTHING, id, name, isOver: true, ...contents, ...actions, durationS: () => contents.transcript.durationS };
}
