/** Problems with a recording; the strings files explain each `kind`. */

/** `error.code` values with their own text on this page; others are mapped by HTTP status. */
const EXPLAINED_CODES = new Set([
  "audio_too_long",
  "diarization_off",
  "invalid_audio",
  "job_cancelled",
  "jobs_unavailable",
  "model_load_failed",
  "model_not_found",
  "model_not_ready",
  "no_audio_track",
  "queue_full",
  "rate_limit_exceeded",
  "recording_url_failed",
  "stopping",
  "truncated_audio",
  "unsupported_language",
  "upload_too_large",
]);

/** Problems for which a retry, perhaps with another key, may succeed. */
const RETRYABLE_KINDS = new Set([
  "bad_request",
  "diarization_off",
  "gateway",
  "key_missing",
  "key_refused",
  "job_cancelled",
  "job_lost",
  "model_load_failed",
  "model_not_ready",
  "network",
  "model_not_found",
  "queue_full",
  "rate_limit_exceeded",
  "recording_url_failed",
  "stopping",
  "server_error",
  "silent_server",
  "unavailable",
  "unexpected_answer",
  "unsendable_key",
  "unsupported_language",
]);

/** Problems without a specific text: the server's message is shown. */
const TELLING_KINDS = new Set(["invalid_audio", "model_load_failed", "recording_url_failed", "server_error"]);

const KEY_KINDS = new Set(["key_missing", "key_refused", "unsendable_key"]);

export class Problem extends Error {
  constructor(kind, { values = {}, serverMessage = null, retryAfterS = null } = {}) {
    super(serverMessage ?? kind);
    this.kind = kind;
    /** Values for the placeholders of its text. */
    this.values = values;
    /** The server's message, which has more details; always English. */
    this.serverMessage = serverMessage;
    this.retryAt = retryAfterS === null ? null : performance.now() + retryAfterS * 1000;
  }

  /** The server's message, if it says more than the page's text; always English. */
  messageFor(language) {
    const tells = this.kind === "bad_request" || (language === "en" && TELLING_KINDS.has(this.kind));
    return tells ? this.serverMessage : null;
  }

  get canBeRetried() {
    return RETRYABLE_KINDS.has(this.kind);
  }

  /** Whether the request should be retried automatically. */
  get isPassing() {
    return PASSING_KINDS.has(this.kind);
  }

  /** Whether another API key would help. */
  get isAboutKey() {
    return KEY_KINDS.has(this.kind);
  }

  /** Whether another spoken language would help. */
  get isAboutLanguage() {
    return this.kind === "unsupported_language";
  }
}

/** Return the problem that a finished request amounts to. */
export function problemOfReply(request, { keyWasSent }) {
  if (request.status === 200) return new Problem("unexpected_answer");
  const { message, code } = serverError(request.responseText);
  return new Problem(kindOf(request.status, code, keyWasSent), {
    serverMessage: message,
    retryAfterS: retryAfterSeconds(request.getResponseHeader("Retry-After")),
  });
}

/** Temporary problems: the request is retried automatically. */
const PASSING_KINDS = new Set(["gateway", "model_not_ready", "network", "queue_full", "rate_limit_exceeded", "stopping", "unavailable"]);

/** Return the problem of a job that failed, or of an `{"error": ...}` event in the middle of a stream. */
export function problemOfEvent({ message, type, code }) {
  const status = type === "invalid_request_error" ? 400 : 500;
  return new Problem(kindOf(status, code, true), { serverMessage: message });
}

/** Parse OpenAI's error format; a proxy's error page has neither message nor code to show. */
function serverError(body) {
  try {
    const { message, code } = JSON.parse(body).error;
    return { message: typeof message === "string" ? message : null, code };
  } catch {
    return { message: null, code: null };
  }
}

function kindOf(status, code, keyWasSent) {
  if (code === "invalid_api_key") return keyWasSent ? "key_refused" : "key_missing";
  if (EXPLAINED_CODES.has(code)) return code;
  if (status === 401) return keyWasSent ? "key_refused" : "key_missing";
  if (status === 404 || status === 405) return "not_found";
  if (status === 413) return "upload_too_large";
  if (status === 429 || status === 503) return "unavailable";
  if (status === 502 || status === 504) return "gateway";
  return status >= 400 && status < 500 ? "bad_request" : "server_error";
}

/** Parse a Retry-After header: seconds, or a date as some proxies send. */
function retryAfterSeconds(header) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return seconds > 0 ? Math.ceil(seconds) : null;
}
