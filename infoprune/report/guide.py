"""Draw how well each capacity estimator predicts the entropy of feature maps, by layer."""

from __future__ import annotations

from html import escape

from infoprune.criteria.measures.capacity import CAPACITIES
from infoprune.criteria.measures.feature_guided import FeatureGuide

INK, SOFT, GOOD, BAD = "#1c1e20", "#5c636a", (11, 110, 105), (176, 80, 10)
ROW, COLUMN, MARGIN, HEAD = 18, 86, 14, 46


def correlation_map(guide: FeatureGuide) -> str:
    """Draw a guide's Spearman correlations: layers down, estimators across, their means below.

    Every cell shows its number, so the picture is the table too. Green: the estimator ranks filters as the entropy of
    their feature maps does; orange: the other way round.

    Args:
        guide: what :func:`~infoprune.criteria.measures.feature_guided.guide_capacity` found.

    Returns:
        A complete SVG file as text; it needs no style sheet and loads nothing.

    Example:
        >>> from infoprune.criteria.measures.feature_guided import FeatureGuide
        >>> svg = correlation_map(FeatureGuide({"conv": dict.fromkeys(CAPACITIES, 0.5)}, {}, images=8))
        >>> svg.startswith("<svg"), svg.count("0.50")
        (True, 8)
    """
    names = max(map(len, [*guide.correlations, "mean"])) * 7 + 2 * MARGIN
    width, height = names + COLUMN * len(CAPACITIES) + MARGIN, HEAD + ROW * (len(guide.correlations) + 1) + 8 + MARGIN
    parts = [f'<text x="{MARGIN}" y="20" class="head">Spearman correlation of capacity with feature-map entropy</text>']
    for column, estimator in enumerate(CAPACITIES):
        weight = ' class="head"' if estimator == guide.best else ""
        x = names + COLUMN * (column + 0.5)
        parts.append(f'<text x="{x:g}" y="{HEAD - 6}" text-anchor="middle"{weight}>{estimator}</text>')
    for row, (layer, found) in enumerate([*guide.correlations.items(), ("mean", guide.means)]):
        last = row == len(guide.correlations)
        top = HEAD + ROW * row + (8 if last else 0)
        weight = ' class="head"' if last else ""
        parts.append(f'<text x="{names - MARGIN}" y="{top + 13}" text-anchor="end"{weight}>{escape(layer)}</text>')
        parts += [_cell(names + COLUMN * column, top, found[name]) for column, name in enumerate(CAPACITIES)]
    style = f"text{{font:11px system-ui,sans-serif;fill:{SOFT}}}.head{{font-weight:600;fill:{INK}}}.cell{{fill:{INK}}}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>'
    )


def _cell(left: float, top: float, value: float) -> str:
    tone = GOOD if value > 0 else BAD
    shade = "#" + "".join(f"{round(255 - abs(value) * 0.75 * (255 - part)):02x}" for part in tone)
    return (
        f'<rect x="{left:g}" y="{top}" width="{COLUMN - 2}" height="{ROW - 2}" fill="{shade}"/>'
        f'<text class="cell" x="{left + COLUMN / 2 - 1:g}" y="{top + 12}" text-anchor="middle">{value:.2f}</text>'
    )
