/** The list of events, newest first: bounded, drawn in batches so that a flood costs the page little, and text only. */

const LIMIT = 500; // rows kept; also the most that waits while paused
const DRAW_MILLISECONDS = 100; // between two batches
const SHOWN_CHARACTERS = 2000; // of an event's text

/**
 * @typedef {object} Entry
 * @property {string} id "" if the event has none
 * @property {string} type
 * @property {string} text the data, or for the service's own events what they mean
 * @property {number} time milliseconds since 1970: when it was published, or arrived if that is unknown
 * @property {?number} latency milliseconds
 */

export class EventList {
  #body;
  #changed;
  #rows = []; // {entry, row, repeats}, newest first
  #pending = []; // entries not yet drawn, oldest first
  #held = 0; // entries that arrived while paused, also those which didn't stay in #pending
  #timer = 0;
  #drawn = 0;
  #paused = false;

  /**
   * @param {HTMLElement} body the table's body
   * @param {function(): void} changed called after each change of what is shown
   */
  constructor(body, changed) {
    this.#body = body;
    this.#changed = changed;
  }

  /** @param {Entry} entry */
  add(entry) {
    this.#pending.push(entry);
    if (this.#pending.length > 2 * LIMIT) this.#pending = this.#pending.slice(-LIMIT);
    if (!this.#paused) {
      this.#schedule();
      return;
    }
    this.#held += 1;
    this.#changed();
  }

  get paused() {
    return this.#paused;
  }

  set paused(paused) {
    this.#paused = paused;
    this.#held = paused ? this.#pending.length : 0;
    if (!paused) this.#draw();
    this.#changed();
  }

  /** How many events wait for the end of the pause. */
  get held() {
    return this.#held;
  }

  /** How many rows are shown. */
  get length() {
    return this.#rows.length;
  }

  /** Whether older rows give way to newer ones. */
  get full() {
    return this.#rows.length === LIMIT;
  }

  /** Median milliseconds of the rows that have a latency, or null. */
  get medianLatency() {
    const known = this.#rows.map(({entry}) => entry.latency).filter((latency) => latency !== null);
    known.sort((left, right) => left - right);
    return known.length ? known[Math.floor(known.length / 2)] : null;
  }

  clear() {
    this.#rows = [];
    this.#pending = [];
    this.#held = 0;
    this.#body.replaceChildren();
    this.#changed();
  }

  #schedule() {
    if (this.#timer) return;
    const wait = Math.max(0, this.#drawn + DRAW_MILLISECONDS - performance.now());
    this.#timer = setTimeout(() => this.#draw(), wait);
  }

  #draw() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (this.#paused) return;
    this.#drawn = performance.now();
    const fresh = [];
    for (const entry of this.#pending.slice(-LIMIT)) {
      const last = fresh[0] ?? this.#rows[0];
      if (entry.type === "$ping" && last?.entry.type === "$ping") repeat(last, entry);
      else fresh.unshift({entry, row: makeRow(entry), repeats: 1});
    }
    this.#pending = [];
    this.#body.prepend(...fresh.map(({row}) => row));
    this.#rows.unshift(...fresh);
    this.#rows.splice(LIMIT).forEach(({row}) => row.remove());
    this.#changed();
  }
}

/** A quiet stream's pings share one row. */
function repeat(record, entry) {
  record.entry = entry;
  record.repeats += 1;
  const row = makeRow({...entry, text: `${entry.text} (${record.repeats} in a row)`});
  record.row.replaceChildren(...row.childNodes);
}

/** @param {Entry} entry */
function makeRow(entry) {
  const row = document.createElement("tr");
  row.setAttribute("role", "row");
  row.dataset.type = entry.type;
  row.dataset.id = entry.id;
  row.classList.toggle("service", entry.type.startsWith("$"));
  row.classList.toggle("alarm", entry.type === "$reset");
  row.classList.toggle("named", entry.type !== "message");
  const type = document.createElement("span");
  type.textContent = entry.type;
  row.append(
    cell("time", clock(entry.time)),
    cell("type", type),
    cell("data", shorten(entry.text)),
    cell("latency", entry.latency === null ? "–" : duration(entry.latency)),
    cell("id", entry.id || "no id"),
  );
  row.querySelector(".type").title = entry.type;
  row.querySelector(".id").title = entry.id;
  return row;
}

function cell(name, content) {
  const element = document.createElement("td");
  element.setAttribute("role", "cell");
  element.className = name;
  element.append(content); // a string becomes a text node
  return element;
}

function shorten(text) {
  if (text.length <= SHOWN_CHARACTERS) return text;
  const rest = (text.length - SHOWN_CHARACTERS).toLocaleString("en");
  return `${text.slice(0, SHOWN_CHARACTERS)}… and ${rest} more characters`;
}

/** Local time of day with milliseconds. */
function clock(milliseconds) {
  const time = new Date(milliseconds);
  const parts = [time.getHours(), time.getMinutes(), time.getSeconds()].map((part) => String(part).padStart(2, "0"));
  return `${parts.join(":")}.${String(time.getMilliseconds()).padStart(3, "0")}`;
}

/** Milliseconds in the unit that reads best. */
export function duration(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 60_000) return `${(milliseconds / 1000).toFixed(1)} s`;
  if (milliseconds < 3_600_000) return `${Math.round(milliseconds / 60_000)} min`;
  return `${Math.round(milliseconds / 3_600_000)} h`;
}
