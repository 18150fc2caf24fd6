/** Calls back when colours may have changed, the page's or those of `root`: a canvas keeps the colours it was drawn in. */
export function onThemeChange(root: HTMLElement, life: AbortSignal, callback: () => void): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback, { signal: life });
  const observer = new MutationObserver(callback);
  // JupyterLab and VS Code say it on the body, Colab on the root.
  for (const element of [document.documentElement, document.body]) {
    observer.observe(element, { attributeFilter: ["class", "style", "theme", "data-jp-theme-light", "data-vscode-theme-kind"] });
  }
  observer.observe(root, { attributeFilter: ["style"] }); // the palette
  life.addEventListener("abort", () => observer.disconnect());
}
