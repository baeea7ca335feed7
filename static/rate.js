/** The sparkline: events per second over the last minute, one bar a second, the running second at the right edge. */

const SECONDS = 60;
const SVG = "http://www.w3.org/2000/svg";

export class RateChart {
  #svg;
  #maxLabel;
  #bars = [];
  #counts = new Array(SECONDS).fill(0);
  #second = currentSecond();

  /**
   * @param {SVGElement} svg with viewBox "0 0 60 1"
   * @param {HTMLElement} maxLabel shows the value of the chart's upper edge, in events per second
   */
  constructor(svg, maxLabel) {
    this.#svg = svg;
    this.#maxLabel = maxLabel;
    for (let index = 0; index < SECONDS; index += 1) {
      const bar = document.createElementNS(SVG, "rect");
      bar.setAttribute("x", index + 0.12);
      bar.setAttribute("width", 0.76);
      svg.append(bar);
      this.#bars.push(bar);
    }
    this.draw();
  }

  /** Counts one event, now. */
  count() {
    this.#advance();
    this.#counts[SECONDS - 1] += 1;
  }

  /** Events in the last whole second. */
  get rate() {
    this.#advance();
    return this.#counts[SECONDS - 2];
  }

  clear() {
    this.#counts.fill(0);
    this.draw();
  }

  draw() {
    this.#advance();
    const peak = Math.max(...this.#counts);
    const top = roundUp(peak);
    this.#bars.forEach((bar, index) => {
      const height = this.#counts[index] / top;
      bar.setAttribute("height", height);
      bar.setAttribute("y", 1 - height);
    });
    this.#maxLabel.textContent = new Intl.NumberFormat("en", {notation: "compact"}).format(top);
    const words = `Events per second over the last 60 seconds: ${this.rate} in the last second, ${peak} at most`;
    this.#svg.setAttribute("aria-label", words);
  }

  #advance() {
    const second = currentSecond();
    const passed = Math.min(SECONDS, second - this.#second);
    if (passed > 0) this.#counts = [...this.#counts.slice(passed), ...new Array(passed).fill(0)];
    this.#second = second;
  }
}

/** By the monotonic clock: setting the wall clock must not tear the chart. */
function currentSecond() {
  return Math.floor(performance.now() / 1000);
}

/** The least of 5, 10, 20, 50, 100, ... that is not below the value. */
function roundUp(value) {
  for (let power = 1; ; power *= 10) {
    const step = [1, 2, 5].find((factor) => factor * power >= Math.max(5, value));
    if (step) return step * power;
  }
}
