/** The last five minutes, a point a second: what the plots show, and what has happened in that time. */

import {added, percentile} from "./fleet.js";

const KEPT_SECONDS = 300;
const LATENCY_SECONDS = 10; // percentiles are of so much time, as one second may have few values
const GAP_SECONDS = 3; // without a point for so long, a line has a gap

/** @typedef {import("./fleet.js").Fleet} Fleet */

export class History {
  #points = [];

  /**
   * Adds a point.
   *
   * @param {Fleet} fleet
   * @param {number} time in seconds
   */
  add(fleet, time) {
    const rise = fleet.takeRise();
    this.#points = this.#points.filter((point) => point.time > time - KEPT_SECONDS);
    const point = {time, rise, values: {}};
    this.#points.push(point);
    if (!fleet.workers.length) return; // a gap
    point.values = {streams: fleet.sum("streams")};
    for (const name of ["published", "received", "delivered"]) point.values[name] = fleet.rate(name);
    for (const [name, share] of [["p50", 0.5], ["p90", 0.9], ["p99", 0.99]]) {
      point.values[name] = milliseconds(this.percentile(fleet.bounds, "delivery", share));
    }
  }

  /** Percentiles of the last seconds, in seconds; null if nothing was measured. */
  percentile(bounds, name, share) {
    const from = (this.#points.at(-1)?.time ?? 0) - LATENCY_SECONDS;
    const recent = this.#points.filter(({time}) => time > from);
    return percentile(bounds, recent.reduce((sum, {rise}) => added(sum, rise[name]), []), share);
  }

  /** The last value of a plotted line; null or undefined if there is none. */
  last(name) {
    return this.#points.at(-1)?.values[name];
  }

  /** How often something has happened in this time, by label: streams `closed` or requests `refused`. */
  happened(name) {
    const sums = {};
    for (const {rise} of this.#points) {
      for (const [label, count] of Object.entries(rise[name])) sums[label] = (sums[label] ?? 0) + count;
    }
    return sums;
  }

  /**
   * The lines of a plot: first the seconds before `now`, negative, then a list of values for each name.
   *
   * @param {string[]} names
   * @param {number} now in seconds
   */
  lines(names, now) {
    const lines = [[], ...names.map(() => [])];
    let before = null;
    for (const {time, values} of this.#points) {
      if (before !== null && time - before > GAP_SECONDS) push(lines, before + 1 - now, names.map(() => null));
      push(lines, time - now, names.map((name) => values[name] ?? null));
      before = time;
    }
    return lines;
  }
}

function push(lines, time, values) {
  [time, ...values].forEach((value, index) => lines[index].push(value));
}

function milliseconds(seconds) {
  return seconds === null ? null : seconds * 1000;
}
