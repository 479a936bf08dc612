/** Plays the recording from the chosen file; it is never downloaded from the server. */

import { byId, element, setText } from "./dom.js";
import { clock, onLanguageChange, text } from "./i18n.js";

export class Player {
  #media = null;
  #track = null;
  #durationS = 0;
  #onTime;
  #broken = false;

  /** `onTime(seconds)` is called once per frame during playback, and after seeking. */
  constructor(onTime) {
    this.#onTime = onTime;
    byId("play").addEventListener("click", () => this.toggle());
    byId("speed").addEventListener("change", () => this.#applySpeed());
    onLanguageChange(() => this.#render());
  }

  get isLoaded() {
    return this.#media !== null;
  }

  get isPlaying() {
    return this.#media !== null && !this.#media.paused;
  }

  get seconds() {
    return this.#media?.currentTime ?? 0;
  }

  /** Load a recording; `null` empties the player. */
  load(file, durationS = 0) {
    this.unload();
    this.#durationS = durationS;
    if (file) this.#attach(file);
    this.#render();
  }

  unload() {
    if (!this.#media) return;
    this.#media.pause();
    URL.revokeObjectURL(this.#media.src);
    this.#media.removeAttribute("src");
    this.#media.load(); // Else the decoder stays alive with its memory.
    this.#media = null;
    this.#setTrack(null);
    byId("media").replaceChildren();
  }

  setDuration(seconds) {
    this.#durationS = seconds;
    this.#render();
  }

  seek(seconds) {
    if (!this.#media) return;
    this.#media.currentTime = Math.min(Math.max(0, seconds), Math.max(0, this.#durationS - 0.01));
    this.#tell();
  }

  /** Play from a moment. */
  async playFrom(seconds) {
    this.seek(seconds);
    await this.#play();
  }

  async toggle() {
    if (this.isPlaying) this.pause();
    else await this.#play();
  }

  pause() {
    this.#media?.pause();
  }

  /** Show `vtt` as captions of a video; audio has no picture. */
  setCaptions(vtt, language) {
    if (!(this.#media instanceof HTMLVideoElement)) return;
    this.#setTrack(element("track", {
      kind: "captions",
      label: text("player.captions"),
      srclang: language,
      src: URL.createObjectURL(new Blob([vtt], { type: "text/vtt" })),
    }));
    this.#track.track.mode = "showing";
  }

  #attach(file) {
    const isVideo = file.type.startsWith("video/");
    this.#broken = false;
    this.#media = element(isVideo ? "video" : "audio", {
      src: URL.createObjectURL(file),
      preload: "metadata",
      controls: isVideo,
      playsInline: true,
    });
    const media = this.#media;
    media.setAttribute("aria-label", file.name);
    for (const name of ["play", "pause", "ended"]) media.addEventListener(name, () => this.#render());
    for (const name of ["seeked", "timeupdate"]) media.addEventListener(name, () => this.#tell());
    media.addEventListener("play", () => this.#follow());
    media.addEventListener("error", () => {
      if (media !== this.#media) return;
      this.#broken = true;
      this.#render();
    });
    byId("media").replaceChildren(media);
    this.#applySpeed();
  }

  #setTrack(track) {
    if (this.#track) {
      URL.revokeObjectURL(this.#track.src);
      this.#track.remove();
    }
    this.#track = track;
    if (track) this.#media.append(track);
  }

  async #play() {
    try {
      await this.#media?.play();
    } catch (error) {
      // Pausing before playback starts also rejects; a broken file is reported elsewhere.
      if (error.name !== "AbortError" && error.name !== "NotSupportedError") console.error(error);
    }
  }

  /** Report the time at every frame: `timeupdate` fires only four times a second. */
  #follow() {
    const step = () => {
      if (!this.isPlaying) return;
      this.#tell();
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  #tell() {
    this.#renderTime();
    this.#onTime(this.seconds);
  }

  #applySpeed() {
    if (this.#media) this.#media.playbackRate = Number(byId("speed").value);
  }

  #render() {
    byId("player-controls").hidden = !this.#media || this.#broken;
    byId("media").hidden = this.#broken || !(this.#media instanceof HTMLVideoElement);
    byId("player-broken").hidden = !this.#media || !this.#broken;
    byId("play").setAttribute("aria-label", text(this.isPlaying ? "player.pause" : "player.play"));
    byId("play").classList.toggle("playing", this.isPlaying);
    this.#renderTime();
  }

  #renderTime() {
    setText(byId("player-time"), `${clock(this.seconds)} / ${clock(this.#durationS)}`);
  }
}
