/** Exports a transcript: as a file in each format, or to the clipboard. */

import { toCsv, toDocx, toMarkdown, toPlainText } from "./documents.js";
import { FIXED_OPTIONS, makeCues, toSrt, toVtt } from "./subtitles.js";
import { zip } from "./zip.js";

/** How long an object URL stays valid: some browsers read it after the dialog for the folder. */
const ADDRESS_LIFE_MS = 60_000;

/** `options` are `{captions, times, speakers, title}`. */
const FORMATS = {
  txt: { mediaType: "text/plain", write: toPlainText },
  docx: { mediaType: "", write: toDocx },
  md: { mediaType: "text/markdown", write: toMarkdown },
  srt: { mediaType: "application/x-subrip", write: (transcript, options) => toSrt(cues(transcript, options)) },
  vtt: { mediaType: "text/vtt", write: (transcript, options) => toVtt(cues(transcript, options)) },
  csv: { mediaType: "text/csv", write: toCsv },
  json: { mediaType: "application/json", write: (transcript) => `${JSON.stringify(transcript.toJson(), null, 2)}\n` },
};

export const FORMAT_NAMES = Object.keys(FORMATS);

/** Write a transcript in one of `FORMAT_NAMES`: a string, or a `Blob`. */
export function write(transcript, format, options) {
  return FORMATS[format].write(transcript, { ...options, title: options.title ?? "" });
}

/** Save a transcript under the recording's name: `talk.mp3` gives `talk.srt`. */
export function download(transcript, format, { recordingName, options }) {
  const title = stem(recordingName);
  const body = write(transcript, format, { ...options, title });
  const type = `${FORMATS[format].mediaType};charset=utf-8`;
  saveFile(body instanceof Blob ? body : new Blob([body], { type }), `${title}.${format}`);
}

/** Save transcripts, `{name, transcript}` each, in several formats, as one archive. */
export async function downloadZip(recordings, formats, { archiveName, options }) {
  const files = [];
  const taken = new Set();
  for (const { name, transcript } of recordings) {
    const title = freeName(stem(name).replace(/[\\/:*?"<>|\u0000-\u001f]/g, "_"), taken);
    for (const format of formats) {
      const body = write(transcript, format, { ...options, title: stem(name) });
      files.push({ name: `${title}.${format}`, body: body instanceof Blob ? new Uint8Array(await body.arrayBuffer()) : body });
    }
  }
  saveFile(zip(files), archiveName);
}

/** Make names unique, as two recordings may have the same name. */
function freeName(wanted, taken) {
  let name = wanted;
  for (let count = 2; taken.has(name.toLowerCase()); count += 1) name = `${wanted} (${count})`;
  taken.add(name.toLowerCase());
  return name;
}

export function saveFile(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), ADDRESS_LIFE_MS);
}

/** Put `body` on the clipboard and tell whether that worked. */
export async function copy(body) {
  try {
    await navigator.clipboard.writeText(body);
    return true;
  } catch {
    // `navigator.clipboard` exists only on https and localhost; this server is often neither.
    return copyAsAKeyWould(body);
  }
}

function copyAsAKeyWould(body) {
  const put = (event) => {
    event.clipboardData.setData("text/plain", body);
    event.preventDefault();
  };
  document.addEventListener("copy", put, { once: true });
  const copied = document.execCommand("copy");
  document.removeEventListener("copy", put);
  return copied;
}

function cues(transcript, { captions, speakers }) {
  const made = makeCues(transcript, { ...FIXED_OPTIONS, ...captions });
  return speakers === false ? made.map((cue) => ({ ...cue, speaker: null })) : made;
}

/** Return a name without its extension; a dot in front is no extension. */
export function stem(name) {
  return name.replace(/(?!^)\.[^.]*$/, "");
}
