// The queue: what runs, what waits and for what, in which order, and what can be done about it.
const { h, t, api, render, run, select, poll, confirm, format } = window.Studio;

// ---- one reader for all parts of the page ----------------------------------------------------------------------------
const listeners = new Set();
let now = null; let asked = 0; let heard = 0;
const read = async (fresh = "") => {
  const mine = (asked += 1);
  const found = await api("/api/queue" + fresh);
  if (mine < heard) return; // a later question has been answered already
  heard = mine;
  now = found;
  for (const item of listeners) if (item.node.isConnected) item.tell(now); else listeners.delete(item);
};
export const listen = (node, tell) => { listeners.add({ node, tell }); if (now) tell(now); };
// The hidden panel carries the event to the server, where everything is checked.
export const act = (detail) => dispatchEvent(new CustomEvent("studio:queue", { detail }));

export const remove = async (entry) => {
  const options = { title: t("queue.remove.title", { name: entry.name }), body: t(entry.resume ? "queue.remove.resume" : "queue.remove.new"), ok: t("queue.remove") };
  if (await confirm(options)) act({ do: "remove", run: entry.id });
};
const cardsText = (entry, gpus) => (!gpus.length ? "" : entry.gpus ? t("queue.cards.these", { list: entry.gpus.join(", ") }) : t(entry.gpu_count === 1 ? "queue.cards.one" : "queue.cards.any", { n: entry.gpu_count }));

// Any so many cards, or these: asked in a dialog, kept for the run while it waits.
const chooseCards = (entry, gpus) => {
  const count = h("input", { type: "number", min: "1", max: String(gpus.length), value: String(entry.gpu_count || 1), id: "cards-count", "aria-label": t("queue.cards.count") });
  const boxes = gpus.map((gpu) => { const box = h("input", { type: "checkbox", value: String(gpu.index) }); box.checked = Boolean(entry.gpus?.includes(gpu.index)); return [box, h("label", {}, box, ` ${gpu.index} · ${gpu.name} · ${format.bytes(gpu.memory_bytes)}`)]; });
  const cancel = h("button", { type: "button" }, t("cancel")); const ok = h("button.good", { type: "button", id: "cards-ok" }, t("ok"));
  const dialog = h("dialog.studio-dialog", { "aria-labelledby": "cards-title" }, h("h2", { id: "cards-title" }, t("queue.cards.title")), h("p", {}, t("queue.cards.body")),
    h("div.cards-list", {}, h("label", {}, t("queue.cards.count"), " ", count), boxes.map(([, label]) => label)), h("div.row", {}, cancel, ok));
  (document.querySelector(".gradio-container") || document.body).append(dialog);
  const end = () => { dialog.close(); dialog.remove(); };
  cancel.onclick = end;
  ok.onclick = () => { const chosen = boxes.filter(([box]) => box.checked).map(([box]) => +box.value); end(); act({ do: "cards", run: entry.id, gpus: chosen.length ? chosen : null, gpu_count: chosen.length || +count.value }); };
  dialog.oncancel = (event) => { event.preventDefault(); end(); };
  dialog.showModal();
};

// ---- the panel ---------------------------------------------------------------------------------------------------------
const icon = (name, label, id, onclick, disabled = false) => h(`button.icon-btn.${name}`, { type: "button", id, title: label, "aria-label": label, disabled, onclick });
const name = (entry) => h("button.queue-name", { type: "button", id: `queue-open-${entry.id}`, dir: "auto", title: entry.id, "aria-current": entry.id === run() ? "true" : null, onclick: () => select(entry.id) }, entry.name);

function panel({ element }) {
  const host = element.querySelector(".mount");
  const said = h("p.sr-only", { role: "status" });
  const list = h("div");
  const move = (entry, place, total) => {
    if (place < 1 || place > total) return;
    said.textContent = t("queue.moved", { name: entry.name, n: place });
    act({ do: "move", run: entry.id, place });
  };
  const waiting = (entry, total, gpus) => h(entry.paused ? "li.waits.paused" : "li.waits", { onkeydown: (event) => { if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) { event.preventDefault(); move(entry, entry.place + (event.key === "ArrowUp" ? -1 : 1), total); } } },
    h("span.place.num", { "aria-hidden": "true" }, String(entry.place)), name(entry),
    h("span.why", { dir: "auto" }, [entry.resume && t("queue.resume"), entry.why, cardsText(entry, gpus)].filter(Boolean).join(" · ")),
    h("span.queue-do", { role: "group", "aria-label": t("queue.actions", { name: entry.name }) },
      icon("up", t("queue.up", { name: entry.name }), `queue-up-${entry.id}`, () => move(entry, entry.place - 1, total), entry.place === 1),
      icon("down", t("queue.down", { name: entry.name }), `queue-down-${entry.id}`, () => move(entry, entry.place + 1, total), entry.place === total),
      icon("first", t("queue.first", { name: entry.name }), `queue-first-${entry.id}`, () => act({ do: "first", run: entry.id }), entry.place === 1 && !entry.paused),
      entry.paused ? icon("play", t("queue.unpause", { name: entry.name }), `queue-unpause-${entry.id}`, () => act({ do: "unpause", run: entry.id }))
        : icon("pause", t("queue.pause", { name: entry.name }), `queue-pause-${entry.id}`, () => act({ do: "pause", run: entry.id })),
      gpus.length > 1 && icon("cards", t("queue.cards", { name: entry.name }), `queue-cards-${entry.id}`, () => chooseCards(entry, gpus)),
      icon("remove", t("queue.remove.of", { name: entry.name }), `queue-remove-${entry.id}`, () => remove(entry))));
  const atWork = (item) => h("li.works", {}, h("span.place", { "aria-hidden": "true" }), name(item),
    h("span.why.num", {}, [t("state." + item.state), item.max_steps ? `${item.step} / ${item.max_steps}` : null, item.gpus?.length ? t("queue.cards.these", { list: item.gpus.join(", ") }) : null].filter(Boolean).join(" · ")));
  const settings = (queue) => h("details.fold", {}, h("summary", {}, t("queue.settings")), h("label.queue-many", {}, t("queue.many"),
    h("input.num", { type: "number", id: "queue-many", min: "1", max: "64", value: String(queue.max_running), onchange: (event) => act({ do: "many", max_running: +event.target.value }) })), h("p.quiet", {}, t(queue.gpus.length ? "queue.many.gpu" : "queue.many.note")));
  const draw = (queue) => {
    const empty = !queue.waiting.length && !(queue.running.length && queue.paused) && queue.running.length < 2;
    host.hidden = empty;
    if (empty) { render(list); return; }
    if (!list.isConnected) host.replaceChildren(list, said);
    const focus = list.contains(document.activeElement) ? document.activeElement.id : "";
    render(list, h("nav.card.queue", { id: "queue", "aria-label": t("queue.title") },
      h("div.grid-bar", {}, h("h3", {}, t("queue.title"), h("span.quiet.num", {}, ` ${queue.waiting.length}`)), h("span.spring"),
        h("button.btn.small", { type: "button", id: queue.paused ? "queue-go" : "queue-hold", onclick: () => act({ do: queue.paused ? "go" : "hold" }) }, t(queue.paused ? "queue.go" : "queue.hold"))),
      queue.paused && h("p.warned", { id: "queue-held" }, t("queue.held")),
      h("ol", {}, queue.running.map(atWork), queue.waiting.map((entry) => waiting(entry, queue.waiting.length, queue.gpus))),
      settings(queue)));
    const again = focus && document.getElementById(focus);
    if (again && document.activeElement !== again) (again.disabled ? again.closest("li")?.querySelector(".queue-name") : again)?.focus({ preventScroll: true });
  };
  listen(element, draw);
  // An empty queue shows nothing, and what shows nothing is not seen: the page around it is asked instead.
  poll(element.closest("#monitor-split") || element, () => read(), 2000);
  addEventListener("studio:queue-changed", () => read(`?at=${Date.now()}`).catch(() => {}));
  addEventListener("studio:run", () => { if (now) draw(now); });
}

// ---- the events, carried to the server by hidden panels ---------------------------------------------------------------
function actions({ trigger }) {
  addEventListener("studio:queue", (event) => trigger("apply", event.detail));
}

export const mount = (parts) => (parts.widget === "actions" ? actions(parts) : panel(parts));
