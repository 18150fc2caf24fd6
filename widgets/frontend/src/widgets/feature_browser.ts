import type { AnyModel } from "@anywidget/types";
import { type Bytes, decodeFloat32, Table } from "../buffers";
import { createButton, createNumber, createSelect, createToggle } from "../controls";
import { h, KEEP_KEYS, setText, uniqueId } from "../dom";
import { isBlank, isFound, listed, type Order, type Reading, visibleAlone } from "../feature_browser_math";
import { formatCount, formatSigned } from "../format";
import { oncePerFrame } from "../frame";
import type { Kernel } from "../kernel";
import { assign, onChange } from "../traits";
import { type InstrumentTraits, widget } from "../widget";
import { createCount, createLongList } from "./feature_browser.list";
import { type Charts, createPage, formatPercent } from "./feature_browser.page";
import "./feature_browser.css";

interface Traits extends InstrumentTraits {
  feature: number;
  order: string;
  orders: readonly Order[];
  search: string;
  show_dead: boolean;
  found: { search: string; features: readonly number[] };
  reading: Reading | Record<string, never>;
  readings: readonly Reading[];
  stale: boolean;
  listing: Bytes;
  columns: readonly string[];
  top_tokens: readonly string[];
  charts: Charts;
}

type BrowserModel = AnyModel<Traits>;

/** How long typing has to rest before it is searched for, in milliseconds. */
const TYPING = 200;

/** What the list and the page show, from the traits. */
class View {
  private table: Table;
  private known: Map<number, Reading>;
  private lastFound: ReadonlySet<number> | null = null;

  constructor(private readonly model: BrowserModel) {
    this.table = new Table(new Float32Array(0), []);
    this.known = new Map();
    this.refresh();
  }

  refresh(): void {
    this.table = new Table(decodeFloat32(this.model.get("listing")), this.model.get("columns"));
    const reading = this.model.get("reading");
    const shown = "feature" in reading ? [reading as Reading] : [];
    this.known = new Map([...this.model.get("readings"), ...shown].map((one) => [one.feature, one]));
    this.lastFound = this.found();
  }

  get count(): number {
    return this.table.rows;
  }

  get nKnown(): number {
    return this.known.size;
  }

  column(name: string): Float32Array {
    return this.table.column(name);
  }

  readingOf(feature: number): Reading | undefined {
    return this.known.get(feature);
  }

  /** Whether the page can show a feature: the kernel sends what it hasn't. */
  has(feature: number): boolean {
    return this.model.get("kernel") || this.known.has(feature);
  }

  /** The features that are searched for; null: all. While the kernel looks for them, those of before. */
  private found(): ReadonlySet<number> | null {
    const search = this.model.get("search");
    if (isBlank(search)) return null;
    const { search: answered, features } = this.model.get("found");
    if (!this.model.get("kernel")) {
      return new Set([...this.known.values()].filter((reading) => isFound(reading, search)).map(({ feature }) => feature));
    }
    return answered === search ? new Set(features) : this.lastFound;
  }

  get isSearching(): boolean {
    const search = this.model.get("search");
    return this.model.get("kernel") && !isBlank(search) && this.model.get("found").search !== search;
  }

  rows(): number[] {
    const orders = this.model.get("orders");
    const order = orders.find(({ value }) => value === this.model.get("order")) ?? orders[0]!;
    return listed(order, (name) => this.column(name), this.model.get("show_dead"), this.lastFound);
  }

  /** How many there are, or why there are none. */
  summary(nRows: number): string {
    const search = this.model.get("search").trim();
    if (this.isSearching) return `Searching for “${search}” …`;
    if (isBlank(search)) return `${formatCount(nRows)} of ${formatCount(this.count)} features`;
    const all = this.model.get("kernel") ? formatCount(this.count) : `the ${formatCount(this.nKnown)} in this page`;
    if (nRows > 0) return `${formatCount(nRows)} of ${all} ${this.model.get("kernel") ? "features " : ""}have “${search}”`;
    const among = this.model.get("kernel") ? "No feature" : `None of ${all}`;
    return `${among} has “${search}” in its top contexts or among the tokens it raises.`;
  }
}

/** A text to search for, sent once typing rests. */
function createSearch(model: BrowserModel, life: AbortSignal): HTMLElement {
  const id = uniqueId("search");
  const input = h("input", {
    type: "search",
    id,
    placeholder: "in contexts and raised tokens",
    spellcheck: "false",
    dir: "auto",
    "data-search": "search",
    ...KEEP_KEYS,
  });
  let timer: ReturnType<typeof setTimeout> | undefined;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => assign(model, "search", input.value), TYPING);
  });
  life.addEventListener("abort", () => clearTimeout(timer));
  const show = (): void => {
    if (input.value !== model.get("search")) input.value = model.get("search");
  };
  onChange(model, ["search"], life, show);
  show();
  return h("div", { class: "saelab-field saelab-search" }, h("label", { for: id }, "Search"), input);
}

/** Says that the SAE has changed, and offers to read it again. */
function createNotice(model: BrowserModel, kernel: Kernel, life: AbortSignal): HTMLElement {
  const button = createButton("read_again", "Read again", () => kernel.ask({ kind: "read_again" }));
  const text = h("span", { role: "status", "data-show": "stale" });
  const element = h("div", { class: "saelab-notice" }, text, button);
  const show = (): void => {
    const stale = model.get("stale");
    setText(text, stale ? "The SAE has changed since its features were read." : "");
    element.hidden = !stale;
    button.disabled = !model.get("kernel");
    button.title = button.disabled ? "This page has no kernel" : "Read the features of the SAE as it stands";
  };
  onChange(model, ["stale"], life, show);
  show();
  return element;
}

export default widget<Traits>("feature-browser", ["listing"], ({ model, root, life, kernel, drawn }) => {
  const view = new View(model);
  const choose = (feature: number): void => assign(model, "feature", feature);

  function fillRow(row: HTMLElement, feature: number): void {
    const token = visibleAlone(model.get("top_tokens")[feature] ?? "");
    const density = view.column("density")[feature]!;
    const weight = view.column("probe_weight")[feature]!;
    row.classList.toggle("saelab-list-away", !view.has(feature));
    row.append(
      h("span", { class: "saelab-number" }, String(feature)),
      h("bdi", { class: "saelab-token-name" }, density > 0 ? token : "dead"),
      h("span", { class: "saelab-number" }, `${formatPercent(density)}%`),
    );
    // Most features are off on all snippets: a dash is easier to pass over than a zero.
    if (Number.isFinite(weight)) row.append(h("span", { class: "saelab-number" }, weight ? formatSigned(weight, 2) : "–"));
  }

  const list = createLongList("Features", fillRow, choose, life);
  const head = h(
    "div",
    { class: "saelab-list-head", "aria-hidden": "true" },
    ...["", "most on at", "density", "probe"].map((name) => h("span", {}, name)),
  );
  const count = createCount();
  const largestWeight = (): number => view.column("probe_weight").reduce((most, weight) => Math.max(most, Math.abs(weight)), 0);
  const topToken = (feature: number): string => model.get("top_tokens")[feature] ?? "";
  const page = createPage({ charts: model.get("charts"), largestWeight, topToken, choose }, life);

  let rows: number[] = [];
  const previous = createButton("previous", "Previous", () => move(-1));
  const next = createButton("next", "Next", () => move(1));
  previous.title = "The feature before this one in the list";
  next.title = "The feature after this one in the list";

  function neighbour(by: number): number | undefined {
    const at = rows.indexOf(model.get("feature"));
    return at < 0 ? rows.at(by > 0 ? 0 : -1) : rows[at + by];
  }

  function move(by: number): void {
    const feature = neighbour(by);
    if (feature !== undefined) choose(feature);
  }

  let shown = "";
  function showFeature(): void {
    const feature = model.get("feature");
    list.choose(feature);
    drawn();
    previous.disabled = neighbour(-1) === undefined;
    next.disabled = neighbour(1) === undefined;
    const reading = view.readingOf(feature);
    page.setBusy(reading === undefined && view.has(feature) && feature < view.count);
    if (reading) {
      // The kernel sends what the page may have shown already: tokens keep their focus.
      const content = JSON.stringify(reading);
      if (content !== shown) page.show(reading);
      shown = content;
    } else if (feature >= view.count) {
      shown = "";
      page.say(`Feature ${feature} has not been read yet.`);
    } else if (!view.has(feature)) {
      shown = "";
      page.say(`Feature ${feature} needs a kernel: this page holds ${formatCount(view.nKnown)} features.`);
    }
  }

  let listedBy = "";
  function showList(): void {
    rows = view.rows();
    const probed = Number.isFinite(view.column("probe_weight")[0] ?? NaN);
    root.classList.toggle("saelab-unprobed", !probed);
    // Another order or search is read from its top; other changes leave the list where it is.
    const by = JSON.stringify([model.get("order"), model.get("search")]);
    list.setRows(rows, model.get("listing"), by !== listedBy);
    listedBy = by;
    count.show(view.summary(rows.length));
    showFeature();
  }

  const show = oncePerFrame(() => {
    view.refresh();
    showList();
  }, life);

  const order = createSelect(model, "order", "Order", model.get("orders"), life);
  const limits = (): { min: number; max: number } => ({ min: 0, max: Math.max(0, model.get("top_tokens").length - 1) });
  onChange(model, ["orders"], life, () => order.setOptions(model.get("orders")));
  onChange(model, ["listing", "columns", "top_tokens", "readings", "order", "search", "found", "show_dead"], life, show);
  onChange(model, ["feature", "reading"], life, () => {
    view.refresh();
    showFeature();
  });
  show(); // once the list is in the page and has a height
  return [
    h(
      "div",
      { class: "saelab-toolbar" },
      createNumber(model, "feature", "Feature", limits, life, ["top_tokens"]),
      previous,
      next,
      order.element,
      createSearch(model, life),
      createToggle(model, "show_dead", "Show dead", life),
    ),
    createNotice(model, kernel, life),
    h("div", { class: "saelab-browser" }, h("div", { class: "saelab-browser-list" }, head, list.element, count.element), page.element),
  ];
});
