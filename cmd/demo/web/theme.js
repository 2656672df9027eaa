// Before the first paint: the theme that was chosen here, or that of the system. Not a module, so that nothing flashes.
try {
  const chosen = localStorage.getItem('theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is refused: the system's theme it is.
}
