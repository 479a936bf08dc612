/** The user's settings and their dialog: language, model, format, captions, API key. */

import { byId, element } from "./dom.js";
import { languageName, onLanguageChange, text } from "./i18n.js";
import { forget, readStored, store } from "./stored.js";

const MAX_KEYWORD_LISTS = 10;
const CAPTION_DEFAULTS = { lineLength: 42, lines: 2, longestS: 6 };

export class Settings {
  #captionDefaults = CAPTION_DEFAULTS;
  #languages = ["en"];
  #models = [];
  #onChange;

  /** `onChange()` is called after each change. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#listen();
    this.#fill();
    onLanguageChange(() => this.#showLanguages());
  }

  /** Parameters of a transcription request. */
  get request() {
    return {
      spokenLanguage: byId("spoken").value,
      model: byId("model").value,
      apiKey: byId("api-key").value.trim(),
      track: byId("track").value,
      allowsPartial: byId("allow-partial").checked,
      speakers: byId("speakers").value,
      keywords: byId("keywords").value.split("\n").map((line) => line.trim()).filter(Boolean),
    };
  }

  /** The format of the first download button. */
  get format() {
    return byId("format").value;
  }

  /** `{lineLength, lines, longestS}`; values out of range count as not set. */
  get captions() {
    const values = Object.entries(CAPTION_FIELDS).map(([name, id]) => {
      const field = byId(id);
      return [name, field.value !== "" && field.validity.valid ? Number(field.value) : this.#captionDefaults[name]];
    });
    return Object.fromEntries(values);
  }

  /** Return the code of a language that the server names in English; "" where it is not known. */
  codeOf(englishName) {
    const english = new Intl.DisplayNames(["en"], { type: "language" });
    return this.#languages.find((code) => english.of(code).toLowerCase() === englishName) ?? "";
  }

  /** Return the status of the model that recordings are sent to. */
  modelOf({ model, models = [model] }) {
    return models.find(({ name }) => name === byId("model").value) ?? model;
  }

  /** Apply the server's models, their languages, and its caption settings. */
  learn({ model, models = [model], subtitles }) {
    if (models.map(({ name }) => name).join() !== this.#models.map(({ name }) => name).join()) {
      this.#models = models;
      this.#showModels();
    }
    this.#learnLanguages();
    if (subtitles) {
      this.#learnCaptions({
        lineLength: subtitles.line_length,
        lines: subtitles.lines,
        longestS: subtitles.max_duration_s,
      });
    }
  }

  #learnCaptions(defaults) {
    const isNews = Object.entries(defaults).some(([name, value]) => value !== this.#captionDefaults[name]);
    // Only if unchanged, as the user may be typing.
    if (!isNews) return;
    this.#captionDefaults = defaults;
    this.#fillCaptions();
  }

  /** Open the dialog, at the field that `fieldId` names. */
  open(fieldId = null) {
    // Not when a list is kept: "Done" would move away under the click that ends the typing.
    this.#showKeywordLists();
    byId("settings").showModal();
    if (fieldId) byId(fieldId).focus();
  }

  #learnLanguages() {
    const { languages } = this.modelOf({ model: this.#models[0], models: this.#models });
    if (!languages || languages.join() === this.#languages.join()) return;
    this.#languages = languages;
    this.#showLanguages();
  }

  #listen() {
    byId("settings-open").addEventListener("click", () => this.open());
    byId("settings").addEventListener("change", () => this.#keep());
    byId("settings").addEventListener("click", (event) => {
      // The target is the dialog itself only for clicks outside of its content.
      if (event.target === byId("settings")) byId("settings").close();
    });
    // Nothing is submitted: the form only closes the dialog, also on Enter.
    byId("settings-form").addEventListener("submit", (event) => {
      event.preventDefault();
      byId("settings").close();
    });
    byId("keyword-lists").addEventListener("change", () => {
      if (byId("keyword-lists").value) byId("keywords").value = byId("keyword-lists").value;
    });
    byId("spoken").addEventListener("change", () => this.#keep());
    byId("model").addEventListener("change", () => {
      this.#learnLanguages();
      this.#keep();
    });
  }

  #fill() {
    byId("format").value = readStored("format", "srt");
    byId("theme").value = readStored("theme", "");
    this.#showTheme();
    byId("allow-partial").checked = readStored("allow-partial", false);
    byId("speakers").value = readStored("speakers", "");
    byId("keywords").value = readStored("keywords", "");
    const key = readStored("api-key", "");
    byId("api-key").value = key;
    byId("keep-key").checked = key !== "";
    this.#showLanguages();
    this.#fillCaptions();
  }

  #fillCaptions() {
    const chosen = { ...this.#captionDefaults, ...readStored("captions", {}) };
    for (const [name, id] of Object.entries(CAPTION_FIELDS)) byId(id).value = chosen[name];
  }

  /** Light or dark, regardless of the system. */
  #showTheme() {
    document.documentElement.dataset.theme = byId("theme").value;
  }

  #keep() {
    store("format", this.format);
    store("theme", byId("theme").value);
    this.#showTheme();
    // The track is not stored, as the next recording may have only one.
    store("allow-partial", byId("allow-partial").checked);
    store("speakers", byId("speakers").value);
    store("spoken", byId("spoken").value);
    this.#keepKeywords();
    if (this.#models.length > 1) store("model", byId("model").value);
    this.#keepCaptions();
    if (byId("keep-key").checked) store("api-key", byId("api-key").value.trim());
    else forget("api-key");
    this.#onChange();
  }

  /** Store the list, and the latest ones for a choice. */
  #keepKeywords() {
    const list = byId("keywords").value.trim();
    store("keywords", list);
    if (!list) return;
    const others = readStored("keyword-lists", []).filter((other) => other !== list);
    store("keyword-lists", [list, ...others].slice(0, MAX_KEYWORD_LISTS));
  }

  #showKeywordLists() {
    const lists = readStored("keyword-lists", []);
    byId("keyword-lists").hidden = lists.length === 0;
    byId("keyword-lists").replaceChildren(
      element("option", { value: "", textContent: text("keywords.earlier") }),
      ...lists.map((list) => element("option", { value: list, textContent: list.replaceAll("\n", ", ") })),
    );
  }

  /** Store only values that differ from the server's, so that changes there take effect here. */
  #keepCaptions() {
    const differing = Object.entries(this.captions).filter(([name, value]) => value !== this.#captionDefaults[name]);
    store("captions", Object.fromEntries(differing));
  }

  /** List the models; with only one, hide the choice. */
  #showModels() {
    const isChoice = this.#models.length > 1;
    const chosen = byId("model").value || readStored("model", "");
    const options = this.#models.map(({ name }) => element("option", { value: name, textContent: name }));
    byId("model-choice").hidden = !isChoice;
    byId("model").replaceChildren(...(isChoice ? options : []));
    if (isChoice && this.#models.some(({ name }) => name === chosen)) byId("model").value = chosen;
  }

  #showLanguages() {
    const chosen = byId("spoken").value || readStored("spoken", "");
    const named = this.#languages
      .map((code) => ({ code, name: languageName(code) }))
      .sort((left, right) => left.name.localeCompare(right.name));
    byId("spoken").replaceChildren(
      element("option", { value: "", textContent: text("spoken.auto") }),
      ...named.map(({ code, name }) => element("option", { value: code, textContent: name })),
    );
    byId("spoken").value = this.#languages.includes(chosen) ? chosen : "";
  }
}

const CAPTION_FIELDS = { lineLength: "line-length", lines: "line-count", longestS: "longest-cue" };
