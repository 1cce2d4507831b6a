// Beside the form of the first page: what the model says now, and what it will say with the typed name.
const { h, t, render, poll, lang } = window.Studio;

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const value = (id) => (document.querySelector(`#${id} input, #${id} textarea`)?.value || "").trim().slice(0, 80);
  let drawn = null;
  const talk = (question, answer, fresh) => [h("div.speech.ask", {}, h("span.say", {}, question)), h(fresh ? "div.speech.answer.fresh" : "div.speech.answer", {}, h("span.say", { dir: "auto" }, answer))];
  const draw = async () => {
    const name = value("home-name"); const author = value("home-author");
    const key = `${lang()}|${name}|${author}`;
    if (key === drawn) return;
    drawn = key;
    const after = t(!name ? "preview.after.none" : author ? "preview.after.author" : "preview.after", { name, author });
    render(host, h("div.preview", { "aria-hidden": "true" },
      h("div.preview-side", {}, h("span.preview-tag", {}, t("preview.now")), talk(t("preview.question"), t("preview.before"), false)),
      h("div.preview-side", {}, h("span.preview-tag.hot", {}, t("preview.later")), talk(t("preview.question"), after, true))));
  };
  poll(element, draw, 150);
}
