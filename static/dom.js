/** The few things that every part of the page does to its elements. */

export const byId = (id) => document.getElementById(id);

/** Make an element; strings among `children` become text, never markup. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Write `value` where it is new: writing the same again would drop a selection. */
export function setText(target, value) {
  if (target.textContent !== value) target.textContent = value;
}

/** Have screen readers say `words` when they are done with what they are saying. */
export function say(words) {
  byId("announcer").textContent = words;
}

/** Have screen readers say `words` at once. */
export function alertWith(words) {
  byId("alerter").textContent = words;
}

/** Give a function that calls `act` once, `delayMs` after its last call. */
export function debounced(act, delayMs) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, delayMs);
  };
}

/** Tell whether the page is told to keep still. */
export function prefersStillness() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
