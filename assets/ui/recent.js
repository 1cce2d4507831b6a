// Under the first page: the last runs, and a word when one is going on.
const { h, t, render, api, poll, select, goTab, format, store } = window.Studio;

export function mount({ element }) {
  const host = element.querySelector(".mount");
  let drawn = "";
  const open = (run) => { select(run.id); goTab("monitor"); };
  const row = (run) => h("li", {}, h("button.recent-row", { type: "button", id: `recent-${run.id}`, onclick: () => open(run) },
    h("span.recent-name", { dir: "auto" }, run.name), h(`span.chip.${run.state}`, {}, t("state." + run.state)),
    run.verdict_passed === null ? null : h(run.verdict_passed ? "span.passed" : "span.missed", {}, t(run.verdict_passed ? "passed" : "missed")),
    h("span.spring"), h("span.quiet.num", {}, format.ago(run.created_at))));
  const draw = async () => {
    const runs = await api("/api/runs");
    const key = JSON.stringify(runs.slice(0, 5).map((run) => [run.id, run.state, run.verdict_passed, format.ago(run.created_at)]));
    if (key === drawn) return;
    drawn = key;
    if (!runs.length) { render(host); return; }
    const live = runs.find((run) => run.live);
    render(host, live && h("button.notice", { type: "button", id: "home-live", "data-run": live.id, onclick: (event) => { select(event.currentTarget.dataset.run); goTab("monitor"); } }, h("span.dot", { "aria-hidden": "true" }), h("span", { dir: "auto" }, t("recent.live", { name: live.name })), h("b", {}, t("recent.watch"))), h("section.card", { "aria-label": t("recent.title") }, h("h3", {}, t("recent.title")), h("ul.recent", {}, runs.slice(0, 5).map(row))));
  };
  poll(element, draw, 3000);
}
