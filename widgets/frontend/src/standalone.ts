/** Shows a widget in a page of its own, where there is no kernel: `Instrument.save_html` writes the rest of the page. */
import type { AnyModel } from "@anywidget/types";
import type { Widget } from "./widget";

type State = Record<string, unknown>;
type Handler = (...content: any[]) => void;

/** The model of a widget whose kernel is gone: traits can be set, and messages lead nowhere. */
class StandaloneModel implements AnyModel<State> {
  readonly widget_manager = { get_model: () => Promise.reject(new Error("This page has one widget.")) };
  private readonly handlers = new Map<string, Set<Handler>>();

  constructor(private readonly state: State) {}

  get(name: string): unknown {
    return this.state[name];
  }

  set(name: string, value: unknown): void {
    if (Object.is(this.state[name], value)) return;
    this.state[name] = value;
    this.handlers.get(`change:${name}`)?.forEach((handler) => handler(undefined));
  }

  save_changes(): void {}

  send(content: unknown): void {
    // At once, and not "no answer": nobody waits for a kernel on a page.
    const { id } = content as { id?: number };
    this.handlers.get("msg:custom")?.forEach((handler) => handler({ kind: "done", id }));
  }

  on(event: string, handler: Handler): void {
    const handlers = this.handlers.get(event) ?? new Set();
    this.handlers.set(event, handlers.add(handler));
  }

  off(event?: string | null, handler?: Handler | null): void {
    if (event && handler) this.handlers.get(event)?.delete(handler);
  }
}

/** Bytes come as `{"base64": ...}`, anywhere in the state. */
function withBytes(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withBytes);
  if (value === null || typeof value !== "object") return value;
  const { base64 } = value as { base64?: unknown };
  if (typeof base64 === "string") {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return new DataView(bytes.buffer);
  }
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, withBytes(inner)]));
}

const read = (id: string): unknown => JSON.parse(document.getElementById(id)!.textContent!);

const url = URL.createObjectURL(new Blob([read("saelab-script") as string], { type: "text/javascript" }));
const widget: Widget<any> = (await import(url)).default;
const model = new StandaloneModel(withBytes(read("saelab-state")) as State);
widget.render({ model: model as AnyModel<any>, el: document.getElementById("saelab-widget")! });
