/** State of the server and its model; polled while it is about to change. */

import { byId, say, setText } from "./dom.js";
import { number, onLanguageChange, percentage, text } from "./i18n.js";
import { fetchHealth } from "./server.js";

/** The tests' model; the other bundled model is the small English one. */
const GRAMMAR_MODEL = "parakeet-tdt-demo-en";
/** Temporary states of a model, in which the page polls. */
const PASSING_STATES = new Set(["choosing", "downloading", "loading"]);
const POLL_INTERVAL_MS = 2_000;
/** Slower than in a temporary state, as the server may be down for long. */
const UNREACHABLE_INTERVAL_MS = 10_000;

export class ModelStatus {
  /** The last health answer; `null` before the first one. */
  health = null;
  #isReachable = true;
  #timer = null;
  #isWaking;
  #modelOf;
  #onHealth;

  /**
   * `isWaking()` returns whether a request is about to load the model; `modelOf(health)` returns the
   * status of the one that is shown; `onHealth(health)` is called with each answer.
   */
  constructor({ isWaking, modelOf, onHealth }) {
    this.#isWaking = isWaking;
    this.#modelOf = modelOf;
    this.#onHealth = onHealth;
    onLanguageChange(() => this.#render());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.refresh();
    });
    window.addEventListener("online", () => this.refresh());
  }

  /** Request the state now, and again later if necessary. */
  async refresh() {
    clearTimeout(this.#timer);
    const before = this.#key();
    try {
      this.health = await fetchHealth();
      this.#isReachable = true;
      this.#onHealth(this.health);
    } catch {
      this.#isReachable = false;
    }
    // Announce changes only; the first response is no change.
    if (before !== "status.checking" && before !== this.#key()) say(this.#words());
    this.#render();
    clearTimeout(this.#timer); // Two answers may have been under way.
    const delay = this.#pollDelay();
    if (delay !== null) this.#timer = setTimeout(() => this.refresh(), delay);
  }

  #pollDelay() {
    if (!this.#isReachable) return UNREACHABLE_INTERVAL_MS;
    const { state } = this.#modelOf(this.health);
    const waking = state === "unloaded" && this.#isWaking();
    return waking || PASSING_STATES.has(state) ? POLL_INTERVAL_MS : null;
  }

  /** Return the key of the status line's words. */
  #key() {
    if (!this.#isReachable) return "status.unreachable";
    if (!this.health) return "status.checking";
    const { state, progress, error } = this.#modelOf(this.health);
    if (state === "downloading") return progress === null ? "status.downloading_unmeasured" : "status.downloading";
    if (state === "loading") return progress === null ? "status.loading" : "status.loading_measured";
    if (state === "failed") return error ? "status.failed_because" : "status.failed";
    return `status.${state}`;
  }

  #words() {
    const { name, progress, error } = this.health ? this.#modelOf(this.health) : {};
    return text(this.#key(), { name: name ?? "", percent: percentage(progress ?? 0), error: error ?? "" });
  }

  #render() {
    const { limits, version } = this.health ?? {};
    const model = this.health ? this.#modelOf(this.health) : null;
    byId("demo-banner").hidden = !model?.demo;
    if (model?.demo) {
      const kind = model.name === GRAMMAR_MODEL ? "grammar" : "english";
      setText(byId("demo-title"), text(`demo.${kind}.title`));
      setText(byId("demo-limits"), text(`demo.${kind}.limits`));
    }
    byId("model-status").dataset.state = this.#isReachable ? model?.state ?? "checking" : "unreachable";
    setText(byId("model-status"), this.#words());
    byId("model-status").title = this.#words();
    setText(byId("version"), version ? text("footer.version", { version }) : "");
    setText(byId("limits"), limits ? limitsText(limits) : text("limits.unknown"));
    byId("enter-url").hidden = !limits?.recording_urls;
    if (limits?.extensions) byId("file").accept = ["audio/*", "video/*", ...limits.extensions.map((name) => `.${name}`)].join();
  }
}

function limitsText({ max_upload_mb: megabytes, max_audio_hours: hours }) {
  return text("limits.both", { size: `${number(megabytes)} MB`, hours: number(hours) });
}
