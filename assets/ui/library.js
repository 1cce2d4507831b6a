// The library of runs as the server tells it: one reader for all parts of the page, only what changed is sent.
const { api, h, t } = window.Studio;

const listeners = new Set();
const runs = new Map();
let epoch = "";
let version = 0;
let busy = null;
export const library = { runs, disk: null, complete: false, version: 0 };

const take = (part) => {
  const fresh = part.reset || part.runs.length || part.removed.length || JSON.stringify(part.disk) !== JSON.stringify(library.disk) || library.complete === part.more;
  if (part.reset) runs.clear();
  for (const line of part.runs) runs.set(line.id, line);
  for (const id of part.removed) runs.delete(id);
  ({ epoch, version } = part);
  library.disk = part.disk;
  library.complete = !part.more;
  if (!fresh) return;
  library.version += 1;
  for (const item of listeners) if (item.node.isConnected) item.tell(library); else listeners.delete(item);
};
const all = async (at) => {
  let more = true;
  while (more) {
    const part = await api(`/api/library?epoch=${epoch}&after=${version}${at ? `&at=${at}` : ""}`);
    take(part);
    more = part.more;
  }
};
// `at`: after a change, so that it is seen at once.
export const read = (at = "") => { busy = (busy && !at ? busy : all(at)).finally(() => { busy = null; }); return busy; };
export const listen = (node, tell) => { listeners.add({ node, tell }); if (library.version) tell(library); };
// The hidden panel carries an order to the server, where everything is checked. `event`: apply, select or edit.
export const order = (event, detail) => dispatchEvent(new CustomEvent("studio:library-order", { detail: { event, detail } }));

// A dialog with a form in it; resolves to what `answer` returns, or null.
export const formDialog = ({ title, body, ok, answer, focus }) => new Promise((done) => {
  const cancel = h("button", { type: "button" }, t("cancel"));
  const yes = h("button.good", { type: "submit" }, ok);
  const form = h("form", { method: "dialog" }, h("h2", { id: "library-dialog-title" }, title), body, h("div.row", {}, cancel, yes));
  const dialog = h("dialog.studio-dialog.library-dialog", { "aria-labelledby": "library-dialog-title" }, form);
  (document.querySelector(".gradio-container") || document.body).append(dialog);
  const end = (value) => { dialog.close(); dialog.remove(); done(value); };
  cancel.onclick = () => end(null);
  dialog.oncancel = (event) => { event.preventDefault(); end(null); };
  form.onsubmit = (event) => { event.preventDefault(); end(answer()); };
  dialog.showModal();
  focus?.focus();
  focus?.select?.();
});
