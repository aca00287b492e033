"""The look of a report's page, in light and dark."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff;
  --text: #24292f;
  --faint: #667080;
  --line: #dde1e6;
  --stripe: #f6f7f9;
  --drafted: 46, 139, 87;
  --own: #eceef1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c;
    --text: #dfe3e8;
    --faint: #98a2ae;
    --line: #333a42;
    --stripe: #1c2025;
    --drafted: 63, 185, 120;
    --own: #2a2f36;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0;
  background: var(--paper);
  color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 0.6rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem; overflow-wrap: anywhere; }
.note { color: var(--faint); font-size: 0.87rem; margin: 0.4rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.34rem 0.75rem; border-bottom: 1px solid var(--line); }
th, td { text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0.4rem; }
thead th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 600; }
tbody tr:nth-child(even) { background: var(--stripe); }
.interval { display: block; color: var(--faint); font-size: 0.85em; }
.pictures { columns: 2 480px; column-gap: 2rem; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; color: var(--text); }
figcaption { color: var(--faint); font-size: 0.87rem; margin-top: 0.3rem; }
details { padding: 0.5rem 0.9rem; margin: 0.6rem 0; border: 1px solid var(--line); border-radius: 6px; }
.answer, .asked { max-width: 64rem; }
summary { cursor: pointer; font-weight: 600; }
.asked { color: var(--faint); border-left: 3px solid var(--line); padding-left: 0.7rem; white-space: pre-wrap; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; }
.answer span, .legend span { border-radius: 3px; padding: 0.1em 0; box-shadow: inset 1px 0 0 var(--paper); }
.legend { display: flex; flex-wrap: wrap; gap: 0.4rem; font-size: 0.87rem; }
.legend span { padding: 0.1em 0.5em; }
.own { background: var(--own); }
.d1 { background: rgba(var(--drafted), 0.22); }
.d2 { background: rgba(var(--drafted), 0.32); }
.d3 { background: rgba(var(--drafted), 0.42); }
.d4 { background: rgba(var(--drafted), 0.52); }
.d5 { background: rgba(var(--drafted), 0.62); }
.d6 { background: rgba(var(--drafted), 0.74); }
"""
