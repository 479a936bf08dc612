/** Taking a transcript away: as a file in each format, or on the clipboard. */

import { FIXED_OPTIONS, makeCues, toSrt, toVtt } from "./subtitles.js";

/** How long a file's address stays: some browsers read it only after they have asked where to. */
const ADDRESS_LIFE_MS = 60_000;

const FORMATS = {
  srt: { mediaType: "application/x-subrip", write: (transcript, options) => toSrt(cues(transcript, options)) },
  vtt: { mediaType: "text/vtt", write: (transcript, options) => toVtt(cues(transcript, options)) },
  txt: { mediaType: "text/plain", write: (transcript) => transcript.toText() },
  json: { mediaType: "application/json", write: (transcript) => `${JSON.stringify(transcript.toJson(), null, 2)}\n` },
};

export const FORMAT_NAMES = Object.keys(FORMATS);

/** Write a transcript in one of `FORMAT_NAMES`. */
export function write(transcript, format, subtitleOptions) {
  return FORMATS[format].write(transcript, subtitleOptions);
}

/** Save a transcript under the recording's name: `talk.mp3` gives `talk.srt`. */
export function download(transcript, format, { recordingName, subtitleOptions }) {
  const body = write(transcript, format, subtitleOptions);
  const type = `${FORMATS[format].mediaType};charset=utf-8`;
  saveFile(new Blob([body], { type }), `${stem(recordingName)}.${format}`);
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

function cues(transcript, options) {
  return makeCues(transcript, { ...FIXED_OPTIONS, ...options });
}

/** Give a name without its extension; a dot in front is no extension. */
function stem(name) {
  return name.replace(/(?!^)\.[^.]*$/, "");
}
