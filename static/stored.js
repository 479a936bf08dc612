/**
 * Small settings in localStorage.
 *
 * Some private modes refuse storage: a setting then lasts as long as the page.
 */

const PREFIX = "parakeet.";

export function readStored(name, fallback) {
  try {
    const found = localStorage.getItem(PREFIX + name);
    return found === null ? fallback : JSON.parse(found);
  } catch {
    return fallback;
  }
}

export function store(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // As above.
  }
}

export function forget(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // As above.
  }
}
