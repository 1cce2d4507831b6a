// Answers to the evaluation inputs: one row per prompt, one column per step; a changed answer is marked.
const { h, t, render, feed, sampleReader } = window.Studio;
const COLUMNS = 6;

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const read = sampleReader();
  let all = false; let drawn = "";
  const table = (samples) => {
    const prompts = new Map(); const steps = new Map();
    for (const sample of samples) {
      if (!prompts.has(sample.index)) prompts.set(sample.index, sample.prompt);
      if (!steps.has(sample.step)) steps.set(sample.step, { reason: sample.reason, answers: new Map() });
      steps.get(sample.step).reason = sample.reason;
      steps.get(sample.step).answers.set(sample.index, sample.answer);
    }
    const order = [...steps.keys()].sort((a, b) => a - b);
    const shown = all || order.length <= COLUMNS ? order : [order[0], ...order.slice(-(COLUMNS - 1))];
    const cell = (step, index) => {
      const answer = steps.get(step).answers.get(index);
      const at = order.indexOf(step);
      const before = at > 0 ? steps.get(order[at - 1]).answers.get(index) : answer;
      return h(answer !== undefined && before !== undefined && answer !== before ? "td.changed" : "td", { dir: "auto" }, answer ?? "");
    };
    return [h("div.grid-bar", {}, h("h3", {}, t("samples.title")), h("span.spring"), order.length > COLUMNS && h("button.btn.small", { type: "button", id: "samples-all", onclick: () => { all = !all; drawn = ""; draw(feed.state); } }, t(all ? "samples.few" : "samples.all", { n: order.length }))),
      h("div.grid-scroll", { tabindex: "0", role: "region", "aria-label": t("samples.title") }, h("table.grid", {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("samples.prompt")), shown.map((step) => h("th.num", { scope: "col" }, t("step", { n: step }), step === 0 && h("span.tag", {}, t("samples.before")))))),
        h("tbody", {}, [...prompts.entries()].sort((a, b) => a[0] - b[0]).map(([index, prompt]) => h("tr", {}, h("th", { scope: "row", dir: "auto" }, prompt), shown.map((step) => cell(step, index)))))))];
  };
  const draw = async (state) => {
    host.hidden = !state || !state.id || state.missing;
    if (host.hidden) return;
    const samples = await read(state);
    if (state !== feed.state) return;
    const key = `${state.id}|${samples.length}|${all}`;
    if (key === drawn) return;
    drawn = key;
    if (!samples.length) render(host); else render(host, h("section.card", {}, table(samples)));
  };
  feed.listen(element, (state) => { draw(state).catch(() => { drawn = ""; }); });
}
