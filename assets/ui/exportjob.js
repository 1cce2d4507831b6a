// Export as a job: the text for a scheduler, to be copied or saved. All text is set as text.
import { copyable } from "./exportrun.js";
import { button, copy, h, save } from "./tabs.js";

const { t, goTab } = window.Studio;

// What a person has to look at stands in comments, which are set apart.
const lines = (text) => text.replace(/\n$/, "").split("\n").map((line) => h(/^\s*#(?!SBATCH|!)/.test(line) ? "span.line.note-line" : "span.line", {}, line, "\n"));

export const job = ({ draw }) => () => draw((v) => {
  if (!v) return [];
  if (v.problem) {
    return [h("section.card.job", { "aria-live": "polite" }, h("h3", {}, t("export.job.stopped")),
      h("p", { dir: "auto" }, v.label && h("b", {}, `${v.label}: `), v.problem), button("btn.small", t("tabs.go_train"), () => goTab("train")))];
  }
  const copied = button("btn.small", t("tabs.copy"), () => copy(v.text, copied), { id: "job-copy" });
  return [h("section.card.job", { "aria-label": t("export.job.text") },
    h("div.card-head", {}, h("h3", {}, v.file), h("span.quiet.num", {}, t(v.machines > 1 ? "ranks.spread.machines" : v.processes > 1 ? "ranks.spread" : "export.job.one", { n: v.processes, machines: v.machines })), h("span.spring"), copied,
      button("btn.small", t("tabs.download"), () => save(v.file, v.text), { id: "job-download" })),
    h("pre.code.job-text", { tabindex: 0, id: "job-text", "aria-label": v.file }, lines(v.text)),
    h("h4", {}, t("export.job.submit")), copyable(v.submit), h("p.quiet.small", {}, t("export.job.note")))];
});
