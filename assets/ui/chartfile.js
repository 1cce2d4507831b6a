// The curves as files: a picture of what is seen, a table of all values.
import { METRICS, colour } from "./chartpanel.js";
const { t } = window.Studio;

export const download = (name, blob) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};

// All panels on one sheet, with the names of the runs in the colours of their lines.
export const picture = ({ panels, view }) => {
  const plots = panels.filter((panel) => panel.plot);
  if (!plots.length) return;
  const style = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const ratio = window.devicePixelRatio || 1;
  const columns = plots.length > 1 ? 2 : 1;
  const { width, height } = plots[0].plot.ctx.canvas;
  const margin = 16 * ratio; const head = 26 * ratio; const cell = height + head;
  const sheet = document.createElement("canvas");
  sheet.width = columns * width + 2 * margin;
  sheet.height = Math.ceil(plots.length / columns) * cell + head + 2 * margin;
  const ctx = sheet.getContext("2d");
  ctx.fillStyle = style("--card");
  ctx.fillRect(0, 0, sheet.width, sheet.height);
  const write = (text, x, y, ink, weight) => { ctx.fillStyle = ink; ctx.font = `${weight} ${13 * ratio}px 'Inter Variable', 'PingFang SC', 'Noto Sans CJK SC', sans-serif`; ctx.fillText(text, x, y); return x + ctx.measureText(text).width; };
  let x = margin;
  for (const run of view.runs) x = write(`● ${run.status?.name || run.id}`, x, margin + 14 * ratio, colour(view.colourOf(run.id)), 600) + 18 * ratio;
  plots.forEach((panel, index) => {
    const left = margin + (index % columns) * width; const top = margin + head + Math.floor(index / columns) * cell;
    write(t("tile." + panel.name), left + 6 * ratio, top + 16 * ratio, style("--ink"), 600);
    ctx.drawImage(panel.plot.ctx.canvas, left, top + head);
  });
  const name = plots.length > 1 ? "curves" : plots[0].name;
  sheet.toBlob((blob) => { if (blob) download(`${(view.runs[0]?.id || "curves").replace(/[^\w.-]+/g, "_")}_${name in METRICS ? name : "curves"}.png`, blob); });
};
