/** Checks of a recording before it is uploaded, by the server's limits. */

import { MB, number } from "./i18n.js";
import { Problem } from "./problems.js";

/** Time limit for the browser to determine a recording's duration. */
const METADATA_TIMEOUT_MS = 10_000;

/** Media types outside `audio/` and `video/` that may contain audio, or are unspecific. */
const TELLS_NOTHING = new Set(["", "application/mxf", "application/octet-stream", "application/ogg", "application/x-matroska"]);

/**
 * Return the seconds that the recording lasts, or `null` where the browser cannot tell.
 *
 * `file` is `null` for a URL. Throws the `Problem` that sending this would end in, as far as the page can know. `limits` are
 * those of the server's health answer, or `null` while it has given none.
 */
export async function checkRequest({ file, apiKey }, limits) {
  // Header values are limited to Latin-1; the browser rejects other characters.
  if (!/^[\x21-\x7e]*$/.test(apiKey)) throw new Problem("unsendable_key");
  if (file === null) return null; // The server fetches and checks it.
  if (!mayHoldSound(file, limits)) throw new Problem("not_a_recording");
  if (limits && file.size > limits.max_upload_mb * MB) throw tooLarge(file, limits.max_upload_mb);
  // Before the check for size 0, which some systems report for a dropped folder.
  if (!(await canBeRead(file))) throw new Problem("unreadable_file");
  if (file.size === 0) throw new Problem("empty_file");
  const seconds = await mediaDuration(file);
  if (limits && seconds > limits.max_audio_hours * 3600) throw new Problem("audio_too_long");
  return seconds;
}

/** Tell whether the file is still what was chosen: not a folder, not moved, not changed since. */
export async function canBeRead(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

function mayHoldSound({ name, type }, limits) {
  if (/^(audio|video)\//.test(type) || TELLS_NOTHING.has(type)) return true;
  const extension = name.slice(name.lastIndexOf(".") + 1).toLowerCase();
  return limits?.extensions?.includes(extension) ?? false;
}

function tooLarge(file, megabytes) {
  // Rounded up, so that a file one byte over the limit is not shown as being equal to it.
  const values = { size: `${number(Math.ceil(file.size / MB))} MB`, limit: `${number(megabytes)} MB` };
  return new Problem("file_too_large", { values });
}

/** Return the seconds that a recording lasts, or `null` where the browser cannot tell. */
function mediaDuration(file) {
  const media = document.createElement("video");
  const address = URL.createObjectURL(file);
  return new Promise((resolve) => {
    media.addEventListener("loadedmetadata", () => resolve(Number.isFinite(media.duration) ? media.duration : null));
    media.addEventListener("error", () => resolve(null));
    setTimeout(resolve, METADATA_TIMEOUT_MS, null);
    media.preload = "metadata";
    media.src = address;
  }).finally(() => {
    media.removeAttribute("src");
    media.load();
    URL.revokeObjectURL(address);
  });
}
