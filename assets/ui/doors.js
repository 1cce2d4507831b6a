// Cards that lead to the other tabs.
const { h, t, goTab } = window.Studio;

export function mount({ element }) {
  element.querySelector(".mount").replaceChildren(h("div.doors", {}, ["data", "train", "export", "chat"].map((id) =>
    h("button.door", { type: "button", onclick: () => goTab(id), "data-door": id }, h("b", {}, t(`door.${id}`)), h("span", {}, t(`door.${id}.note`))))));
}
