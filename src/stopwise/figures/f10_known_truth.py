"""F10: where the truth is known, measured rates against theory and every rule against the oracle."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stopwise.figures import style
from stopwise.figures.tables import frame, ordered
from stopwise.studies.synthetic_tables import summarise

COLUMNS = pa.schema(
    [
        pa.field("quantity", pa.string(), nullable=False),  # risk, slope, theory_slope, regret, hit, ratio, ...
        pa.field("decay", pa.string(), nullable=False),  # finite_rank, beta1, beta2, exponential, or all of them
        pa.field("m", pa.int64()),  # empty: all sizes together
        pa.field("rule", pa.string(), nullable=False),
        pa.field("known", pa.bool_(), nullable=False),  # sigma and R known to the rule, or estimated
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("count", pa.int64(), nullable=False),  # data sets behind the value
    ]
)
DECAYS = {
    "finite_rank": "finite rank",
    "beta1": "eigenvalues $k^{-2}$",
    "beta2": "eigenvalues $k^{-4}$",
    "exponential": "exponential",
}
LINES = {("worst_case", True): "-", ("oracle", True): ":", ("sure", False): "-"}
JUDGED = {
    "regret": "relative regret\n(median)",
    "regret_p90": "relative regret\n(90th percentile)",
    "hit": "hit rate\n(within 5 %)",
    "ratio": "stop / oracle's stop\n(median)",
}


def table(studies: Iterable[pa.Table]) -> pa.Table:
    """Assemble the table from the ``theory_study`` artifacts of the decays."""
    rows = [row for study in studies for row in study.to_pylist()]
    return pa.Table.from_pylist(summarise(rows), schema=COLUMNS)


def _rates(ax: Axes, data: pd.DataFrame, decay: str) -> None:
    """Mean risk against m on log axes, with the slope of theory through the first worst-case point."""
    rows = data[data["decay"] == decay]
    for (rule, known), line in LINES.items():
        risk = rows[(rows["quantity"] == "risk") & (rows["rule"] == rule) & (rows["known"] == known)].sort_values("m")
        look = style.RULES[rule]
        ax.plot(risk["m"], risk["value"], line, color=look.color, marker=look.marker, markersize=3.5)
        ax.vlines(risk["m"], risk["low"], risk["high"], color=look.color, linewidth=0.8)
    risk = rows[(rows["quantity"] == "risk") & (rows["rule"] == "worst_case") & rows["known"]].sort_values("m")
    slopes = {
        q: rows[(rows["quantity"] == q) & (rows["rule"] == "worst_case")].iloc[0] for q in ("slope", "theory_slope")
    }
    m, theory = risk["m"].to_numpy(dtype=float), slopes["theory_slope"]["value"]
    centre = np.exp(np.log(risk["value"]).mean() - theory * np.log(m).mean())
    ax.plot(m, centre * m**theory, "--", color="black", linewidth=0.9, zorder=1)
    found = slopes["slope"]
    ax.set_title(f"{DECAYS.get(decay, decay)}", loc="left")
    text = f"slope {found['value']:.2f}\n[{found['low']:.2f}, {found['high']:.2f}]\ntheory {theory:.2f}"
    ax.text(0.03, 0.04, text, transform=ax.transAxes, fontsize=style.SMALL_FONT_SIZE, va="bottom")
    ax.set(xscale="log", yscale="log", xlabel="number of examples m")
    ax.set_xticks(m, [f"{v:.0f}" for v in m])
    ax.minorticks_off()
    low, high = rows[rows["quantity"] == "risk"]["low"].min(), rows[rows["quantity"] == "risk"]["high"].max()
    ax.set_ylim(low / (high / low) ** 0.45, high * 1.15)
    style.plain_log(ax.yaxis)


def _judged(ax: Axes, data: pd.DataFrame, quantity: str, rules: list[str]) -> None:
    """One line a rule: filled with sigma and R known, open with both estimated."""
    rows = data[(data["quantity"] == quantity) & (data["decay"] == "all")]
    for i, rule in enumerate(rules):
        look = style.RULES[rule]
        for known, offset in ((True, -0.17), (False, 0.17)):
            found = rows[(rows["rule"] == rule) & (rows["known"] == known)]
            if found.empty:
                continue
            one, y = found.iloc[0], i + (offset if rule in _both(rows) else 0)
            ax.plot([one["low"], one["high"]], [y, y], color=look.color, linewidth=1.0)
            face = look.color if known else "white"
            ax.plot(one["value"], y, marker=look.marker, color=look.color, markerfacecolor=face, markersize=4.5)
    ax.set_yticks(range(len(rules)), [style.rule_label(rule) for rule in rules])
    ax.set_ylim(len(rules) - 0.5, -0.5)
    ax.set_xlabel(JUDGED[quantity])
    if quantity == "ratio":
        ax.set_xscale("log")
        ax.axvline(1.0, color=style.COLORS["grey"], linewidth=0.8)
        style.plain_log(ax.xaxis)
    else:
        ax.set_xlim(0, 1 if quantity == "hit" else None)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def _both(rows: pd.DataFrame) -> set[str]:
    counts = rows.groupby("rule")["known"].nunique()
    return set(counts[counts > 1].index)


def says(table: pa.Table) -> str:
    """One sentence: for how many decays the measured rate's interval holds that of the theory."""
    data = frame(table, COLUMNS, "F10")
    data = data[data["rule"] == "worst_case"]
    slopes = data[data["quantity"] == "slope"].set_index("decay")
    theory = data[data["quantity"] == "theory_slope"].set_index("decay")["value"]
    if slopes.empty:
        return ""
    at = theory.reindex(slopes.index)
    held = int(((slopes["low"] <= at) & (at <= slopes["high"])).sum())
    return f"With a known truth the theory's rate is inside the measured interval for {held} of {len(slopes)} decays."


@style.styled
def draw(table: pa.Table) -> Figure:
    """Draw the rates of each decay above, and below the judgement of every rule over all decays and sizes."""
    data = frame(table, COLUMNS, "F10")
    decays = [d for d in DECAYS if (data["decay"] == d).any()]
    rules = [r for r in ordered(data.loc[data["decay"] == "all", "rule"], style.RULES) if r != "oracle"]
    figure, axes = style.new_figure("two-column", 5.4, nrows=2, ncols=4, gridspec_kw={"height_ratios": [1.0, 1.25]})
    for ax, decay in zip(axes[0], decays, strict=False):
        _rates(ax, data, decay)
    for ax in axes[0, len(decays) :]:
        ax.set_visible(False)
    axes[0, 0].set_ylabel("mean risk $|f_t - f^*|^2$")
    for ax, quantity in zip(axes[1], JUDGED, strict=True):
        _judged(ax, data, quantity, rules)
        if ax is not axes[1, 0]:
            ax.set_yticklabels([])
    names = {
        ("worst_case", True): "worst case, known σ, R",
        ("oracle", True): "oracle",
        ("sure", False): "sure, estimated σ",
    }
    keys = [
        style.line_key(names[key], color=style.RULES[key[0]].color, marker=style.RULES[key[0]].marker, linestyle=line)
        for key, line in LINES.items()
    ]
    keys.append(style.line_key("slope of theory", color="black", linestyle="--", linewidth=0.9))
    grey = style.COLORS["grey"]
    keys.append(style.line_key("known σ, R", color=grey, marker="o", linestyle=""))
    keys.append(style.line_key("estimated, or not used", color=grey, marker="o", linestyle="", markerfacecolor="white"))
    style.outside_legend(figure, keys, 6)
    style.headline(figure, says(table))
    return figure
