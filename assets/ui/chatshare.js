// The conversation as a file: Markdown to read, JSON to go on with.
const { t } = window.Studio;

const quoted = (text) => text.split("\n").map((line) => "> " + line).join("\n");
const named = (value, side) => { const who = value.sides[side]; return who ? `${who.name} (${who.what})` : side; };
const lines = (value, side, answer) => [
  `**${named(value, side)}**`,
  ...answer.steps.map((step) => "`" + step.name + "` " + step.arguments + (step.done ? " → " + step.result : "")),
  answer.text.trim() || answer.error || t("chatroom.silent"),
];

export const asMarkdown = (value) => [
  "# " + Object.keys(value.sides).map((side) => named(value, side)).join(" / "),
  ...value.turns.flatMap((turn) => [
    turn.fresh ? "---" : "",
    ...turn.before.map((message) => quoted(`${message.role}: ${message.content}`)),
    "## " + turn.question.replace(/\s+/g, " ").trim(),
    ...["left", "right"].flatMap((side) => (turn.answers[side] ? lines(value, side, turn.answers[side]) : [])),
  ]),
].filter(Boolean).join("\n\n") + "\n";

export const asJson = (value) => JSON.stringify({ sides: value.sides, turns: value.turns }, null, 2) + "\n";

export const download = (name, type, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
