"""The fixed parts of the results page: its style and its script."""

# Nothing may be fetched: a page that is opened years later, or on a machine without a network, is complete.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .3rem; border-top: 1px solid #ddd; padding-top: 1.2rem; }
nav { margin: .8rem 0; }
nav a { margin-right: 1rem; }
a { color: #0072b2; }
p { max-width: 46rem; }
.lead { font-size: 1.25rem; line-height: 1.4; margin: .6rem 0 1rem; }
.says { font-weight: 600; margin-bottom: .2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
caption { text-align: left; padding-bottom: .4rem; color: #555; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e6e6e6; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; max-width: 22rem; }
thead th { white-space: normal; border-bottom: 2px solid #999; vertical-align: bottom; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
label { margin-right: 1.2rem; font-size: .9rem; display: inline-block; }
label[hidden] { display: none; }
select { font: inherit; max-width: min(22rem, 80vw); }
.plot { min-height: 430px; }
.empty { color: #777; padding: 3rem 0; text-align: center; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) {
  body { padding: 1rem .7rem 3rem; }
  h1 { font-size: 1.35rem; }
  .lead { font-size: 1.1rem; }
  table { font-size: .85rem; }
  th, td { padding: .25rem; }
  td:first-child { min-width: 5rem; max-width: 9rem; }
  section > img { max-width: none; }
  section { overflow-x: auto; }
}
"""

SCRIPT = """
"use strict";
const sections = JSON.parse(document.getElementById("sections").textContent);
// plotly.js 4 offers to upload a chart to its maker's cloud by default: data stays here
const config = {displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: ""};
for (const [id, figures] of Object.entries(sections)) {
  const box = document.getElementById(id);
  const plot = box.querySelector(".plot");
  const choices = Array.from(box.querySelectorAll("select"));
  const show = () => {
    const figure = figures[choices.map((choice) => choice.value).join("|")];
    if (figure) {
      if (!plot.classList.contains("js-plotly-plot")) plot.textContent = "";
      plot.classList.remove("empty");
      // on a phone the legend has a line for each entry
      const keys = figure.data.filter((trace) => trace.showlegend).length;
      const more = window.innerWidth < 640 ? 22 * keys : 0;
      Plotly.react(plot, figure.data, {...figure.layout, height: figure.layout.height + more}, config);
    } else {
      Plotly.purge(plot);
      plot.classList.add("empty");
      plot.textContent = "The run holds no data for this choice.";
    }
  };
  choices.forEach((choice) => choice.addEventListener("change", show));
  show();
}
document.body.dataset.ready = "yes";
"""
