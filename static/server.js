/** Requests to the server. All URLs are relative to the page. */

import { Problem, problemOfEvent, problemOfReply } from "./problems.js";
import { EventReader } from "./sse.js";

/** Health responses need no lock on the server, so a slower one is an error. */
const HEALTH_TIMEOUT_MS = 8_000;
/** The server sends at least a comment every 5 s; without any for so long, the connection is lost. */
const SILENCE_LIMIT_S = 35;

export async function fetchHealth() {
  const reply = await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) });
  const health = await reply.json();
  // A proxy's JSON error is not a response of this server.
  if (!health?.model) throw new Error(`health: HTTP ${reply.status} without a model`);
  return health;
}

/**
 * Send a recording; return the `verbose_json` that its stream ends with.
 *
 * XMLHttpRequest, because fetch does not report upload progress. `onEvent` gets each
 * event before the last. Rejects with a `Problem`, or with the signal's reason once it is aborted:
 * disconnecting stops the work on the server.
 */
export function transcribe({ file, url, spokenLanguage, model, apiKey, track, allowsPartial, keywords, speakers }, { signal, onSent, onUploaded, onEvent }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const stream = new AnswerStream(request, onEvent);
    const watch = new SilenceWatch(() => {
      reject(new Problem("silent_server"));
      request.abort();
    });
    request.open("POST", "v1/audio/transcriptions");
    if (apiKey) request.setRequestHeader("Authorization", `Bearer ${apiKey}`);
    request.upload.addEventListener("progress", ({ loaded, total }) => onSent(loaded / total));
    request.upload.addEventListener("load", () => {
      watch.start();
      onUploaded();
    });
    request.addEventListener("progress", () => {
      watch.heard();
      try {
        stream.advance();
      } catch (problem) {
        reject(problem);
        request.abort();
      }
    });
    request.addEventListener("load", () => {
      try {
        resolve(stream.result({ keyWasSent: apiKey !== "" }));
      } catch (problem) {
        reject(problem);
      }
    });
    request.addEventListener("error", () => reject(new Problem("network")));
    request.addEventListener("abort", () => reject(signal.reason));
    request.addEventListener("loadend", () => watch.stop());
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(transcriptionForm({ file, url, spokenLanguage, model, track, allowsPartial, keywords, speakers }));
  });
}

/**
 * Send a recording as a job, which goes on without this page; return the job's id.
 *
 * `onSent(share)` tells how much has left. Rejects with a `Problem`, or with the signal's reason.
 */
export function submitJob(whole, { signal, onSent }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "v1/jobs");
    if (whole.apiKey) request.setRequestHeader("Authorization", `Bearer ${whole.apiKey}`);
    request.upload.addEventListener("progress", ({ loaded, total }) => onSent(loaded / total));
    request.addEventListener("load", () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText).id);
      else reject(problemOfReply(request, { keyWasSent: whole.apiKey !== "" }));
    });
    request.addEventListener("error", () => reject(new Problem("network")));
    request.addEventListener("abort", () => reject(signal.reason));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(transcriptionForm(whole, { isJob: true }));
  });
}

/** Return what came of a job since `{run, after}`: `{job, queue_position, run, following, events}`. */
export async function jobEvents(id, { run, after }, apiKey) {
  return (await askJob(`${id}/events?run=${encodeURIComponent(run)}&after=${after}`, apiKey)).json();
}

/** Return the transcript of a job that has succeeded. */
export async function jobResult(id, apiKey) {
  return (await askJob(`${id}/result`, apiKey)).json();
}

/** Cancel a job, or delete a finished one; without a response, it expires on the server. */
export async function deleteJob(id, apiKey) {
  try {
    await askJob(id, apiKey, { method: "DELETE" });
  } catch (problem) {
    console.info(problem);
  }
}

async function askJob(path, apiKey, options = {}) {
  let reply;
  try {
    reply = await fetch(`v1/jobs/${path}`, {
      ...options,
      cache: "no-store",
      headers: apiKey ? { Authorization: `Bearer ${apiKey}` } : {},
      signal: AbortSignal.timeout(SILENCE_LIMIT_S * 1000),
    });
  } catch {
    throw new Problem("network");
  }
  if (reply.ok) return reply;
  const responseText = await reply.text();
  const asRequest = { status: reply.status, responseText, getResponseHeader: (name) => reply.headers.get(name) };
  throw problemOfReply(asRequest, { keyWasSent: apiKey !== "" });
}

function transcriptionForm({ file, url = null, spokenLanguage, model, track, allowsPartial, keywords = [], speakers = "" }, { isJob = false } = {}) {
  const form = new FormData();
  const fields = [
    ["model", model || "whisper-1"],
    ["response_format", "verbose_json"],
    ["timestamp_granularities[]", "word"],
    ["timestamp_granularities[]", "segment"],
    ["include[]", "logprobs"],
    ...(isJob ? [] : [["include[]", "progress"], ["include[]", "peaks"], ["stream", "true"]]),
  ];
  for (const [name, value] of fields) form.append(name, value);
  if (spokenLanguage) form.append("language", spokenLanguage);
  if (track) form.append("audio_track", track);
  if (allowsPartial) form.append("allow_partial", "true");
  if (speakers === "voices") form.append("diarize", "true");
  if (speakers) form.append("channels", speakers === "voices" ? "auto" : "separate");
  if (keywords.length > 0) form.append("keywords", JSON.stringify(keywords));
  // Last, so that a server that parses the form as it arrives gets the options before the audio.
  if (url) form.append("url", url);
  else form.append("file", file, file.name);
  return form;
}

/** The events of one response, as far as received. */
class AnswerStream {
  #request;
  #onEvent;
  #reader = new EventReader();
  #read = 0;
  #done = null;

  constructor(request, onEvent) {
    this.#request = request;
    this.#onEvent = onEvent;
  }

  get #isStream() {
    const type = this.#request.getResponseHeader("Content-Type") ?? "";
    return this.#request.status === 200 && type.startsWith("text/event-stream");
  }

  /** Pass on new events. Throws the `Problem` of an error event. */
  advance() {
    if (!this.#isStream) return;
    const received = this.#request.responseText;
    const piece = received.slice(this.#read);
    this.#read = received.length;
    for (const event of this.#reader.read(piece)) this.#take(event);
  }

  #take(event) {
    if (event.error) throw problemOfEvent(event.error);
    if (event.type === "transcript.text.done") this.#done = event.verbose_json;
    else this.#onEvent(event);
  }

  /** Return the transcript. Throws a `Problem` for an invalid or truncated response. */
  result({ keyWasSent }) {
    if (!this.#isStream) throw problemOfReply(this.#request, { keyWasSent });
    this.advance();
    if (!this.#done) throw new Problem("network");
    return this.#done;
  }
}

/** Detects a connection that was lost without an error, as with Wi-Fi. */
class SilenceWatch {
  #timer = null;
  #silentS = 0;
  #onSilence;

  constructor(onSilence) {
    this.#onSilence = onSilence;
  }

  start() {
    // Counts ticks instead of reading the clock, as a laptop may sleep meanwhile.
    this.#timer = setInterval(() => {
      this.#silentS += 1;
      if (this.#silentS >= SILENCE_LIMIT_S) this.#onSilence();
    }, 1000);
  }

  heard() {
    this.#silentS = 0;
  }

  stop() {
    clearInterval(this.#timer);
  }
}
