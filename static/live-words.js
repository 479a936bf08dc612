/** Words of the microphone while someone speaks, over a WebSocket; where there is none, there are no words. */

/** The server takes no more samples a second. */
const MAX_RATE = 48_000;
/** A connection that takes the sound so slowly, in characters that wait, is no use. */
const MAX_WAITING = 2_000_000;
const TRANSCRIPTION = "conversation.item.input_audio_transcription.";

export class LiveWords {
  isPaused = false;
  /** `{startS, text}` of each turn, in order; those of noise have no text. */
  turns = [];
  #onChange;
  #ids = [];
  #socket = null;
  #node = null;

  /**
   * Listen to a `source` of `context`; `request` is what a transcription is asked with.
   *
   * `onChange()` is called once the server listens, and after each change of `turns`.
   */
  constructor(context, source, request, onChange) {
    this.#onChange = onChange;
    if (context.sampleRate > MAX_RATE || !context.audioWorklet) return;
    this.#open(context, source, request).catch((error) => {
      // The recording itself goes on, and is transcribed as a whole.
      console.info("no words while speaking:", error);
      this.close();
    });
  }

  close() {
    this.#node?.disconnect();
    this.#socket?.close();
    this.#node = this.#socket = null;
  }

  async #open(context, source, { apiKey, model, spokenLanguage, keywords }) {
    const address = new URL("v1/realtime?intent=transcription", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    if (model) address.searchParams.set("model", model);
    const key = apiKey ? [`openai-insecure-api-key.${apiKey}`] : [];
    const socket = this.#socket = new WebSocket(address, ["realtime", ...key]);
    socket.addEventListener("message", ({ data }) => this.#answer(JSON.parse(data)));
    socket.addEventListener("close", () => this.close());
    socket.addEventListener("open", () => {
      this.#send("session.update", {
        session: {
          type: "transcription",
          audio: {
            input: {
              format: { type: "audio/pcm", rate: context.sampleRate },
              transcription: { ...(spokenLanguage ? { language: spokenLanguage } : {}), keywords },
            },
          },
        },
      });
    });
    await context.audioWorklet.addModule(new URL("microphone.js", import.meta.url));
    if (this.#socket !== socket) return;
    this.#node = new AudioWorkletNode(context, "microphone", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.#node.port.addEventListener("message", ({ data }) => this.#hear(data));
    this.#node.port.start();
    source.connect(this.#node);
  }

  #hear(samples) {
    if (this.isPaused || this.#socket?.readyState !== WebSocket.OPEN) return;
    if (this.#socket.bufferedAmount > MAX_WAITING) {
      this.close();
      return;
    }
    this.#send("input_audio_buffer.append", { audio: base64(new Uint8Array(samples.buffer)) });
  }

  #send(type, fields) {
    this.#socket?.send(JSON.stringify({ type, ...fields }));
  }

  #answer({ type, item_id: id, audio_start_ms: startMs, delta, transcript }) {
    // Messages that were on their way when the recording ended.
    if (!this.#socket) return;
    if (type === "input_audio_buffer.speech_started") this.#turn(id).startS = startMs / 1000;
    else if (type === `${TRANSCRIPTION}delta`) this.#turn(id).text += delta;
    else if (type === `${TRANSCRIPTION}completed`) this.#turn(id).text = transcript;
    else if (type !== "session.updated") return;
    this.#onChange();
  }

  #turn(id) {
    if (!this.#ids.includes(id)) {
      this.#ids.push(id);
      this.turns.push({ startS: this.turns.at(-1)?.startS ?? 0, text: "" });
    }
    return this.turns[this.#ids.indexOf(id)];
  }
}

function base64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
