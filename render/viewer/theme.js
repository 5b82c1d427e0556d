// Light or dark: as the system says, unless chosen.

import { useEffect, useState } from "./html.js";

const NAME = "attnstore-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

function chosen() {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null; // a file's page may keep nothing
  }
}

/** @returns {["light" | "dark", () => void]} the theme, and what changes it */
export function useTheme() {
  const [own, setOwn] = useState(chosen);
  const [system, setSystem] = useState(dark.matches);
  useEffect(() => {
    const changed = () => setSystem(dark.matches);
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  const theme = own === "light" || own === "dark" ? own : system ? "dark" : "light";
  document.documentElement.dataset.theme = theme;
  const toggle = () => {
    const next = theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(NAME, next);
    } catch {
      // it holds until the page is left
    }
    setOwn(next);
  };
  return [theme, toggle];
}
