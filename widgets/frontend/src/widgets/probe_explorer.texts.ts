import type { AnyModel } from "@anywidget/types";
import { createButton, createRadios } from "../controls";
import { h, KEEP_KEYS, setText } from "../dom";
import { formatCount } from "../format";
import type { OptionSpec } from "../specs";

export interface LabelledText {
  text: string;
  label: string;
  block: string;
  hard: boolean;
}

interface TextTraits {
  texts: readonly LabelledText[];
  shown: string;
  options: { shown: readonly OptionSpec[] };
}

export interface TextList {
  readonly element: HTMLElement;
  /** The rows that the probe gets wrong, and those that it gets right; both rise. `whose` says which probe, where it has to. */
  show(wrong: readonly number[], right: readonly number[], whose: string): void;
}

const PAGE = 100;

/** The texts that a probe gets wrong, or right, in pages that scroll within a fixed height. */
export function createTextList<Traits extends TextTraits>(model: AnyModel<Traits>, life: AbortSignal): TextList {
  const texts = model.get("texts");
  const list = h("ul", { class: "saelab-probe-texts", tabindex: 0, "aria-label": "Texts", ...KEEP_KEYS });
  const count = h("strong", { "data-show": "count" });
  const hard = h("span", { class: "saelab-probe-hard", "data-show": "hard" });
  const range = h("span", { class: "saelab-probe-range", "data-show": "range" });
  const previous = createButton("previous", "Previous", () => turn(-1));
  const next = createButton("next", "Next", () => turn(1));
  const pager = h("div", { class: "saelab-probe-pager" }, range, previous, next);
  const filter = createRadios(model, "shown", "List those it gets", model.get("options").shown, life);
  const element = h(
    "section",
    { class: "saelab-probe-texts-panel", "aria-label": "Test texts" },
    h("div", { class: "saelab-probe-texts-head" }, h("span", { role: "status" }, count, hard), filter, pager),
    list,
  );

  let rows: readonly number[] = [];
  let page = 0;
  let isScrolled = false;
  list.addEventListener("scroll", () => {
    isScrolled = list.scrollTop > 0;
  });

  function turn(by: number): void {
    page += by;
    fill();
  }

  function fill(): void {
    const from = page * PAGE;
    const some = rows.slice(from, from + PAGE);
    list.replaceChildren(...some.map(item));
    if (!some.length) list.append(h("li", { class: "saelab-help" }, "None."));
    if (isScrolled) list.scrollTop = 0; // which has the page laid out there and then
    const paged = rows.length > PAGE;
    pager.classList.toggle("saelab-hidden", !paged);
    setText(range, paged ? `${formatCount(from + 1)}–${formatCount(from + some.length)} of ${formatCount(rows.length)}` : "");
    previous.disabled = page === 0;
    next.disabled = from + PAGE >= rows.length;
  }

  function item(row: number): HTMLElement {
    const { text, label, block, hard: isHard } = texts[row]!;
    return h(
      "li",
      { "data-text": row },
      h("span", { class: "saelab-probe-text", dir: "auto" }, text),
      h(
        "span",
        { class: "saelab-probe-facts" },
        h("bdi", {}, label),
        h("bdi", {}, block),
        ...(isHard ? [h("span", { class: "saelab-probe-is-hard" }, "hard")] : []),
      ),
    );
  }

  let listed = "";
  return {
    element,
    show(wrong, right, whose) {
      const total = wrong.length + right.length;
      setText(count, `${formatCount(wrong.length)} of ${formatCount(total)} wrong${whose && ` (${whose})`}`);
      const isHard = (row: number): boolean => texts[row]!.hard;
      const hardOnes = [...wrong, ...right].filter(isHard).length;
      setText(hard, hardOnes ? `${formatCount(wrong.filter(isHard).length)} of ${formatCount(hardOnes)} hard ones` : "");
      rows = model.get("shown") === "right" ? right : wrong;
      const key = rows.join();
      if (key === listed && list.firstChild) return; // the reader stays where they are
      listed = key;
      page = 0;
      fill();
    },
  };
}
