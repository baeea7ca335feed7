/** A plot of the last five minutes, drawn by uPlot (static/uplot), with a legend that tells the values in words. */

import {short} from "./figures.js";

const SECONDS = 300;
const HEIGHT = 150;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const CURSORS = globalThis.uPlot.sync("plots");

/** A colour of the style sheet, as it is now: # and six digits. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export class Plot {
  #figure;
  #names;
  #lines;
  #format;
  #least;
  #values;
  #uplot;

  /**
   * @param {HTMLElement} figure with a figcaption, whose `data-line` elements name the lines and hold a `b` for the
   *   value and an `i` in the line's colour, and an element `.canvas`
   * @param {(value: ?number) => string} format of a value in the legend
   * @param {number} least the top of the axis is no lower
   */
  constructor(figure, format, least) {
    this.#figure = figure;
    this.#format = format;
    this.#least = least;
    const keys = [...figure.querySelectorAll("[data-line]")];
    this.#names = keys.map((key) => key.dataset.line);
    this.#values = keys.map((key) => key.querySelector("b"));
    const place = figure.querySelector(".canvas");
    this.#uplot = new globalThis.uPlot(this.#options(keys, place.clientWidth), null, place);
    new ResizeObserver(() => this.#uplot.setSize({width: place.clientWidth, height: HEIGHT})).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#uplot.redraw());
  }

  get names() {
    return this.#names;
  }

  /** @param {(?number)[][]} lines seconds before now, negative, then the values of each line */
  draw(lines) {
    this.#lines = lines;
    this.#uplot.setData(lines);
    const empty = lines.slice(1).every((values) => values.every((value) => value === null));
    this.#figure.classList.toggle("empty-plot", empty);
    this.#tell();
  }

  #options(keys, width) {
    const axis = {
      stroke: () => colour("--soft"),
      font: FONT,
      grid: {stroke: () => colour("--line"), width: 1},
      ticks: {show: false},
    };
    return {
      width,
      height: HEIGHT,
      padding: [8, 12, 0, 0],
      legend: {show: false},
      cursor: {sync: {key: CURSORS.key}, y: false, drag: {setScale: false, x: false}, points: {size: 7}},
      scales: {x: {time: false, range: [-SECONDS, 0]}, y: {range: (_, low, high) => [0, this.#top(high)]}},
      axes: [
        {...axis, incrs: [60], size: 30, gap: 8, grid: {show: false}, values: (_, splits) => splits.map(before)},
        {...axis, size: 46, space: 32, values: (_, splits) => splits.map(short)},
      ],
      series: [{}, ...keys.map((key) => series(key.dataset.colour, keys.length === 1))],
      hooks: {setCursor: [() => this.#tell()]},
    };
  }

  /** Somewhat above the highest value, which then stays clear of the edge. */
  #top(high) {
    return Math.max(this.#least, (high ?? 0) * 1.1);
  }

  /** The values under the cursor, or else the last ones. */
  #tell() {
    if (!this.#lines) return;
    const place = this.#uplot.cursor.idx ?? this.#lines[0].length - 1;
    this.#values.forEach((element, index) => {
      element.textContent = this.#format(this.#lines[index + 1][place] ?? null);
    });
    const words = this.#names.map((name, index) => `${name} ${this.#values[index].textContent}`).join(", ");
    this.#figure.querySelector(".canvas").setAttribute("aria-label", `Plot of the last 5 minutes; now ${words}`);
  }
}

function series(name, alone) {
  return {
    stroke: () => colour(name),
    fill: alone ? () => `${colour(name)}24` : undefined,
    width: 1.75,
    points: {show: false},
  };
}

/** A moment on the axis of time. */
function before(seconds) {
  return seconds === 0 ? "now" : `−${-seconds / 60} min`;
}
