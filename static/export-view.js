/** The export dialog: one transcript, or all of them in an archive. */

import { byId, element } from "./dom.js";
import { FORMAT_NAMES } from "./downloads.js";
import { number, onLanguageChange, text } from "./i18n.js";
import { readStored, store } from "./stored.js";

export class ExportView {
  #settings;
  #title = "";
  #onFormat = null;
  #onZip = null;

  constructor(settings) {
    this.#settings = settings;
    for (const name of FORMAT_NAMES) {
      byId(`download-${name}`).addEventListener("click", () => this.#act(name));
      const box = element("input", { type: "checkbox", value: name, checked: readStored("zip-formats", ["txt", "srt"]).includes(name) });
      byId("zip-formats").append(element("label", { className: "check" }, box, name.toUpperCase()));
    }
    byId("download-pdf").addEventListener("click", () => this.#print());
    byId("download-zip").addEventListener("click", () => {
      store("zip-formats", this.#zipFormats);
      byId("export").close();
      this.#onZip?.(this.#zipFormats);
    });
    byId("zip-formats").addEventListener("change", () => this.#render());
    byId("with-times").checked = readStored("with-times", false);
    byId("with-speakers").checked = readStored("with-speakers", true);
    for (const id of ["with-times", "with-speakers"]) {
      byId(id).addEventListener("change", () => store(id, byId(id).checked));
    }
    onLanguageChange(() => this.#render());
  }

  /** Export options: `{captions, times, speakers}`. */
  get options() {
    return { captions: this.#settings.captions, times: byId("with-times").checked, speakers: byId("with-speakers").checked };
  }

  /** Offer the formats for one transcript; `title` names what is printed. */
  open(title, onFormat) {
    this.#title = title;
    this.#show({ onFormat });
  }

  /** Offer an archive of `count` transcripts. */
  openAll(count, onZip) {
    this.#show({ onZip, count });
  }

  #show({ onFormat = null, onZip = null, count = 0 }) {
    this.#onFormat = onFormat;
    this.#onZip = onZip;
    byId("export-count").hidden = !onZip;
    byId("export-count").textContent = text("export.count", { count: number(count) });
    this.#render();
    byId("export").showModal();
  }

  get #zipFormats() {
    return [...byId("zip-formats").querySelectorAll("input:checked")].map((box) => box.value);
  }

  #render() {
    const isAll = this.#onZip !== null;
    for (const name of [...FORMAT_NAMES, "pdf"]) byId(`download-${name}`).hidden = isAll;
    byId("download-zip").hidden = byId("zip-formats").hidden = !isAll;
    byId("download-zip").disabled = this.#zipFormats.length === 0;
    byId("download-zip").textContent = text("export.zip");
    if (isAll) byId("save-recording").hidden = true;
    for (const name of [...FORMAT_NAMES, "pdf"]) {
      const button = byId(`download-${name}`);
      button.replaceChildren(element("strong", { textContent: name.toUpperCase() }), element("small", { textContent: text(`export.${name}`) }));
    }
  }

  #act(format) {
    byId("export").close();
    this.#onFormat?.(format);
  }

  #print() {
    byId("export").close();
    document.documentElement.classList.toggle("print-times", byId("with-times").checked);
    document.documentElement.classList.toggle("print-speakers", byId("with-speakers").checked);
    // Browsers name the file after the page.
    const before = document.title;
    window.addEventListener("afterprint", () => { document.title = before; }, { once: true });
    document.title = this.#title;
    print();
  }
}
