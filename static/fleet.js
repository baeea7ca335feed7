/** What all workers tell on `$sys`, put together: their newest snapshots, and how fast their counters rise. */

const GONE_MILLISECONDS = 5000; // without a snapshot for so long, a worker is gone
const DISTRIBUTIONS = ["delivery", "publish", "lag"];
const BY_LABEL = ["closed", "refused"];

/**
 * One worker.
 *
 * @typedef {object} Worker
 * @property {object} now its newest snapshot (service/snapshot.py)
 * @property {number} seen when that came, by the page's monotonic clock, in milliseconds
 * @property {Object<string, number>} rates how fast its counters rise, per second; empty before the second snapshot
 * @property {number[]} lag counts of its last rise of loop lags
 */

/**
 * What has happened since it was asked for last.
 *
 * @typedef {object} Rise
 * @property {Object<string, number>} closed streams by reason
 * @property {Object<string, number>} refused requests by code
 * @property {number[]} delivery counts of publish-to-write times, by the snapshots' bounds
 * @property {number[]} publish counts of times that publishing took
 * @property {number[]} lag counts of loop lags
 */

export class Fleet {
  #workers = new Map();
  #rise = noRise();

  /**
   * Takes a snapshot. A worker that was never seen, such as one that takes a dead one's place, only begins with it: its
   * counters say nothing about a rise yet.
   *
   * @param {object} snapshot
   * @param {number} now by the page's monotonic clock, in milliseconds
   */
  take(snapshot, now) {
    const before = this.#workers.get(snapshot.worker)?.now;
    if (before && snapshot.at <= before.at) return; // came late
    const worker = {now: snapshot, seen: now, rates: {}, lag: []};
    this.#workers.set(snapshot.worker, worker);
    if (!before) return;
    const seconds = snapshot.at - before.at;
    for (const [name, value] of Object.entries(snapshot.counters)) {
      worker.rates[name] = Math.max(0, value - (before.counters[name] ?? 0)) / seconds;
    }
    worker.lag = risen(snapshot.lag, before.lag);
    for (const name of DISTRIBUTIONS) this.#rise[name] = added(this.#rise[name], risen(snapshot[name], before[name]));
    for (const name of BY_LABEL) {
      for (const [label, value] of Object.entries(snapshot[name])) {
        const more = value - (before[name][label] ?? 0);
        if (more > 0) this.#rise[name][label] = (this.#rise[name][label] ?? 0) + more;
      }
    }
  }

  /** Forgets the workers of which nothing has come for five seconds before `now`, in milliseconds. */
  expire(now) {
    for (const [name, worker] of this.#workers) {
      if (now - worker.seen > GONE_MILLISECONDS) this.#workers.delete(name);
    }
  }

  /** @returns {Worker[]} those that are there, by host and process id */
  get workers() {
    const place = ({now}) => `${now.host}:${String(now.pid).padStart(10, "0")}`;
    return [...this.#workers.values()].sort((left, right) => (place(left) < place(right) ? -1 : 1));
  }

  /** A number of the snapshots, such as `streams`, added up over workers. */
  sum(name) {
    return this.workers.reduce((sum, {now}) => sum + now[name], 0);
  }

  /** A counter's rise per second, added up over workers. */
  rate(name) {
    return this.workers.reduce((sum, {rates}) => sum + (rates[name] ?? 0), 0);
  }

  /** Numbers by label, such as `closed` by reason, since the start of the workers that are there. */
  labelled(name) {
    const sums = {};
    for (const {now} of this.workers) {
      for (const [label, value] of Object.entries(now[name])) sums[label] = (sums[label] ?? 0) + value;
    }
    return sums;
  }

  /** The channels with most streams: pairs of name and streams, added up over what each worker names. */
  get busiest() {
    const sums = new Map();
    for (const {now} of this.workers) {
      for (const [channel, streams] of now.top) sums.set(channel, (sums.get(channel) ?? 0) + streams);
    }
    return [...sums].sort((left, right) => right[1] - left[1] || (left[0] < right[0] ? -1 : 1));
  }

  /** The bounds of the distributions, in seconds. */
  get bounds() {
    return this.workers[0]?.now.bounds ?? [];
  }

  /** @returns {Rise} */
  takeRise() {
    const rise = this.#rise;
    this.#rise = noRise();
    return rise;
  }
}

function noRise() {
  return {closed: {}, refused: {}, delivery: [], publish: [], lag: []};
}

function risen(now, before) {
  return now.map((count, index) => Math.max(0, count - (before[index] ?? 0)));
}

/** The sums of two lists, of which one may be empty. */
export function added(left, right) {
  const longer = left.length > right.length ? left : right;
  return longer.map((_, index) => (left[index] ?? 0) + (right[index] ?? 0));
}

/**
 * The time below which a share of the values lies, as far as buckets tell: within one, values count as evenly spread.
 *
 * @param {number[]} bounds of the buckets, in seconds
 * @param {number[]} counts of values in each, and beyond the last
 * @param {number} share such as 0.99
 * @returns {?number} seconds; null without values, the last bound for what lies beyond it
 */
export function percentile(bounds, counts, share) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!all) return null;
  let below = 0;
  for (let index = 0; index < bounds.length; index += 1) {
    if (below + counts[index] >= share * all) {
      const low = index ? bounds[index - 1] : 0;
      return low + (bounds[index] - low) * ((share * all - below) / counts[index]);
    }
    below += counts[index];
  }
  return bounds.at(-1);
}
