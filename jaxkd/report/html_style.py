"""The looks of report.html: one style sheet for phone and desktop, light and dark, without anything from a network."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --soft: #55606e; --line: #d7dce2; --tint: #f3f5f8;
  --link: #1f4e9e; --warn: #fff6e3; --warn-line: #d9a021; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181e; --ink: #e4e8ee; --soft: #a2adba; --line: #333c47;
  --tint: #1c222a; --link: #8db8ff; --warn: #2b2518; --warn-line: #b8860b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.4rem 0; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.6rem; padding-top: 0.6rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.8rem 0 0.5rem; }
p, ul { margin: 0.5rem 0; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
small, .facts, .hint, figcaption .file { color: var(--soft); }
.facts { font-size: 0.95rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; padding: 0.7rem 0 0; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 6px;
  -webkit-overflow-scrolling: touch; }
.picture { background: #ffffff; padding: 6px; }
.picture img { display: block; width: 100%; margin: 0 auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 0.35rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 500; white-space: normal; min-width: 9.5rem; max-width: 22rem; overflow-wrap: break-word; }
tbody th small { display: block; }
thead th { background: var(--tint); vertical-align: bottom; white-space: normal; min-width: 6rem; max-width: 16rem; }
.side td, .side thead th { text-align: left; white-space: normal; min-width: 7rem; vertical-align: top; }
.side tbody th { vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
figure { margin: 0 0 1.6rem; }
figcaption { font-size: 0.95rem; max-width: 52rem; }
.cannot { background: var(--warn); border-left: 4px solid var(--warn-line); padding: 0.5rem 0.8rem;
  border-radius: 4px; }
.hint { display: none; font-size: 0.85rem; margin: 0.3rem 0 0; }
details { margin: 0.6rem 0; }
summary { cursor: pointer; padding: 0.3rem 0; }
pre { margin: 0.5rem 0; padding: 0.7rem; background: var(--tint); font-size: 0.85rem; }
.saliency { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.saliency img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
@media (max-width: 640px) { .hint { display: block; } body { font-size: 15px; } h1 { font-size: 1.35rem; }
  th, td { padding: 0.3rem 0.5rem; } tbody th { min-width: 7.5rem; } }
@media print { .scroll { overflow: visible; } }
"""
