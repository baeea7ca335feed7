/** Numbers as people read them. */

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const tenths = new Intl.NumberFormat("en", {minimumFractionDigits: 1, maximumFractionDigits: 1});
const compact = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});

export const NONE = "–";

/** A count: exact below a million. */
export function count(value) {
  return value < 1e6 ? whole.format(value) : compact.format(value);
}

/** For the axis of a plot. */
export function short(value) {
  return compact.format(value);
}

/** Something per second. */
export function rate(value) {
  if (value === null || value === undefined) return NONE;
  return value > 0 && value < 9.95 ? tenths.format(value) : count(value);
}

/** Milliseconds, with their unit; `least` is what can't be told from less. */
export function milliseconds(value, least = 1) {
  if (value === null || value === undefined) return NONE;
  if (value <= least) return `≤ ${least} ms`;
  if (value < 9.95) return `${tenths.format(value)} ms`;
  return value < 1000 ? `${whole.format(value)} ms` : `${tenths.format(value / 1000)} s`;
}

export function percent(share) {
  return `${whole.format(share * 100)} %`;
}

export function bytes(value) {
  if (value < 1024) return `${whole.format(value)} B`;
  if (value < 1024 ** 2) return `${whole.format(value / 1024)} KiB`;
  if (value < 1024 ** 3) return `${whole.format(value / 1024 ** 2)} MiB`;
  return `${tenths.format(value / 1024 ** 3)} GiB`;
}

/** How long something has lasted. */
export function age(seconds) {
  if (seconds < 120) return `${whole.format(seconds)} s`;
  if (seconds < 7200) return `${whole.format(Math.floor(seconds / 60))} min`;
  if (seconds < 172_800) return `${whole.format(Math.floor(seconds / 3600))} h`;
  return `${whole.format(Math.floor(seconds / 86_400))} d`;
}
