/** Turns any number of requests into one call at the next animation frame. */
export function oncePerFrame(draw: () => void, life: AbortSignal): () => void {
  let pending = 0;
  life.addEventListener("abort", () => cancelAnimationFrame(pending));
  return () => {
    if (life.aborted) return;
    pending ||= requestAnimationFrame(() => {
      pending = 0;
      draw();
    });
  };
}

/** Calls at once, then at most once per interval, and never loses the last request. */
export function atMostEvery(milliseconds: number, call: () => void, life: AbortSignal): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let requested = false;
  life.addEventListener("abort", () => clearTimeout(timer));
  const run = (): void => {
    requested = false;
    call();
    timer = setTimeout(() => {
      timer = undefined;
      if (requested) run();
    }, milliseconds);
  };
  return () => {
    requested = true;
    if (timer === undefined && !life.aborted) run();
  };
}
