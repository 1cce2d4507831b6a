// Numbers behind the chart, without a page: smoothing that goes on where it was, thinning that keeps every spike.

// Exponential moving average with the start corrected; gaps stay gaps. Keeps what it has worked out and adds to it.
export class Smoothed {
  #weight = null; #rewinds = null; #mean = 0; #seen = 0;
  values = [];
  of(raw, weight, rewinds) {
    if (!weight) return raw;
    if (weight !== this.#weight || rewinds !== this.#rewinds || raw.length < this.values.length) {
      Object.assign(this, { values: [] });
      this.#weight = weight; this.#rewinds = rewinds; this.#mean = 0; this.#seen = 0;
    }
    for (let index = this.values.length; index < raw.length; index += 1) {
      const value = raw[index];
      if (value === null || value === undefined) { this.values.push(null); continue; }
      this.#mean = weight * this.#mean + (1 - weight) * value;
      this.#seen += 1;
      this.values.push(this.#mean / (1 - weight ** this.#seen));
    }
    return this.values;
  }
}

// The first place in ascending `steps` whose value is not below `step`.
export const place = (steps, step) => {
  let low = 0; let high = steps.length;
  while (low < high) { const middle = (low + high) >> 1; if (steps[middle] < step) low = middle + 1; else high = middle; }
  return low;
};

// The place of the value nearest to `step` that is there; null when there is none within `reach` places.
export const nearest = (steps, values, step, reach = 400) => {
  if (!steps.length || !values) return null;
  let at = Math.min(place(steps, step), steps.length - 1);
  if (at > 0 && step - steps[at - 1] < steps[at] - step) at -= 1;
  for (let away = 0; away <= reach; away += 1) {
    for (const index of [at - away, at + away]) if (values[index] !== null && values[index] !== undefined) return index;
    if (at - away < 0 && at + away >= steps.length) return null;
  }
  return null;
};

// What lines of so many pixels can show: lowest and highest value of blocks. A block has the size of a power of two and
// begins at a multiple of it, so that it stays the same while a curve grows and is worked out once. Its two values stand
// at its first and its middle step, which is less than a pixel away: so curves with the same steps share their places.
export class Thinned {
  #rewinds = null; #column = null; #sizes = new Map();
  // [steps, values, values of the smoothed column at the same places] from `from` to `to`; `smoothed` may be null.
  of(steps, values, smoothed, { from, to, pixels, rewinds }) {
    const first = Math.max(0, place(steps, from) - 1); const last = Math.min(steps.length, place(steps, to) + 2);
    if (!values) return [[], [], []];
    if (last - first <= 2 * pixels) return [steps.slice(first, last), values.slice(first, last), smoothed ? smoothed.slice(first, last) : []];
    if (rewinds !== this.#rewinds || values !== this.#column) { this.#sizes.clear(); this.#rewinds = rewinds; this.#column = values; }
    const size = 2 ** Math.ceil(Math.log2((last - first) / pixels));
    const whole = Math.floor(steps.length / size);
    if (!this.#sizes.has(size)) this.#sizes.set(size, { low: [], high: [] });
    const known = this.#sizes.get(size);
    for (let block = known.low.length; block < whole; block += 1) {
      const [low, high] = ends(values, block * size, (block + 1) * size);
      known.low.push(low); known.high.push(high);
    }
    const xs = []; const ys = []; const smooths = [];
    for (let block = Math.floor(first / size); block * size < last; block += 1) {
      const begin = block * size; const end = Math.min(begin + size, steps.length);
      const [low, high] = block < whole ? [known.low[block], known.high[block]] : ends(values, begin, end);
      if (low < 0) continue;
      const middle = begin + (size >> 1);
      const put = (at, index) => { xs.push(steps[at]); ys.push(values[index]); if (smoothed) smooths.push(smoothed[at]); };
      put(begin, Math.min(low, high));
      if (low !== high && middle < end) put(middle, Math.max(low, high));
    }
    return [xs, ys, smooths];
  }
}
const ends = (values, begin, end) => {
  let low = -1; let high = -1;
  for (let index = begin; index < end; index += 1) {
    const value = values[index];
    if (value === null || value === undefined) continue;
    if (low < 0 || value < values[low]) low = index;
    if (high < 0 || value > values[high]) high = index;
  }
  return [low, high];
};


// Everything that is known of some runs as one table: [{id, points, evals, exams}] -> text.
export const csv = (runs) => {
  const points = [...new Set(runs.flatMap((run) => Object.keys(run.points)))].filter((name) => name !== "step" && name !== "t");
  const rare = [["evals", "eval_loss"], ...[...new Set(runs.flatMap((run) => Object.keys(run.exams)))].filter((name) => name !== "step").map((name) => ["exams", name])];
  const quoted = (text) => `"${String(text).replace(/"/g, '""')}"`;
  const lines = [["run", "step", "time", ...points, ...rare.map(([, name]) => name)].join(",")];
  for (const run of runs) {
    const tables = [run.points, run.evals, run.exams];
    const at = tables.map(() => 0);
    const id = quoted(run.id);
    for (;;) {
      const step = Math.min(...tables.map((table, index) => table.step[at[index]] ?? Infinity));
      if (step === Infinity) break;
      const here = tables.map((table, index) => (table.step[at[index]] === step ? at[index] : -1));
      const value = (table, index, name) => (index < 0 ? "" : table[name]?.[index] ?? "");
      const time = value(run.points, here[0], "t");
      lines.push([id, step, time === "" ? "" : new Date(time * 1000).toISOString(), ...points.map((name) => value(run.points, here[0], name)),
        ...rare.map(([table, name]) => value(run[table], here[table === "evals" ? 1 : 2], name))].join(","));
      here.forEach((index, which) => { if (index >= 0) at[which] += 1; });
    }
  }
  return `${lines.join("\n")}\n`;
};
