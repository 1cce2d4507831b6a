// A question between Start and the run: may the chat's model be given up for the memory it holds? A yes starts again.
const { t, confirm, format } = window.Studio;

export function mount({ props, trigger, watch, widget }) {
  if (widget === "clone") addEventListener("studio:clone", (event) => trigger("apply", event.detail));
  watch("value", async () => {
    const question = props.value;
    if (!question || !question.now) return;
    const body = t("release.body", { model: question.model, held: format.bytes(question.held) });
    if (await confirm({ title: t("release.title"), body, ok: t("release.ok"), danger: false })) trigger("apply", { ...question.again, release: true });
  });
}
