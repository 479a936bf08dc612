/**
 * The upload page: a recording goes in, a transcript comes out.
 *
 * `state` holds everything that can change. An event changes it and calls `render`, which makes the
 * page say what `state` says; that is why switching the language in the middle of an upload works.
 *
 * Words from a server, a file name or a transcript reach the page through `textContent` alone.
 * All addresses are relative to the page, so that it works behind a path prefix.
 */

const PAGE_LANGUAGES = ["en", "zh-CN"];
const LANGUAGE_STORAGE_KEY = "parakeet.page-language";

const FORMATS = {
  text: { extension: "txt", mediaType: "text/plain", structured: false },
  srt: { extension: "srt", mediaType: "application/x-subrip", structured: false },
  vtt: { extension: "vtt", mediaType: "text/vtt", structured: false },
  json: { extension: "json", mediaType: "application/json", structured: true },
  verbose_json: { extension: "json", mediaType: "application/json", structured: true },
};

/** Model states that pass by themselves; only in these does the page keep asking. */
const PASSING_STATES = new Set(["choosing", "downloading", "loading"]);
const POLL_INTERVAL_MS = 3_000;
/** Slower than a passing state: a server that is down for the night is not asked 10,000 times. */
const UNREACHABLE_INTERVAL_MS = 10_000;
/** A health answer takes no lock on the server; one that takes this long is not coming. */
const HEALTH_TIMEOUT_MS = 8_000;

/** What MAX_UPLOAD_MB counts in. */
const MB = 1024 * 1024;
/** About 12 hours of plain text. Laying out more at once makes the tab stutter. */
const PREVIEW_CHARACTERS = 1_000_000;
const COPY_FEEDBACK_MS = 2_000;

/** `error.code` values that have their own words on this page; others go by the HTTP status. */
const EXPLAINED_CODES = new Set([
  "audio_too_long",
  "invalid_audio",
  "model_load_failed",
  "model_not_ready",
  "no_audio_track",
  "queue_full",
  "truncated_audio",
  "unsupported_language",
]);

/** Errors that the same request, or the same with another key, may not meet again. */
const RETRYABLE_KINDS = new Set([
  "gateway",
  "key_missing",
  "key_refused",
  "model_load_failed",
  "model_not_ready",
  "network",
  "queue_full",
  "server_error",
  "unavailable",
  "unexpected_answer",
  "unsendable_key",
]);

/** Errors that end with another API key. */
const KEY_KINDS = new Set(["key_missing", "key_refused", "unsendable_key"]);

const state = {
  language: PAGE_LANGUAGES[0],
  strings: {},
  /** Last answer of `health`; `null` before the first one. */
  health: null,
  reachable: true,
  /** The chosen `File`; it stays after errors and cancelling, so nobody chooses it twice. */
  file: null,
  /** The transcription under way, as `newJob` makes it, or `null`. */
  job: null,
  /** `{key, values}` of a line about what just happened, or `null`. */
  notice: null,
  /** `{kind, values, serverMessage, retryAt}` or `null`. */
  error: null,
  /** Last transcript, as `newResult` makes it. A later failure leaves it alone: it may be unsaved. */
  result: null,
  /** Key of the Copy button's words. */
  copyLabel: "result.copy",
};

const byId = (id) => document.getElementById(id);

// ---- Words and numbers ----

function preferredLanguage() {
  const wanted = [storedLanguage(), ...navigator.languages].filter(Boolean);
  for (const tag of wanted) {
    // Any Chinese is better served by the Simplified page than by the English one.
    if (/^zh\b/i.test(tag)) return "zh-CN";
    if (/^en\b/i.test(tag)) return "en";
  }
  return PAGE_LANGUAGES[0];
}

function storedLanguage() {
  try {
    return localStorage.getItem(LANGUAGE_STORAGE_KEY);
  } catch {
    return null; // Storage is refused in some private modes; the page works without it.
  }
}

function storeLanguage(language) {
  try {
    localStorage.setItem(LANGUAGE_STORAGE_KEY, language);
  } catch {
    // As above: the choice then lasts as long as the page.
  }
}

async function loadStrings(language) {
  const reply = await fetch(new URL(`strings.${language}.json`, import.meta.url));
  if (!reply.ok) throw new Error(`strings.${language}.json: HTTP ${reply.status}`);
  return reply.json();
}

/** Give the string of `key` with its `{holes}` filled. */
function text(key, values = {}) {
  const pattern = state.strings[key] ?? key;
  // A function as replacement: `$&` in a file name stays what it is.
  return pattern.replace(/\{(\w+)\}/g, (hole, name) => (Object.hasOwn(values, name) ? values[name] : hole));
}

function number(value, options = {}) {
  return new Intl.NumberFormat(state.language, options).format(value);
}

/** Give a percentage, rounded down: 100 % is said only when it is done. */
function percentage(fraction) {
  return number(Math.floor(fraction * 100) / 100, { style: "percent" });
}

function fileSize(bytes) {
  if (bytes < 1024) return `${number(bytes)} B`;
  if (bytes < MB) return `${number(Math.round(bytes / 1024))} KB`;
  return `${number(bytes / MB, { maximumFractionDigits: 1 })} MB`;
}

/** Give `m:ss` or `h:mm:ss`. */
function duration(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  const pad = (value) => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h > 0 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/** Name a transcript after its recording: `talk.mp3` gives `talk.srt`. */
function transcriptName(recordingName, format) {
  const stem = recordingName.replace(/(?!^)\.[^.]*$/, "");
  return `${stem}.${FORMATS[format].extension}`;
}

// ---- The server ----

/** What went wrong, as a `kind` that the strings files explain. */
class TranscriptionError extends Error {
  constructor(kind, { values = {}, serverMessage = null, retryAfterS = null } = {}) {
    super(serverMessage ?? kind);
    this.kind = kind;
    this.values = values;
    this.serverMessage = serverMessage;
    this.retryAfterS = retryAfterS;
  }
}

async function fetchHealth() {
  const reply = await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) });
  const health = await reply.json();
  // A proxy's own JSON error is no answer of this server.
  if (!health?.model) throw new Error(`health: HTTP ${reply.status} without a model`);
  return health;
}

/**
 * Send a recording and give the transcript's text, exactly as the server wrote it.
 *
 * XMLHttpRequest, because fetch does not tell how much of an upload has left.
 * Rejects with a `TranscriptionError`, or with the signal's reason once that is aborted.
 */
function transcribe({ file, format, spokenLanguage, apiKey }, { signal, onProgress, onUploaded }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "v1/audio/transcriptions");
    if (apiKey) request.setRequestHeader("Authorization", `Bearer ${apiKey}`);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / event.total));
    request.upload.addEventListener("load", onUploaded);
    request.addEventListener("load", () => {
      const error = errorOfReply(request, apiKey !== "");
      if (error) reject(error);
      else resolve(request.responseText);
    });
    request.addEventListener("error", () => reject(new TranscriptionError("network")));
    request.addEventListener("abort", () => reject(signal.reason));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(transcriptionForm({ file, format, spokenLanguage }));
  });
}

function transcriptionForm({ file, format, spokenLanguage }) {
  const form = new FormData();
  form.append("model", "whisper-1");
  form.append("response_format", format);
  if (spokenLanguage) form.append("language", spokenLanguage);
  // Last, so that a server reading the form as it comes knows the options before the audio.
  form.append("file", file, file.name);
  return form;
}

/** Give the `TranscriptionError` that a finished request amounts to, or `null`. */
function errorOfReply(request, keyWasSent) {
  const isPage = (request.getResponseHeader("Content-Type") ?? "").startsWith("text/html");
  if (request.status === 200) return isPage ? new TranscriptionError("unexpected_answer") : null;
  const { message, code } = serverError(request.responseText);
  return new TranscriptionError(kindOfError(request.status, code, keyWasSent), {
    serverMessage: message,
    retryAfterS: retryAfterSeconds(request.getResponseHeader("Retry-After")),
  });
}

/** Read OpenAI's error shape; a proxy's error page has neither message nor code worth showing. */
function serverError(body) {
  try {
    const { message, code } = JSON.parse(body).error;
    return { message: typeof message === "string" ? message : null, code };
  } catch {
    return { message: null, code: null };
  }
}

function kindOfError(status, code, keyWasSent) {
  if (EXPLAINED_CODES.has(code)) return code;
  if (status === 401) return keyWasSent ? "key_refused" : "key_missing";
  if (status === 404 || status === 405) return "not_found";
  if (status === 413) return "upload_too_large";
  if (status === 429 || status === 503) return "unavailable";
  if (status === 502 || status === 504) return "gateway";
  return status >= 400 && status < 500 ? "bad_request" : "server_error";
}

/** Read a Retry-After header: seconds, or the date that some proxies write. */
function retryAfterSeconds(header) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return seconds > 0 ? Math.ceil(seconds) : null;
}

// ---- What can be known before the upload ----

/** Throw the `TranscriptionError` that sending this would end in, as far as the page can know. */
async function checkRequest({ file, apiKey }) {
  if (!file) throw new TranscriptionError("no_file");
  // Header values are Latin letters and signs; the browser refuses others with an error of its own.
  if (!/^[\x21-\x7e]*$/.test(apiKey)) throw new TranscriptionError("unsendable_key");
  const limit = uploadLimit();
  if (limit !== null && file.size > limit) throw tooLarge(file, limit);
  // Before the size is called 0: some systems give a dropped folder that size.
  if (!(await canBeRead(file))) throw new TranscriptionError("unreadable_file");
  if (file.size === 0) throw new TranscriptionError("empty_file");
}

/** Give the largest upload in bytes, or `null` while the server has not said. */
function uploadLimit() {
  const megabytes = state.health?.limits?.max_upload_mb;
  return typeof megabytes === "number" ? megabytes * MB : null;
}

function tooLarge(file, limit) {
  // Rounded up, so that a file one byte over the limit is not shown as being equal to it.
  const values = { size: `${number(Math.ceil(file.size / MB))} MB`, limit: `${number(limit / MB)} MB` };
  return new TranscriptionError("file_too_large", { values });
}

/** Tell whether the file is still what was chosen: not a folder, not moved, not changed since. */
async function canBeRead(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

// ---- One transcription, from start to end ----

function newJob() {
  return {
    file: state.file,
    format: byId("format").value,
    spokenLanguage: byId("spoken").value,
    apiKey: byId("api-key").value.trim(),
    controller: new AbortController(),
    /** `checking`, `uploading`, then `transcribing`. */
    phase: "checking",
    /** Share of the upload that has left, 0 to 1. */
    sent: 0,
    startedAt: performance.now(),
    uploadedAt: null,
  };
}

function newResult(job, body) {
  const { file, format, spokenLanguage } = job;
  return {
    body,
    format,
    spokenLanguage,
    recordingName: file.name,
    name: transcriptName(file.name, format),
    elapsedMs: performance.now() - job.startedAt,
    address: URL.createObjectURL(new Blob([body], { type: `${FORMATS[format].mediaType};charset=utf-8` })),
  };
}

async function runJob() {
  if (state.job) return;
  const job = newJob();
  Object.assign(state, { job, error: null, notice: null });
  render();
  byId("progress-title").focus();
  try {
    await checkRequest(job);
    job.controller.signal.throwIfAborted();
    finish(job, await upload(job));
  } catch (error) {
    if (job.controller.signal.aborted) cancelled();
    else await failed(job, error);
  }
  // A request may have loaded the model, or shown that the server is gone.
  refreshHealth();
}

function upload(job) {
  job.phase = "uploading";
  announce("announce.uploading");
  render();
  return transcribe(job, {
    signal: job.controller.signal,
    onProgress(sent) {
      job.sent = sent;
      renderProgress();
    },
    onUploaded() {
      Object.assign(job, { phase: "transcribing", sent: 1, uploadedAt: performance.now() });
      announce("announce.transcribing");
      render();
      refreshHealth();
    },
  });
}

function finish(job, body) {
  if (state.result) URL.revokeObjectURL(state.result.address);
  Object.assign(state, { job: null, result: newResult(job, body), copyLabel: "result.copy" });
  showTranscript();
  announce("announce.done");
  renderAndMoveFocus("result-title", "result");
}

function cancelled() {
  Object.assign(state, { job: null, notice: { key: "notice.cancelled", values: {} } });
  announce("notice.cancelled");
  renderAndMoveFocus("start", "start");
}

async function failed(job, error) {
  const fault = await explained(job, error);
  const { kind, serverMessage, retryAfterS } = fault;
  const values = { name: job.file?.name ?? "", ...fault.values };
  const retryAt = retryAfterS === null ? null : performance.now() + retryAfterS * 1000;
  Object.assign(state, { job: null, error: { kind, values, serverMessage, retryAt } });
  if (KEY_KINDS.has(kind)) byId("key-details").open = true;
  say(["title", "advice"].map((part) => text(`error.${kind}.${part}`, values)).concat(serverMessage ?? []).join(" "));
  renderAndMoveFocus(focusAfterError(kind), "error");
}

/** Give `error` as a `TranscriptionError`; a fault in this page itself goes to the console too. */
async function explained(job, error) {
  if (!(error instanceof TranscriptionError)) {
    console.error(error);
    return new TranscriptionError("unexpected_answer");
  }
  // A file that changes during its upload looks like a lost connection; trying again would not help.
  const changed = error.kind === "network" && !(await canBeRead(job.file));
  return changed ? new TranscriptionError("unreadable_file") : error;
}

/** Give the control that mends an error of this kind. */
function focusAfterError(kind) {
  if (KEY_KINDS.has(kind)) return "api-key";
  if (kind === "unsupported_language") return "spoken";
  if (kind === "bad_request") return "start";
  return RETRYABLE_KINDS.has(kind) ? "retry" : "file";
}

// ---- Choosing a recording ----

function chooseFiles(files) {
  if (state.job || files.length === 0) return;
  const [file] = files;
  const notice = files.length > 1 ? { key: "notice.first_of_many", values: { name: file.name } } : null;
  Object.assign(state, { file, notice, error: null });
  if (notice) announce(notice.key, notice.values);
  else announce("announce.chosen", { name: file.name });
  render();
}

/** Take files dropped anywhere on the page; other things that are dragged keep their usual ways. */
function listenForDrops() {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const showOverlay = (shown) => { byId("drop-overlay").hidden = !shown; };
  window.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    // Also while busy: else the browser leaves the page to open the file.
    event.preventDefault();
    event.dataTransfer.dropEffect = state.job ? "none" : "copy";
    showOverlay(!state.job);
  });
  window.addEventListener("dragleave", (event) => {
    // Moving between two elements of the page leaves one for the other; leaving the page, for nothing.
    if (event.relatedTarget === null) showOverlay(false);
  });
  window.addEventListener("drop", (event) => {
    showOverlay(false);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    chooseFiles(event.dataTransfer.files);
    byId("start").focus();
  });
}

// ---- Taking the transcript away ----

async function copyTranscript() {
  const copied = await copyText(state.result.body);
  state.copyLabel = copied ? "result.copied" : "result.copy_failed";
  announce(state.copyLabel);
  renderResult();
  setTimeout(() => {
    state.copyLabel = "result.copy";
    renderResult();
  }, COPY_FEEDBACK_MS);
}

/** Put `body` on the clipboard and tell whether that worked. */
async function copyText(body) {
  try {
    await navigator.clipboard.writeText(body);
    return true;
  } catch {
    // `navigator.clipboard` exists only on https and localhost; this server is often neither.
    return copyBySelection(body);
  }
}

/** Copy as a key press would. The transcript stays selected, for the case that this is refused. */
function copyBySelection(body) {
  getSelection().selectAllChildren(byId("transcript"));
  const putBody = (event) => {
    event.clipboardData.setData("text/plain", body);
    event.preventDefault();
  };
  document.addEventListener("copy", putBody, { once: true });
  const copied = document.execCommand("copy");
  document.removeEventListener("copy", putBody);
  return copied;
}

/** Give what the page shows of a transcript: JSON indented, all else as the server wrote it. */
function readable({ body, format }) {
  if (!FORMATS[format].structured) return body;
  try {
    return JSON.stringify(JSON.parse(body), null, 2);
  } catch {
    return body;
  }
}

/** Tell whether nothing was recognised. */
function isEmpty({ body, format }) {
  if (format === "vtt") return !body.includes("-->"); // The header alone is no cue.
  if (!FORMATS[format].structured) return body.trim() === "";
  try {
    return JSON.parse(body).text.trim() === "";
  } catch {
    return false;
  }
}

/** Write the transcript into the page; once, not in `render`, so that a selection in it survives. */
function showTranscript() {
  const transcript = byId("transcript");
  const shown = readable(state.result);
  transcript.textContent = shown.slice(0, PREVIEW_CHARACTERS);
  transcript.classList.toggle("verbatim", state.result.format !== "text");
  // "" means unknown; without it a Chinese page would have English text read out in Chinese.
  transcript.lang = state.result.spokenLanguage;
  transcript.scrollTop = 0;
  state.result.isCut = shown.length > PREVIEW_CHARACTERS;
  state.result.isEmpty = isEmpty(state.result);
}

// ---- The model's state ----

let pollTimer = null;

/** Ask the server how its model is, and again later while the answer is bound to change. */
async function refreshHealth() {
  clearTimeout(pollTimer);
  const before = modelStatusKey();
  try {
    state.health = await fetchHealth();
    state.reachable = true;
  } catch {
    state.reachable = false;
  }
  // Only a change is worth interrupting a screen reader; the first answer is no change.
  if (before !== "status.checking" && before !== modelStatusKey()) say(modelStatus());
  render();
  clearTimeout(pollTimer); // Two answers may have been under way.
  const wait = pollDelay();
  if (wait !== null) pollTimer = setTimeout(refreshHealth, wait);
}

/** Give the milliseconds until the next question, or `null` when nothing changes by itself. */
function pollDelay() {
  if (!state.reachable) return UNREACHABLE_INTERVAL_MS;
  const model = state.health.model.state;
  // A request wakes an unloaded model.
  const waking = model === "unloaded" && state.job !== null;
  return waking || PASSING_STATES.has(model) ? POLL_INTERVAL_MS : null;
}

/** Give the key of the status line's words. */
function modelStatusKey() {
  if (!state.reachable) return "status.unreachable";
  if (!state.health) return "status.checking";
  const { state: model, progress, error } = state.health.model;
  if (model === "downloading") return progress === null ? "status.downloading_unmeasured" : "status.downloading";
  if (model === "loading") return progress === null ? "status.loading" : "status.loading_measured";
  if (model === "failed") return error ? "status.failed_because" : "status.failed";
  return `status.${model}`;
}

function modelStatus() {
  const { name, progress, error } = state.health?.model ?? {};
  return text(modelStatusKey(), { name: name ?? "", percent: percentage(progress ?? 0), error: error ?? "" });
}

// ---- From `state` to the page ----

function render() {
  renderModel();
  renderRecording();
  renderProgress();
  renderError();
  renderResult();
}

function renderModel() {
  const { model, limits, version } = state.health ?? {};
  byId("demo-banner").hidden = !model?.demo;
  byId("model-status").dataset.state = state.reachable ? model?.state ?? "checking" : "unreachable";
  setText("model-status", modelStatus());
  setText("version", version ? text("footer.version", { version }) : "");
  setText("limits", limits ? limitsText(limits) : text("limits.unknown"));
}

function limitsText({ max_upload_mb: megabytes, max_audio_hours: hours }) {
  return text("limits.both", { size: `${number(megabytes)} MB`, hours: number(hours) });
}

function renderRecording() {
  const { file, job, notice } = state;
  byId("drop").classList.toggle("chosen", file !== null);
  setText("drop-title", file ? file.name : text("drop.title"));
  setText("drop-detail", file ? fileSize(file.size) : "");
  setText("drop-action", text(file ? "drop.action_again" : "drop.action"));
  byId("inputs").disabled = job !== null;
  // Try again does the same; two buttons for one thing would be a riddle.
  byId("start").hidden = job !== null || RETRYABLE_KINDS.has(state.error?.kind);
  byId("notice").hidden = notice === null;
  setText("notice", notice ? text(notice.key, notice.values) : "");
}

function renderProgress() {
  const { job } = state;
  byId("progress").hidden = job === null;
  renderTitle();
  if (!job) return;
  setText("progress-title", progressTitle(job));
  setText("progress-detail", progressDetail(job));
  const bar = byId("progress-bar");
  // Without a value the bar says "working, no telling how long", which is the truth then.
  if (job.phase === "uploading") bar.value = job.sent;
  else bar.removeAttribute("value");
}

function progressTitle({ phase, sent }) {
  return text(`progress.${phase}`, { percent: percentage(sent) });
}

function progressDetail({ phase, sent, file, uploadedAt }) {
  if (phase === "uploading") {
    return text("progress.uploading_detail", { sent: fileSize(sent * file.size), total: fileSize(file.size) });
  }
  if (phase === "checking") return "";
  return text("progress.transcribing_detail", { elapsed: duration(performance.now() - uploadedAt) });
}

/** Show the progress in the tab as well: people look at other tabs meanwhile. */
function renderTitle() {
  const { job } = state;
  document.title = job ? `${progressTitle(job)} · Parakeet` : text("page.title");
}

function renderError() {
  const { error } = state;
  byId("error").hidden = error === null;
  if (!error) return;
  setText("error-title", text(`error.${error.kind}.title`, error.values));
  setText("error-advice", text(`error.${error.kind}.advice`, error.values));
  byId("error-server").hidden = !error.serverMessage;
  setText("error-message", error.serverMessage ?? "");
  byId("retry").hidden = !RETRYABLE_KINDS.has(error.kind);
  renderWait();
}

/** Count down to what the server asked for. The button stays usable: the person may know better. */
function renderWait() {
  const { retryAt } = state.error;
  byId("error-wait").hidden = retryAt === null;
  if (retryAt === null) return;
  const seconds = Math.ceil((retryAt - performance.now()) / 1000);
  setText("error-wait", seconds > 0 ? text("error.wait", { seconds: number(seconds) }) : text("error.wait_over"));
}

function renderResult() {
  const { result, copyLabel } = state;
  byId("result").hidden = result === null;
  if (!result) return;
  const { name, format, recordingName, elapsedMs, address } = result;
  setText("result-title", name);
  setText("result-detail", text("result.detail", {
    format: text(`format.${format}`),
    name: recordingName,
    elapsed: duration(elapsedMs),
  }));
  setText("copy", text(copyLabel));
  Object.assign(byId("download"), { href: address, download: name, textContent: text("result.download") });
  byId("result-note").hidden = !result.isEmpty && !result.isCut;
  setText("result-note", text(result.isEmpty ? "result.empty" : "result.cut"));
  byId("transcript").hidden = result.isEmpty;
}

/** Write `value` where it is new: writing the same again would drop a selection. */
function setText(id, value) {
  const element = byId(id);
  if (element.textContent !== value) element.textContent = value;
}

/**
 * Render, then move the focus to `id` if rendering would strand it, with `shownId` in view.
 *
 * The buttons of a job vanish with it; without this a keyboard starts again from the top. A person
 * who has meanwhile gone elsewhere on the page is left there.
 */
function renderAndMoveFocus(id, shownId) {
  const focused = document.activeElement;
  const stranded = focused === document.body || byId("progress").contains(focused);
  render();
  if (!stranded) return;
  byId(id).focus({ preventScroll: true });
  byId(shownId).scrollIntoView({ block: "nearest" });
}

function announce(key, values) {
  say(text(key, values));
}

/** Have screen readers say `words`. */
function say(words) {
  byId("announcer").textContent = words;
}

/** Advance what counts seconds. */
function tick() {
  if (state.job) renderProgress();
  if (state.error) renderWait();
}

// ---- The page's own language ----

async function setLanguage(language) {
  const strings = await loadStrings(language);
  Object.assign(state, { language, strings });
  document.documentElement.lang = language;
  renderFixedTexts();
  render();
}

/** Fill in the words that do not depend on `state`. */
function renderFixedTexts() {
  for (const element of document.querySelectorAll("[data-i18n]")) {
    element.replaceChildren(...withCode(text(element.dataset.i18n)));
  }
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", text(element.dataset.i18nLabel));
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === state.language));
  }
}

/** Give the nodes of a string in which `backticks` mark names of files and settings. */
function withCode(string) {
  return string.split("`").map((part, index) => {
    if (index % 2 === 0) return part;
    return Object.assign(document.createElement("code"), { textContent: part });
  });
}

async function switchLanguage(language) {
  try {
    await setLanguage(language);
    storeLanguage(language);
  } catch (error) {
    console.error(error); // The page stays in the language it has.
    refreshHealth();
  }
}

// ---- Start ----

function listen() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    runJob();
  });
  byId("file").addEventListener("change", (event) => {
    chooseFiles([...event.target.files]);
    event.target.value = ""; // Choosing the same file again is then a change too.
  });
  byId("retry").addEventListener("click", runJob);
  byId("cancel").addEventListener("click", () => state.job?.controller.abort());
  byId("copy").addEventListener("click", copyTranscript);
  byId("language-switch").addEventListener("click", (event) => {
    const { language } = event.target.dataset;
    if (language) switchLanguage(language);
  });
  listenForDrops();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refreshHealth();
  });
  window.addEventListener("online", refreshHealth);
  window.addEventListener("beforeunload", (event) => {
    if (state.job) event.preventDefault();
  });
}

async function start() {
  try {
    await setLanguage(preferredLanguage());
  } catch (error) {
    console.error(error);
    byId("startup-failure").hidden = false;
    return;
  }
  byId("page").hidden = false;
  byId("language-switch").hidden = false;
  listen();
  setInterval(tick, 1000);
  refreshHealth();
}

start();
