/** The page's language: strings, formats of numbers and durations. */

import { element } from "./dom.js";
import { readStored, store } from "./stored.js";

const LANGUAGES = ["en", "zh-CN"];
const KB = 1024;
/** Unit of MAX_UPLOAD_MB. */
export const MB = 1024 * KB;

let language = LANGUAGES[0];
let strings = {};
const listeners = [];

/** Call `listener` each time the page's language has changed. */
export function onLanguageChange(listener) {
  listeners.push(listener);
}

/** Return the language that the person chose here before, or else the browser's. */
export function preferredLanguage() {
  for (const tag of [readStored("page-language", ""), ...navigator.languages]) {
    // For any Chinese, the Simplified page is better than the English one.
    if (/^zh\b/i.test(tag)) return "zh-CN";
    if (/^en\b/i.test(tag)) return "en";
  }
  return LANGUAGES[0];
}

/** Show the page in `chosen`; rejects, and changes nothing, where its strings do not load. */
export async function useLanguage(chosen) {
  const reply = await fetch(new URL(`strings.${chosen}.json`, import.meta.url));
  if (!reply.ok) throw new Error(`strings.${chosen}.json: HTTP ${reply.status}`);
  strings = await reply.json();
  language = chosen;
  document.documentElement.lang = chosen;
  translate(document);
  for (const listener of listeners) listener();
}

export async function chooseLanguage(chosen) {
  await useLanguage(chosen);
  store("page-language", chosen);
}

export function pageLanguage() {
  return language;
}

/** Return the string of `key` with its `{holes}` filled. */
export function text(key, values = {}) {
  const pattern = strings[key] ?? key;
  // A function as replacement, so that `$&` in a file name has no special meaning.
  return pattern.replace(/\{(\w+)\}/g, (hole, name) => (Object.hasOwn(values, name) ? values[name] : hole));
}

/** Set the static texts of the page. */
export function translate(root) {
  for (const target of root.querySelectorAll("[data-i18n]")) {
    target.replaceChildren(...withCode(text(target.dataset.i18n)));
  }
  for (const target of root.querySelectorAll("[data-i18n-label]")) {
    target.setAttribute("aria-label", text(target.dataset.i18nLabel));
  }
  for (const target of root.querySelectorAll("[data-i18n-placeholder]")) {
    target.placeholder = text(target.dataset.i18nPlaceholder);
  }
}

/** Return the nodes of a string in which `backticks` mark names of files and settings. */
function withCode(string) {
  return string.split("`").map((part, index) => (index % 2 ? element("code", { textContent: part }) : part));
}

export function number(value, options = {}) {
  return new Intl.NumberFormat(language, options).format(value);
}

/** Return a percentage, rounded down, so that 100 % means done. */
export function percentage(fraction) {
  return number(Math.floor(fraction * 100) / 100, { style: "percent" });
}

export function fileSize(bytes) {
  if (bytes < KB) return `${number(bytes)} B`;
  if (bytes < MB) return `${number(Math.round(bytes / KB))} KB`;
  return `${number(bytes / MB, { maximumFractionDigits: 1 })} MB`;
}

/** Write seconds as `m:ss` or `h:mm:ss`. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const pad = (value) => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/** Write how many times faster than the recording itself something went: `36`, or `0.8`. */
export function timesRealTime(audioS, elapsedS) {
  const speed = audioS / Math.max(elapsedS, 0.001);
  return number(speed, { maximumFractionDigits: speed < 10 ? 1 : 0 });
}

export function dateAndTime(milliseconds) {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(milliseconds);
}

/** Name a spoken language in the page's: `de` is "German" or "德语". */
export function languageName(code) {
  return new Intl.DisplayNames([language], { type: "language" }).of(code);
}
