import type { AnyModel } from "@anywidget/types";
import { type AnyTraits, listen } from "./traits";

/** How long a kernel may be busy before the widget says so. */
const PATIENCE = 4000;

export interface Kernel {
  /** Sends a message that the kernel acknowledges once it has been dealt with. */
  ask(content: { kind: string; [key: string]: unknown }): void;
}

/**
 * Messages to the kernel, with an eye on whether any comes back. `onWait` is told true when one has gone unanswered for some
 * seconds (the kernel is busy, or there is none: an exported page, a kernel that was shut down), and false when all is well.
 */
export function connectKernel<Traits extends AnyTraits>(model: AnyModel<Traits>, life: AbortSignal, onWait: (waiting: boolean) => void): Kernel {
  const pending = new Map<number, ReturnType<typeof setTimeout>>();
  let count = 0;
  listen(model, "msg:custom", life, (content) => {
    const { kind, id } = content as { kind?: string; id?: number };
    if (kind !== "done" || id === undefined) return;
    clearTimeout(pending.get(id));
    pending.delete(id);
    onWait(false);
  });
  life.addEventListener("abort", () => pending.forEach((timer) => clearTimeout(timer)));
  return {
    ask(content) {
      const id = ++count;
      pending.set(id, setTimeout(() => onWait(true), PATIENCE));
      model.send({ ...content, id });
    },
  };
}
