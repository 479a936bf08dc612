/** Recordings come in: dropped anywhere, picked, or pasted. */

import { byId } from "./dom.js";

/** Call `onFiles` with each list of files that a person gives the page. */
export function listenForFiles(onFiles) {
  listenForPicks(onFiles);
  listenForDrops(onFiles);
  listenForPastes(onFiles);
}

function listenForPicks(onFiles) {
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", ({ target }) => {
    onFiles([...target.files]);
    target.value = ""; // Choosing the same file again is then a change too.
  });
}

/** Take dropped files; other things that are dragged keep their usual ways. */
function listenForDrops(onFiles) {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const showOverlay = (shown) => { byId("drop-overlay").hidden = !shown; };
  window.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // Else the browser leaves the page to open the file.
    event.dataTransfer.dropEffect = "copy";
    showOverlay(true);
  });
  window.addEventListener("dragleave", (event) => {
    // Moving between two elements of the page leaves one for the other; leaving the page, for nothing.
    if (event.relatedTarget === null) showOverlay(false);
  });
  window.addEventListener("drop", (event) => {
    showOverlay(false);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    onFiles([...event.dataTransfer.files]);
  });
}

function listenForPastes(onFiles) {
  window.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    onFiles(files);
  });
}
