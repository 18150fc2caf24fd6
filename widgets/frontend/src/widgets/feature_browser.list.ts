import { h, KEEP_KEYS, setText, uniqueId } from "../dom";
import { rowAfterKey, rowsInView } from "../feature_browser_math";
import { oncePerFrame } from "../frame";

/** In pixels, as in the style sheet. */
const ROW_HEIGHT = 25;

export interface LongList {
  readonly element: HTMLElement;
  /** Shows other rows, from the top where asked; `revision` tells whether what a row says may have changed. */
  setRows(features: readonly number[], revision: unknown, fromTop: boolean): void;
  /** Marks the chosen one, and brings it into view where it is another than before. */
  choose(feature: number): void;
}

/**
 * A list box of any number of features, of which only those in view are in the document. The list has the focus and names
 * the chosen row, which moves with the arrow keys, PageUp, PageDown, Home and End.
 */
export function createLongList(
  label: string,
  fillRow: (row: HTMLElement, feature: number) => void,
  onChoose: (feature: number) => void,
  life: AbortSignal,
): LongList {
  const id = uniqueId("features");
  const space = h("div", { class: "saelab-list-space", role: "presentation" });
  const element = h(
    "div",
    { class: "saelab-list", role: "listbox", tabindex: 0, "aria-label": label, "data-list": "features", ...KEEP_KEYS },
    space,
  );
  let features: readonly number[] = [];
  let positions = new Map<number, number>();
  let revised: unknown;
  let chosen = -1;
  let made = new Map<number, HTMLElement>();

  function makeRow(feature: number): HTMLElement {
    const row = h("div", { class: "saelab-list-row", role: "option", id: `${id}-${feature}`, "data-feature": feature });
    fillRow(row, feature);
    return row;
  }

  function show(): void {
    const [from, to] = rowsInView(element.scrollTop, element.clientHeight, ROW_HEIGHT, features.length);
    const shown = features.slice(from, to);
    // The chosen row stays in the document: the list names it to screen readers.
    if (positions.has(chosen) && !shown.includes(chosen)) shown.push(chosen);
    const rows = new Map(shown.map((feature) => [feature, made.get(feature) ?? makeRow(feature)]));
    for (const [feature, row] of rows) {
      const position = positions.get(feature)!;
      row.style.setProperty("--top", `${position * ROW_HEIGHT}px`);
      row.setAttribute("aria-posinset", String(position + 1));
      row.setAttribute("aria-setsize", String(features.length));
      row.setAttribute("aria-selected", String(feature === chosen));
    }
    // A row that stays is not touched, or a click that is under way would miss it.
    const same = rows.size === made.size && [...rows.keys()].every((feature) => made.has(feature));
    made = rows;
    if (!same) space.replaceChildren(...rows.values());
    if (positions.has(chosen)) element.setAttribute("aria-activedescendant", `${id}-${chosen}`);
    else element.removeAttribute("aria-activedescendant");
  }

  function reveal(): void {
    const position = positions.get(chosen);
    if (position === undefined) return;
    const top = position * ROW_HEIGHT;
    const room = element.clientHeight - ROW_HEIGHT;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top > element.scrollTop + room) element.scrollTop = top - room;
  }

  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const rowsOfPage = Math.max(1, Math.floor(element.clientHeight / ROW_HEIGHT) - 1);
    const to = rowAfterKey(event.key, positions.get(chosen) ?? -1, features.length, rowsOfPage);
    if (to === null) return;
    event.preventDefault();
    onChoose(features[to]!);
  });
  element.addEventListener("click", (event) => {
    const row = (event.target as Element).closest<HTMLElement>("[data-feature]");
    if (row) onChoose(Number(row.dataset.feature));
  });
  const showSoon = oncePerFrame(show, life);
  element.addEventListener("scroll", showSoon, { passive: true });
  const observer = new ResizeObserver(showSoon);
  observer.observe(element);
  life.addEventListener("abort", () => observer.disconnect());

  return {
    element,
    setRows(some, revision, fromTop) {
      if (revision !== revised) {
        made = new Map();
        space.replaceChildren();
      }
      revised = revision;
      features = some;
      positions = new Map(some.map((feature, position) => [feature, position]));
      space.style.height = `${some.length * ROW_HEIGHT}px`;
      if (fromTop) element.scrollTop = 0;
      show();
    },
    choose(feature) {
      const isOther = feature !== chosen;
      chosen = feature;
      if (isOther) reveal();
      show();
    },
  };
}

/** A line below a list that says how many it has. */
export function createCount(): { element: HTMLElement; show(text: string): void } {
  const element = h("p", { class: "saelab-help saelab-list-count", role: "status", "data-show": "count" });
  return { element, show: (text) => setText(element, text) };
}
