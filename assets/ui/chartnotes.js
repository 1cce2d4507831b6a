// What the coach says of the curves, and what the engine warned of, in a box whose height never changes.
const { h, t, render, run } = window.Studio;
const WARNINGS_SHOWN = 20;

export const noteList = () => {
  const list = h("ul.coach-list", { tabindex: "0", role: "list", "aria-label": t("coach.title") });
  const node = h("div.coach", {}, h("h4", {}, t("coach.title")), list);
  let key = "";
  const item = (note, index) => h(`li.coach-note.${note.level}`, { id: `note-${index + 1}` }, h("span.coach-mark", { "aria-hidden": "true" }, String(index + 1)),
    h("p", { dir: "auto" }, h("b", {}, note.message), " ", note.hint),
    Object.keys(note.changes).length > 0 && h("button.btn.small", { type: "button", id: `try-${note.kind}-${note.step}`, onclick: () => import("./verdict.js").then(({ tryChange }) => tryChange(run(), note.changes)) }, t("coach.try")));
  const warned = (warning) => h("li.coach-note.warning", {}, h("span.coach-mark", { "aria-hidden": "true" }, "!"), h("p", { dir: "auto" }, warning.said || warning.message));
  return {
    node,
    show: (state, notes) => {
      const warnings = state.warnings.slice(-WARNINGS_SHOWN);
      const now = JSON.stringify([state.id, state.status?.live, state.points.step.length > 0, notes, warnings]);
      if (now === key) return;
      key = now;
      const nothing = state.status && !state.status.live && !state.points.step.length ? "" : t(state.status?.live ? "coach.nothing" : "coach.fine");
      render(list, notes.length || warnings.length ? [...notes.map(item), ...warnings.map(warned)] : h("li.quiet", {}, nothing));
    },
    open: (index) => { const found = list.querySelector(`#note-${index + 1}`); list.scrollTop = found ? found.offsetTop - list.offsetTop - 4 : 0; found?.classList.remove("lit"); requestAnimationFrame(() => found?.classList.add("lit")); },
  };
};
