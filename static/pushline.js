/**
 * An EventSource that does not give up.
 *
 * EventSource reconnects by itself after a broken connection, but stops for ever on any answer but 200: an expired
 * ticket, a restarting proxy's 503. Pushline opens a new one then, after a growing random delay, and goes on after the
 * last event it has seen. It also lets go of the connection while the browser keeps a left page for the way back: six
 * of those would use up all the connections that HTTP/1.1 allows to one site.
 *
 *     import {Pushline} from "./pushline.js";
 *     const stream = new Pushline("/stream?channel=orders");
 *     stream.addEventListener("price", (event) => console.log(event.lastEventId, event.data));
 *     stream.addEventListener("state", ({detail}) => console.log(detail.state, detail.delay));
 *     stream.close();
 *
 * No token stands in an address, where logs and histories would keep it. A cookie is sent by the browser; else let a
 * function turn the token into a ticket, which counts for a minute, for each opening:
 *
 *     const stream = new Pushline(async () => {
 *       const headers = {Authorization: `Bearer ${await currentToken()}`};
 *       const answer = await fetch("/tickets?channel=orders", {method: "POST", headers});
 *       if (!answer.ok) throw new Error(`no ticket: ${answer.status}`);
 *       const {ticket} = await answer.json();
 *       return `/stream?channel=orders&ticket=${ticket}`;
 *     });
 *
 * A page of another origin, which CORS_ORIGINS must list, does the same with whole addresses. To let a cookie count
 * there, say `{withCredentials: true}`, or `credentials: "include"` to fetch; but many browsers keep cookies from
 * pages of another site, and tickets from none.
 *
 * When the credential expires, the service ends the stream with `$end`, reason "expired": the function is asked again,
 * and the stream goes on after the last event it has seen. If there is no new credential yet, it keeps trying.
 */

/** The unnamed event and the service's own: always listened for, which keeps the last event id fresh. */
const ALWAYS = ["message", "$reset", "$end", "$ping"];

/** Parameters that say where a stream begins: a known last event id replaces them all. */
const CURSORS = ["last_event_id", "lastEventID", "lastEventId", "last", "since"];

/**
 * What `detail` of a "state" event holds.
 *
 * @typedef {object} PushlineState
 * @property {"connecting"|"open"|"waiting"|"closed"|"ended"} state
 *   connecting: a connection is being made, by the browser's own retry too, which hides its delay.
 *   waiting: EventSource gave up, or the credential has expired; a new one opens after `delay`.
 *   closed: close() was called. ended: every channel of the stream has sent `$end`, or the service has closed this
 *   user's streams. Both are final.
 * @property {number} delay milliseconds until the next opening; 0 unless waiting
 * @property {number} reconnects how often the stream has opened again after its first opening
 * @property {?Error} error why no URL could be had, if that is what makes it wait
 */

/**
 * Dispatches a MessageEvent (`data`, `lastEventId`, `origin`) for each event received, under the event's own name, and
 * a CustomEvent "state" for each change. An event published as "state" is passed on only if `events` names it.
 *
 * A 204 (nothing more to come) looks to a page like any other refusal: only `$end` tells that a stream is over.
 */
export class Pushline extends EventTarget {
  #locate;
  #withCredentials;
  #minDelay;
  #maxDelay;
  #names;
  #ended = new Set();
  #source = null;
  #timer = 0;
  #attempt = 0;
  #failures = 0;
  #openings = 0;
  #state = "connecting";
  #lastEventId = "";

  /**
   * Opens the stream, at the end of the current task's synchronous part: listeners added at once miss nothing.
   *
   * @param {string|URL|function(): (string|URL|Promise<string|URL>)} url the stream's address, or a function that is
   *   called for each new EventSource (to fetch a fresh ticket, say); the browser's own retries repeat the last address
   * @param {object} [options]
   * @param {string[]} [options.events] event names to listen for from the start; addEventListener adds its own
   * @param {boolean} [options.withCredentials] send cookies to another origin
   * @param {number} [options.minDelay] milliseconds: upper bound of the first random delay, doubled with each failure
   * @param {number} [options.maxDelay] milliseconds: no delay is longer
   */
  constructor(url, {events = [], withCredentials = false, minDelay = 1000, maxDelay = 30000} = {}) {
    super();
    const fixed = typeof url === "function" ? null : absolute(url);
    this.#locate = fixed ? () => fixed : url;
    this.#withCredentials = withCredentials;
    this.#minDelay = minDelay;
    this.#maxDelay = maxDelay;
    this.#names = new Set([...ALWAYS, ...events]);
    globalThis.addEventListener("pagehide", this.#release);
    globalThis.addEventListener("pageshow", this.#comeBack);
    queueMicrotask(() => this.#open());
  }

  /** One of the states of PushlineState. */
  get state() {
    return this.#state;
  }

  /** The id of the last event seen, "" before the first: the cursor after which a reopened stream goes on. */
  get lastEventId() {
    return this.#lastEventId;
  }

  /** How often the stream has opened again after its first opening. */
  get reconnects() {
    return Math.max(0, this.#openings - 1);
  }

  /** As EventTarget's; also begins to listen for events of this name, which EventSource does not do unasked. */
  addEventListener(type, listener, options) {
    if (type !== "state" && !this.#names.has(type)) {
      this.#names.add(type);
      this.#source?.addEventListener(type, this.#receive);
    }
    super.addEventListener(type, listener, options);
  }

  /** Ends the stream for good. */
  close() {
    this.#finish("closed");
  }

  async #open() {
    if (this.#isFinal()) return;
    this.#attempt += 1;
    const attempt = this.#attempt;
    this.#enter("connecting");
    let url;
    try {
      url = absolute(await this.#locate());
    } catch (error) {
      if (attempt === this.#attempt) this.#wait(error);
      return;
    }
    if (attempt !== this.#attempt) return; // closed or left meanwhile
    // Pings show how far a quiet stream is: a ticket may be too old for the browser's own retry, which knows it.
    if (!url.searchParams.has("ping")) url.searchParams.set("ping", "event");
    if (this.#lastEventId) {
      CURSORS.forEach((name) => url.searchParams.delete(name));
      url.searchParams.set("last_event_id", this.#lastEventId);
    }
    const source = new EventSource(url, {withCredentials: this.#withCredentials});
    this.#source = source;
    // A published event may be named "open" or "error": it is a MessageEvent, the browser's own are not.
    source.addEventListener("open", (event) => {
      if (event instanceof MessageEvent) return;
      this.#failures = 0;
      this.#openings += 1;
      this.#enter("open");
    });
    source.addEventListener("error", (event) => {
      if (event instanceof MessageEvent) return;
      if (source.readyState === EventSource.CLOSED) this.#wait(null);
      else this.#enter("connecting");
    });
    this.#names.forEach((name) => source.addEventListener(name, this.#receive));
  }

  #receive = (event) => {
    if (!(event instanceof MessageEvent)) return;
    this.#lastEventId = event.lastEventId || this.#lastEventId;
    const {data, origin, lastEventId} = event;
    this.dispatchEvent(new MessageEvent(event.type, {data, origin, lastEventId}));
    if (event.type === "$end") this.#end(data, event.target.url);
  };

  /** A stream goes on while one of its channels does; one whose address names no channel is over at once. */
  #end(data, url) {
    if (this.#isFinal()) return; // whoever listens for `$end` may have closed the stream
    let said = {};
    try {
      said = {...JSON.parse(data)};
    } catch {
      // Not the service's own words: then only an address without channels counts.
    }
    if (said.channel === undefined && said.reason === "expired") {
      this.#release(); // the browser's own retry would show the old credential once more
      this.#wait(null);
      return;
    }
    if (said.channel === undefined && said.reason === "revoked") {
      this.#finish("ended");
      return;
    }
    this.#ended.add(said.channel);
    const channels = new URL(url).searchParams.getAll("channel");
    if (channels.every((channel) => this.#ended.has(channel))) this.#finish("ended");
  }

  /** Full jitter: all the clients of a server that went away don't come back at the same moment. */
  #wait(error) {
    this.#source = null;
    const longest = Math.min(this.#maxDelay, this.#minDelay * 2 ** Math.min(this.#failures, 30));
    const delay = Math.random() * longest;
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#open(), delay);
    this.#enter("waiting", delay, error);
  }

  #finish(state) {
    if (this.#isFinal()) return;
    this.#release();
    globalThis.removeEventListener("pagehide", this.#release);
    globalThis.removeEventListener("pageshow", this.#comeBack);
    this.#enter(state);
  }

  #release = () => {
    this.#attempt += 1;
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  };

  #comeBack = (event) => {
    if (event.persisted) this.#open();
  };

  #isFinal() {
    return this.#state === "closed" || this.#state === "ended";
  }

  #enter(state, delay = 0, error = null) {
    this.#state = state;
    const detail = {state, delay, reconnects: this.reconnects, error};
    this.dispatchEvent(new CustomEvent("state", {detail}));
  }
}

/** A fresh URL object, relative to the page (or the worker's script). */
function absolute(url) {
  return new URL(url, globalThis.document?.baseURI ?? globalThis.location.href);
}
