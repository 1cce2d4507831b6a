// The lines of a log, without a page: colour codes dropped, rewritten lines kept once, each with its level.
const KEPT = 50_000;
const COLOURS = /\u001b\[[0-9;?]*[A-Za-z]/g;
const ERROR = [/\b(?:critical|fatal|error|exception)\b/i, /\w(?:Error|Exception)\b/];
const WARNING = [/\bwarn(?:ing|ings)?\b/i, /\wWarning\b/];
const matches = (patterns, text) => patterns.some((pattern) => pattern.test(text));

// A carriage return means that the line is written again.
export const clean = (line) => { const text = line.replace(COLOURS, "").replace(/\r+$/, ""); return text.slice(text.lastIndexOf("\r") + 1); };

export class LogLines {
  constructor() { this.clear(); }

  clear() { this.list = []; this.redo = true; this.again = null; this.seen = 0; this.rest = ""; this.open = false; this.trace = false; this.before = false; }

  // A traceback is an error from its first line to the line of the exception, which is the first that is not indented.
  level(text) {
    if (/^Traceback /.test(text)) { this.trace = true; return "error"; }
    if (this.trace) { this.trace = /^\s/.test(text) || !text; return "error"; }
    return matches(ERROR, text) ? "error" : matches(WARNING, text) ? "warning" : "";
  }

  line(raw) { const text = clean(raw); return { text, level: this.level(text) }; }

  // What comes after what is there; the last line is complete when it ends with a line break.
  add(text) {
    const parts = (this.rest + text).split("\n");
    if (this.open) { const last = this.list.pop(); if (this.list.length < this.seen) { this.again = last; this.seen = this.list.length; } this.trace = this.before; }
    this.rest = parts.pop();
    for (const part of parts) this.list.push(this.line(part));
    this.before = this.trace;
    this.open = this.rest !== "";
    if (this.open) this.list.push(this.line(this.rest));
    // Of a progress bar without an end only what is seen is kept.
    if (this.rest.length > 100_000) this.rest = this.rest.slice(this.rest.lastIndexOf("\r"));
    if (this.list.length > KEPT) { this.list.splice(0, this.list.length - KEPT); this.redo = true; }
  }

  // Earlier lines; returns how many.
  addBefore(text) {
    const mine = new LogLines();
    mine.add(text.endsWith("\n") ? text : `${text}\n`);
    this.list = [...mine.list, ...this.list];
    this.redo = true;
    return mine.list.length;
  }

  fresh() { return this.list.slice(this.seen); }

  drawn() { this.seen = this.list.length; this.again = null; this.redo = false; }
}
