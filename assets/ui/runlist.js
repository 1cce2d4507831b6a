// The list of all runs with their true states; choosing one selects it for the whole page.
const { h, t, render, api, poll, run, select, format, goTab } = window.Studio;

export function mount({ element }) {
  const host = element.querySelector(".mount");
  if (!host) return;
  let drawn = "";
  const row = (item) => h("li", {}, h(item.id === run() ? "button.run-row.on" : "button.run-row", { type: "button", id: `row-${item.id}`, "aria-pressed": String(item.id === run()), onclick: () => select(item.id) },
    h("span.run-name", { dir: "auto", title: item.id }, item.name),
    h("span.run-line", {}, h(`span.chip.${item.state}`, {}, t("state." + item.state)),
      item.verdict_passed === null ? null : h(item.verdict_passed ? "span.passed" : "span.missed", {}, t(item.verdict_passed ? "passed" : "missed"))),
    h("span.run-meta.num", {}, [item.kind === "merge" ? t("kind.merge") : item.method, item.live && item.max_steps ? `${item.step} / ${item.max_steps}` : format.ago(item.created_at)].filter(Boolean).join(" · "))));
  const draw = async () => {
    const runs = await api("/api/runs");
    const key = JSON.stringify([run(), runs.map((item) => [item.id, item.state, item.verdict_passed, item.live ? item.step : format.ago(item.created_at)])]);
    if (key === drawn) return;
    drawn = key;
    if (!runs.length) render(host, h("div.empty", {}, h("h3", {}, t("monitor.empty")), h("p", {}, t("monitor.empty.note")), h("button.btn.go", { type: "button", id: "runs-start", onclick: () => goTab("home") }, t("monitor.empty.go"))));
    else render(host, h("nav.card.runs", { "aria-label": t("runs.title") }, h("h3", {}, t("runs.title"), h("span.quiet.num", {}, ` ${runs.length}`)), h("ul", {}, runs.map(row))));
    document.body.toggleAttribute("data-no-runs", !runs.length);
  };
  poll(element, draw, 1000);
  addEventListener("studio:run", () => { drawn = ""; draw(); });
}
