/** Helpers for elements. */

export const byId = (id) => document.getElementById(id);

/** Make an element; strings among `children` become text, never markup. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Set `value` if it differs: setting the same text again would drop a selection. */
export function setText(target, value) {
  if (target.textContent !== value) target.textContent = value;
}

/** Announce `words` to screen readers, politely. */
export function say(words) {
  byId("announcer").textContent = words;
}

/** Announce `words` to screen readers at once. */
export function alertWith(words) {
  byId("alerter").textContent = words;
}

/** Return a function that calls `act` once, `delayMs` after its last call. */
export function debounced(act, delayMs) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, delayMs);
  };
}

/** Tell whether the user prefers reduced motion. */
export function prefersStillness() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
