/** What the tables of the dashboard show. */

import {NONE, age, bytes, count, milliseconds, percent, rate} from "./figures.js";

const CHANNELS = 20;

/** @typedef {import("./fleet.js").Fleet} Fleet */
/** @typedef {import("./history.js").History} History */

/**
 * One cell: its text, how long its bar is (a share of 1) if it has one, and its class.
 *
 * @typedef {{text: string, share?: number, kind?: string}} Cell
 */

/** Makes a table's body show these rows; what stays the same is left alone, so that it can be selected. */
export function fill(body, rows) {
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    cells.forEach(({text, share, kind = ""}, place) => {
      const cell = row.cells[place] ?? row.insertCell();
      if (cell.textContent !== text) cell.textContent = text;
      if (cell.className !== kind) cell.className = kind;
      if (share !== undefined) cell.style.setProperty("--share", String(Math.min(1, share)));
    });
  });
}

/** @param {Fleet} fleet */
export function workerRows(fleet) {
  const most = (of) => Math.max(1, ...fleet.workers.map(of));
  const mostStreams = most(({now}) => now.streams);
  const mostDelivered = most(({rates}) => rates.delivered ?? 0);
  return fleet.workers.map(({now, rates}) => [
    {text: `${now.host}:${now.pid}`, kind: "name"},
    measure(count(now.streams), now.streams / mostStreams),
    measure(rate(rates.delivered), (rates.delivered ?? 0) / mostDelivered),
    measure(rates.cpu_seconds === undefined ? NONE : percent(rates.cpu_seconds), rates.cpu_seconds ?? 0, "extra"),
    number(bytes(now.resident_bytes), "extra"),
    number(bytes(now.unsent_bytes), "extra"),
    number(age(now.uptime), "extra"),
    workerState(now),
  ]);
}

function workerState({draining, redis}) {
  if (draining) return {text: "draining", kind: "warning"};
  return redis ? {text: "ready", kind: "fine"} : {text: "without Redis", kind: "warning"};
}

/** @param {Fleet} fleet */
export function channelRows(fleet) {
  const pairs = fleet.busiest.slice(0, CHANNELS);
  return pairs.map(([name, streams]) => [{text: name, kind: "name"}, measure(count(streams), streams / pairs[0][1])]);
}

/**
 * Streams `closed` by reason or requests `refused` by code, those with most of late first.
 *
 * @param {Fleet} fleet
 * @param {History} history
 * @param {"closed"|"refused"} name
 */
export function labelRows(fleet, history, name) {
  const recent = history.happened(name);
  const all = fleet.labelled(name);
  const labels = [...new Set([...Object.keys(recent), ...Object.keys(all)])].filter((one) => recent[one] || all[one]);
  labels.sort((one, other) => (recent[other] ?? 0) - (recent[one] ?? 0) || (all[other] ?? 0) - (all[one] ?? 0));
  const most = Math.max(1, ...Object.values(recent));
  return labels.map((label) => [
    {text: label, kind: "name"},
    measure(count(recent[label] ?? 0), (recent[label] ?? 0) / most),
    number(count(all[label] ?? 0)),
  ]);
}

/**
 * @param {Fleet} fleet
 * @param {History} history
 */
export function storeRows(fleet, history) {
  const lost = Object.entries(fleet.labelled("redis_losses")).filter(([, times]) => times);
  const took = (share) => history.percentile(fleet.bounds, "publish", share);
  const accepted = [0.5, 0.99].map((share) => milliseconds(took(share) === null ? null : took(share) * 1000));
  const following = fleet.workers.filter(({now}) => now.redis).length;
  const {length} = fleet.workers;
  const counters = (name) => fleet.workers.reduce((sum, {now}) => sum + now.counters[name], 0);
  return [
    [{text: "Workers that follow it"}, number(`${following} of ${length}`)],
    [{text: "Accepts an event in, p50"}, number(accepted[0])],
    [{text: "Accepts an event in, p99"}, number(accepted[1])],
    [{text: "Publishes failed"}, number(count(counters("failed")))],
    [{text: "Links lost"}, number(lost.map(([reason, times]) => `${count(times)} ${reason}`).join(", ") || "0")],
    [{text: "Outages made good from history"}, number(count(counters("gaps")))],
    [{text: "$reset told to streams"}, number(count(counters("resets")))],
  ];
}

function measure(text, share, kind = "") {
  return {text, share, kind: `measure ${kind}`.trim()};
}

function number(text, kind = "") {
  return {text, kind: `number ${kind}`.trim()};
}
