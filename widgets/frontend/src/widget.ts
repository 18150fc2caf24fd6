/** What the six widgets share in the page: root element, palette, status line, and an end. */
import type { AnyModel, RenderProps } from "@anywidget/types";
import { h } from "./dom";
import type { Kernel } from "./kernel";
import { type Palette, paletteOf } from "./palette";
import { createStatus } from "./status";
import { onChange } from "./traits";
import "./theme.css";

/** The traits of every widget: those of `Instrument` in Python. */
export interface InstrumentTraits {
  status: string;
  error: string;
  /** False in an exported page. */
  kernel: boolean;
  palette: Palette;
}

/** What a widget's own part works with. */
export interface Context<Traits extends InstrumentTraits> {
  model: AnyModel<Traits>;
  /** The element that holds all of the widget. */
  root: HTMLElement;
  /** Aborted when the widget leaves the page. */
  life: AbortSignal;
  kernel: Kernel;
  /** Counts a drawing on the root, so that tests can wait for it. */
  drawn(): void;
}

/** What anywidget asks of a front end. All of `RenderProps` that is used, so that a page of our own can give it. */
export interface Widget<Traits extends InstrumentTraits> {
  render(props: Pick<RenderProps<Traits>, "model" | "el">): () => void;
}

/**
 * A widget whose root has the class `saelab-<name>`. `create` gives the elements above the status line. `buffers` names the
 * traits with binary data, which are asked for again where they are missing.
 */
export function widget<Traits extends InstrumentTraits>(
  name: string,
  buffers: readonly (keyof Traits & string)[],
  create: (context: Context<Traits>) => readonly HTMLElement[],
): Widget<Traits> {
  return {
    render({ model, el }) {
      const life = new AbortController();
      const { signal } = life;
      const root = h("div", { class: `saelab saelab-root saelab-${name}`, "data-draws": 0 });
      // Before anything is drawn: what is drawn on a canvas keeps the colours it was drawn in.
      const applyPalette = paletteOf(root);
      const paint = (): void => applyPalette(model.get("palette"));
      onChange<Traits>(model, ["palette"], signal, paint);
      paint();
      const status = createStatus(model, signal, buffers);
      let draws = 0;
      const drawn = (): void => {
        root.dataset.draws = String(++draws);
      };
      root.append(...create({ model, root, life: signal, kernel: status, drawn }), status.element);
      el.append(root);
      return () => {
        life.abort();
        root.remove();
      };
    },
  };
}
