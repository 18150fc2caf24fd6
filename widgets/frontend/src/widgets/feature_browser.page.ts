import { h, KEEP_KEYS, replaceChildren, setText } from "../dom";
import { type Context, type Effect, type Reading, shade, visible, visibleAlone } from "../feature_browser_math";
import { formatCount, formatFixed, formatSigned } from "../format";
import { createPlot } from "../plot";
import type { ChartSpec } from "../specs";

export type Charts = Record<"density" | "max_activation" | "probe_weight", ChartSpec>;

export interface FeaturePage {
  readonly element: HTMLElement;
  show(reading: Reading): void;
  /** In place of a reading. */
  say(text: string): void;
  /** Whether what is shown is still that of another feature. */
  setBusy(busy: boolean): void;
}

export interface PageContext {
  charts: Charts;
  /** Of all features, so that bars compare between pages. */
  largestWeight(): number;
  topToken(feature: number): string;
  choose(feature: number): void;
}

/** Free text in its own direction, however it is written. */
const freeText = (text: string, name: string): HTMLElement => h("bdi", { class: name, title: text }, text);

/** Where the tokens with the greatest activations stand below one another, as a share of the line. */
const PEAK_AT = 0.58;
const HINT = "Point at a token, or go through them with the arrow keys.";

/** Everything about one feature. */
export function createPage({ charts, ...context }: PageContext, life: AbortSignal): FeaturePage {
  const title = h("h3", { class: "saelab-feature-title", "data-show": "title" });
  const density = createStat(charts.density);
  const weight = createStat(charts.probe_weight);
  const bar = h("span", { class: "saelab-signed-bar" });
  const verdict = h("p", { class: "saelab-help", "data-show": "verdict" });
  weight.element.append(h("div", { class: "saelab-signed", "aria-hidden": "true" }, bar), verdict);
  const histogram = createHistogram(charts.max_activation, life);
  const contexts = createContexts(life);
  const raised = h("ul", { class: "saelab-effects", "data-effects": "raised" });
  const lowered = h("ul", { class: "saelab-effects", "data-effects": "lowered" });
  const nearest = h("ul", { class: "saelab-nearest" });
  const noPath = h("p", { class: "saelab-help" }, "The hook has no straight path to the logits.");
  const note = h("p", { class: "saelab-note", "data-show": "note" });
  const part = (name: string, help: string, ...children: Node[]): HTMLElement =>
    h("section", {}, h("h4", {}, name), h("p", { class: "saelab-help" }, help), ...children);
  const body = h(
    "div",
    { class: "saelab-feature-body" },
    h("div", { class: "saelab-feature-head" }, h("div", { class: "saelab-stats" }, density.element, weight.element), histogram.element),
    contexts.element,
    h(
      "div",
      { class: "saelab-feature-parts" },
      part("Raises", "Tokens whose logits it raises most.", raised, noPath),
      part("Lowers", "Tokens whose logits it lowers most.", lowered),
      part("Nearest", "Features by the cosine of their decoder rows.", nearest),
    ),
  );
  const element = h("div", { class: "saelab-feature", role: "group", "aria-label": "The chosen feature" }, title, note, body);

  return {
    element,
    say(text) {
      setText(note, text);
      note.hidden = false;
      body.hidden = true;
    },
    setBusy(busy) {
      element.setAttribute("aria-busy", String(busy));
    },
    show(reading) {
      setText(title, `Feature ${reading.feature}`);
      element.dataset.shows = String(reading.feature);
      body.hidden = false;
      note.hidden = reading.density > 0;
      if (!reading.density) setText(note, "It is on for no token of the text: a dead feature.");
      density.show(100 * reading.density, formatPercent(reading.density));
      weight.element.hidden = reading.probe_weight === null;
      const w = reading.probe_weight ?? 0;
      weight.show(w, formatSigned(w, charts.probe_weight.digits));
      bar.style.setProperty("--from", String(Math.min(0, w) / (context.largestWeight() || 1)));
      bar.style.setProperty("--size", String(Math.abs(w) / (context.largestWeight() || 1)));
      setText(verdict, w === 0 ? "off on all snippets of the set" : w > 0 ? "speaks for a positive verdict" : "speaks for a negative verdict");
      histogram.show(reading);
      contexts.show(reading);
      const largest = Math.max(...[...reading.raised, ...reading.lowered].map(({ effect }) => Math.abs(effect)), 1e-30);
      raised.replaceChildren(...reading.raised.map((effect) => effectRow(effect, largest)));
      lowered.replaceChildren(...reading.lowered.map((effect) => effectRow(effect, largest)));
      noPath.hidden = reading.raised.length > 0;
      replaceChildren(
        nearest,
        reading.nearest.map(({ feature, cosine }) => nearRow(feature, cosine, context.topToken(feature), context.choose)),
      );
    },
  };
}

/** A share as a percentage; a little more than nothing is not written as nothing. */
export function formatPercent(share: number): string {
  return share > 0 && share < 0.00005 ? "<0.01" : formatFixed(100 * share, 2);
}

/** A number with its name, unit and help, as above a chart. */
function createStat(spec: ChartSpec): { element: HTMLElement; show(value: number, text: string): void } {
  const value = h("span", { class: "saelab-chart-value" });
  const element = h(
    "div",
    { class: "saelab-chart", "data-chart": spec.column },
    h(
      "div",
      { class: "saelab-chart-head" },
      h("span", { class: "saelab-chart-label" }, spec.label),
      h("span", {}, value, h("span", { class: "saelab-unit" }, spec.unit)),
    ),
    h("p", { class: "saelab-help" }, spec.help),
  );
  element.style.setProperty("--line", `var(--saelab-${spec.color})`);
  element.style.setProperty("--ink", `var(--saelab-${spec.color}-ink)`);
  return {
    element,
    show(number, text) {
      element.dataset.value = String(Number(number.toPrecision(7)));
      setText(value, text);
    },
  };
}

function createHistogram(spec: ChartSpec, life: AbortSignal): { element: HTMLElement; show(reading: Reading): void } {
  const plot = createPlot({ ...spec, name: spec.column, height: 104 }, life);
  const bars = plot.marks.append("g").attr("class", "saelab-bars");
  return {
    element: plot.element,
    show({ histogram, max_activation }) {
      const most = Math.max(...histogram, 1);
      const largest = max_activation || 1;
      const width = largest / histogram.length;
      plot.showValue(max_activation);
      plot.draw({ domain: [0, largest], scale: "linear" }, { domain: [0, most], scale: "linear" }, ({ toX, toY, bottom }) => {
        bars
          .selectAll<SVGRectElement, number>("rect")
          .data(histogram)
          .join((enter) => enter.append("rect").call((made) => made.append("title")))
          .attr("x", (_, bin) => toX(bin * width) + 0.5)
          .attr("width", Math.max(1, toX(width) - toX(0) - 1))
          .attr("y", (count) => toY(count))
          .attr("height", (count) => bottom - toY(count))
          .each(function (count, bin) {
            const range = `${formatFixed(bin * width, 2)} to ${formatFixed((bin + 1) * width, 2)}`;
            setText(this.firstElementChild!, `${range}: ${formatCount(count)} tokens`);
          });
      });
      const total = histogram.reduce((sum, count) => sum + count, 0);
      plot.describe(`${spec.label} ${formatFixed(max_activation, spec.digits)}. On for ${formatCount(total)} tokens.`);
    },
  };
}

function effectRow({ token, token_id, effect }: Effect, largest: number): HTMLElement {
  const bar = h("span", { class: "saelab-bar", "aria-hidden": "true" });
  bar.style.setProperty("--size", String(Math.abs(effect) / largest));
  const name = freeText(visibleAlone(token), "saelab-token-name");
  name.title = `token ${token_id}`;
  return h("li", {}, name, bar, h("span", { class: "saelab-number" }, formatSigned(effect, 2)));
}

function nearRow(feature: number, cosine: number, topToken: string, choose: (feature: number) => void): HTMLElement {
  const text = visibleAlone(topToken);
  const button = h(
    "button",
    { type: "button", class: "saelab-near", "data-near": feature, ...KEEP_KEYS },
    h("span", { class: "saelab-number" }, String(feature)),
    freeText(text, "saelab-token-name"),
    h("span", { class: "saelab-number" }, formatFixed(cosine, 2)),
  );
  button.setAttribute("aria-label", `Go to feature ${feature}, ${text.trim()}, cosine ${formatFixed(cosine, 2)}`);
  button.addEventListener("click", () => choose(feature));
  return h("li", {}, button);
}

/** Lines of text, their tokens shaded by activation, and a read-out of the token pointed at or focused. */
function createContexts(life: AbortSignal): { element: HTMLElement; show(reading: Reading): void } {
  const list = h("ol", { class: "saelab-contexts" });
  // Not a live region: the token with the focus has already been announced.
  const readout = h("p", { class: "saelab-help saelab-readout", "data-show": "token" }, HINT);
  const element = h("section", {}, h("div", { class: "saelab-contexts-head" }, h("h4", {}, "Top contexts"), readout), list);
  let lines: HTMLElement[] = [];

  const tokenOf = (target: EventTarget | null): HTMLElement | null => (target as Element).closest<HTMLElement>("[data-token]");
  const tokensOf = (line: HTMLElement): HTMLElement[] => [...line.querySelectorAll<HTMLElement>("[data-token]")];

  /** Scrolls each line so that its greatest activation is in view, below that of the line above. */
  function center(): void {
    for (const line of lines) {
      const peak = line.querySelector("[data-peak]")?.getBoundingClientRect();
      const box = line.getBoundingClientRect();
      if (peak) line.scrollLeft += peak.left + peak.width / 2 - box.left - PEAK_AT * box.width;
    }
  }

  function readOut(token: HTMLElement | null): void {
    if (!token) return setText(readout, HINT);
    readout.replaceChildren(
      freeText(token.textContent || "(begins a character)", "saelab-token-name"),
      h("span", { class: "saelab-number" }, token.dataset.activation!),
    );
  }

  function focus(token: HTMLElement | undefined): void {
    if (!token) return;
    for (const other of tokensOf(token.closest<HTMLElement>("[role=listbox]")!)) {
      other.tabIndex = other === token ? 0 : -1;
      other.setAttribute("aria-selected", String(other === token));
    }
    token.focus({ preventScroll: true });
    token.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  list.addEventListener("pointerover", (event) => readOut(tokenOf(event.target)));
  list.addEventListener("pointerleave", () => readOut(null));
  list.addEventListener("focusin", (event) => readOut(tokenOf(event.target)));
  list.addEventListener("focusout", () => readOut(null));
  list.addEventListener("click", (event) => focus(tokenOf(event.target) ?? undefined));
  list.addEventListener("keydown", (event) => {
    const token = tokenOf(event.target);
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    const line = token.closest<HTMLElement>("[role=listbox]")!;
    const tokens = tokensOf(line);
    const at = tokens.indexOf(token);
    const forward = getComputedStyle(line).direction === "rtl" ? -1 : 1;
    const moves: Record<string, HTMLElement | undefined> = {
      ArrowRight: tokens[at + forward],
      ArrowLeft: tokens[at - forward],
      Home: tokens[0],
      End: tokens.at(-1),
      ArrowDown: lines[lines.indexOf(line) + 1]?.querySelector<HTMLElement>('[tabindex="0"]') ?? undefined,
      ArrowUp: lines[lines.indexOf(line) - 1]?.querySelector<HTMLElement>('[tabindex="0"]') ?? undefined,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    focus(moves[event.key]);
  });
  const observer = new ResizeObserver(center);
  observer.observe(list);
  life.addEventListener("abort", () => observer.disconnect());

  return {
    element,
    show(reading) {
      const items = reading.contexts.map((context, index) => contextItem(context, index, reading.max_activation));
      lines = items.map(({ line }) => line);
      readOut(null);
      replaceChildren(
        list,
        items.map(({ item }) => item),
      );
      element.hidden = items.length === 0;
      center();
    },
  };
}

function contextItem(context: Context, index: number, largest: number): { item: HTMLElement; line: HTMLElement } {
  const tokens = context.tokens.map((token, at) => {
    const activation = context.activations[at]!;
    const isPeak = at === context.peak;
    const text = visible(token);
    const value = formatFixed(activation, 2);
    const span = h(
      "span",
      {
        class: token === "" ? "saelab-token saelab-token-part" : "saelab-token",
        role: "option",
        tabindex: isPeak ? 0 : -1,
        title: value,
        "aria-label": `${text.trim() || "space"}, ${value}`,
        "aria-selected": String(isPeak),
        "data-token": at,
        "data-activation": value,
        "data-peak": isPeak,
        ...KEEP_KEYS,
      },
      text,
    );
    if (token === "") span.setAttribute("aria-label", `begins a character, ${value}`);
    span.style.setProperty("--shade", String(shade(activation, largest)));
    return span;
  });
  const line = h(
    "div",
    {
      class: "saelab-context",
      role: "listbox",
      dir: "auto",
      "aria-orientation": "horizontal",
      "aria-label": `Context ${index + 1}: ${context.tokens.map(visible).join("").trim()}`,
    },
    h("span", { class: "saelab-context-text", role: "presentation" }, ...tokens),
  );
  const value = h(
    "span",
    { class: "saelab-number saelab-context-value", title: `text ${context.text_index}, token ${context.position}` },
    formatFixed(context.activations[context.peak]!, 2),
  );
  return { item: h("li", {}, value, line), line };
}
