"""Sections made of analyses: Tables 3 to 7, Figures 1, 3, 4, 6 to 13, claims C1 to C3, C5 to C8, C11; called by report.write."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from experiments.configs import EXPERIMENTS
from experiments.report import paper, pictures
from experiments.report.section import Grid, Section, analysis_source, statistic
from experiments.report.sections_training import Evidence, missing

LAPTOP = "laptop scale: digits, 20 epochs of AdamW; not comparable with the paper's numbers"


def section(name: str, evidence: Evidence) -> Section:
    """The section of an experiment that an analysis fills."""
    entry = EXPERIMENTS[name]
    found = Section(name, entry.title, paper.CLAIMS[name], missing=missing(name, evidence))
    for scale in ("full", "laptop"):
        record = evidence.analyses.get((name, scale))
        if record is not None:
            BUILDERS[name](found, record["values"], evidence, scale)
            found.sources.append(analysis_source(record))
    if not found.sources and not found.missing:
        found.missing = f"not run: {found.command} takes seconds"
    return found


def _sizes(printed: dict[str, list[Any]]) -> Any:
    def build(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
        rows = []
        for data, ours in values["rows"].items():
            theirs = printed[data]
            same = (
                "same"
                if ours == theirs
                else "differs: " + ", ".join(f"{a}, not {b}" for a, b in zip(ours, theirs, strict=True) if a != b)
            )
            rows.append([data, ", ".join(map(str, ours)), ", ".join(map(str, theirs)), same])
        found.grids.append(Grid(["data", "ours", "paper", "compared"], rows))
        found.ours = "; ".join(f"{row[0]} {row[3]}" for row in rows)

    return build


def probes(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    picture = f"{found.name}.{scale}"
    pictures.probe_curves(evidence.pictures / picture, values)
    found.pictures.append(picture)
    rows = []
    for name, line in values.items():
        printed = paper.PROBES[found.name].get(name, [])
        for number, entry in enumerate(line):
            theirs = printed[number] if scale == "full" and number < len(printed) else None
            compared = (
                ["–", "–"] if theirs is None else [f"{theirs[0]}/{theirs[1]}", f"{entry['test'] - theirs[1]:+.2f}"]
            )
            rows.append([name, str(number + 1), f"{entry['train']:.2f}/{entry['test']:.2f}", *compared])
    note = "One net per row (n=1)." if scale == "full" else f"One net per row (n=1); {LAPTOP}."
    found.grids.append(Grid(["net", "after", "train/test %", "paper", "difference (test)"], rows, note))
    last = {name: line[-1]["test"] for name, line in values.items()}
    prefix = "" if scale == "full" else "laptop: "
    found.ours = (
        found.ours
        or prefix + ", ".join(f"{name} {value:.2f} %" for name, value in last.items()) + " after the last (n=1)"
    )


def figure_1(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    pictures.effective_depth(evidence.pictures / "F1", values["iterations"])
    found.pictures.append("F1")
    found.ours, found.paper = f"{values['depth']} layers counted in the built net", "7"


def figure_3(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    pictures.mazes(evidence.pictures / "F3", values["mazes"])
    found.pictures.append("F3")
    found.remarks.append(
        "The authors' generator leaves some corner posts open, which makes short cuts; with closed posts the way is unique. "
        "Numbers to be compared with the paper's are made with posts=authors_v1."
    )
    found.ours, found.paper = "picture", "picture"


def figure_4(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    pictures.path_lengths(evidence.pictures / "F4", values)
    found.pictures.append("F4")
    rows = []
    for name, entry in values.items():
        at = entry["percentiles"]
        between = " / ".join(f"{at[p]:g}" for p in ("10", "25", "50", "75", "90", "99"))
        spread = f"{entry['mean']:.1f} ± {entry['deviation']:.1f}"
        rows.append([name, f"{entry['count']:,}", spread, between, str(entry["longest"])])
    headings = ["mazes", "count", "mean ± deviation", "10 / 25 / 50 / 75 / 90 / 99 %", "longest"]
    found.grids.append(Grid(headings, rows, "Steps on the raster, two per cell."))
    found.ours = (
        ", ".join(f"{name} {values[f'{name} closed']['mean']:.1f}" for name in ("small", "medium", "large"))
        + " steps on average"
    )
    found.paper = "picture only"


def neurons(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    picture = f"{found.name}.{scale}"
    pictures.active_neurons(evidence.pictures / picture, values["nets"])
    found.pictures.append(picture)
    rows = []
    for net in values["nets"]:
        row = [
            str(net["seed"]),
            f"{100 * net['share_of_pairs_active_twice']:.1f}",
            f"{net['mean_ratio_elsewhere']:.3f}",
        ]
        row += [
            f"{net['channels_active_twice']} of {net['channels']}",
            f"{100 * net['pairs_never_active'] / net['pairs']:.1f}",
        ]
        rows.append(row + ([f"{net['distance_to_trained']:.3f}"] if "distance_to_trained" in net else []))
    headings = [
        "seed",
        "% of pairs active twice or more",
        "mean share elsewhere",
        "filters active twice",
        "% of pairs never active",
    ]
    headings += ["distance to trained"] if "distance_to_trained" in values["nets"][0] else []
    images = values["nets"][0]["pairs"] // values["nets"][0]["channels"]
    note = f"{images:,} test images. Pairs: image and filter. Elsewhere: on iterations other than the most active."
    found.grids.append(Grid(headings, rows, note if scale == "full" else f"{note} {LAPTOP}."))
    prefix = "" if scale == "full" else "laptop: "
    if "distance_to_trained" in values["nets"][0]:
        distances = pd.Series([net["distance_to_trained"] for net in values["nets"]])
        found.ours = found.ours or f"{prefix}total variation to trained {statistic(distances, 3)}"
    else:
        shares = [100 * net["share_of_pairs_active_twice"] for net in values["nets"]]
        found.ours = (
            found.ours
            or f"{prefix}{sum(shares) / len(shares):.1f} % of pairs active on several iterations (n={len(shares)})"
        )
    found.paper = "picture only"


def visualisation(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    found.pictures += [net["picture"].removesuffix(".png") for net in values["nets"]]
    layers = list(values["nets"][0]["high_frequency"])
    rows = [[net["kind"], *(f"{100 * net['high_frequency'][layer]:.1f}" for layer in layers)] for net in values["nets"]]
    note = (
        f"Energy beyond half the highest frequency, %; {values['batch']} images at once, {values['steps']} steps. "
        f"Rows of the pictures: layers from the stem on."
    )
    smaller = f"{note} The paper has 64 images at once. {LAPTOP}."
    found.grids.append(Grid(["net", *layers], rows, note if scale == "full" else smaller))
    found.ours = found.ours or ("pictures" if scale == "full" else "laptop: pictures")
    found.paper = "pictures only"


def claim_1(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    found.ours, found.paper = f"{values['recurrent']:,} and {values['feed_forward']:,}", "12 M and 31 M"
    found.grids.append(Grid(["net", "parameters"], [[name, f"{count:,}"] for name, count in values.items()]))


def claim_2(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    rows = []
    for data, entry in values.items():
        counts = [f"{count:,}" for count in entry["recurrent"].values()]
        rows.append([data, *counts, f"{entry['resnet18']:,}", f"{entry['share']:.3f}"])
    note = "Share: depth 15 against ResNet-18. The authors' recurrent file has 512 more, of an unused BatchNorm."
    found.grids.append(Grid(["data", "depth 7", "11", "15", "19", "ResNet-18", "share"], rows, note))
    found.ours = "; ".join(f"{row[0]} {row[3]} against {row[5]}" for row in rows)
    found.paper = "3.56 M, 3.56 M, 3.57 M against 11.2 M"


def claim_3(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    rows = [[str(row[key]) for key in ("family", "n", "label", "formula", "counted")] for row in values["rows"]]
    note = "Label: what the figures print. ConvNets have one layer more than the authors' label says."
    found.grids.append(Grid(["family", "iterations", "label", "formula", "layers counted"], rows, note))
    found.ours = f"layers counted in {len(rows)} built nets: {'all agree' if values['agree'] else 'NOT all agree'}"
    found.paper = "formula"


def claim_5(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    rows = []
    pairs = {name: entry for name, entry in values.items() if isinstance(entry, dict)}
    for name, entry in pairs.items():
        for measure, found_value in entry.items():
            spread = "–" if found_value["deviation"] is None else f"{found_value['deviation']:.3f}"
            theirs = paper.CLAIM_5.get(name) if scale == "full" and measure == "penultimate biased" else None
            compared = ["–", "–"] if theirs is None else [f"{theirs}", f"{found_value['mean'] - theirs:+.3f}"]
            rows.append([name, measure, f"{found_value['mean']:.3f}", spread, str(found_value["n"]), *compared])
    note = (
        f"{values['images']} test images, float64. Deviation over n pairs of nets, which share nets: of s seeds s × s pairs."
        + ("" if scale == "full" else f" {LAPTOP}.")
    )
    found.grids.append(Grid(["pair", "layer and form", "CKA", "deviation", "n", "paper", "difference"], rows, note))
    found.remarks.append(
        "Pairs of equal seeds, s of the s × s, begin training with the same stem and head: the nets are built in that order."
    )
    for depth in (8, 7):
        if f"R{depth}-R4" in pairs and pairs[f"R{depth}-R4"] == pairs.get(f"R{depth}-FF4"):
            found.remarks.append(
                f"R{depth}-R4 and R{depth}-FF4 are equal to every digit: with one iteration and one recipe R4 and FF4 are "
                f"the same net."
            )
    found.paper = "0.843 against 0.819"
    if not pairs.keys() >= paper.CLAIM_5.keys():
        found.remarks.append(f"No verdict: the pairs {' and '.join(paper.CLAIM_5)} are not both there.")
        return
    same, other = (pairs[name]["penultimate biased"] for name in paper.CLAIM_5)
    gap, deviation = same["mean"] - other["mean"], max(entry["deviation"] or 0.0 for entry in (same, other))
    of = f"{same['n']} pairs of {math.isqrt(same['n'])} + {math.isqrt(other['n'])} nets"
    if same["n"] < 2:
        holds = "one pair is too few for a verdict"
    else:
        holds = (
            "the paper's order shows"
            if gap > deviation
            else "the paper's order does not show beyond the spread over seeds"
        )
    prefix = "" if scale == "full" else "laptop: "
    found.remarks.append(f"{prefix}FF8-R8 {same['mean']:.3f}, FF8-FF4 {other['mean']:.3f}: {holds} ({of}).")
    found.ours = found.ours or f"{prefix}{same['mean']:.3f} against {other['mean']:.3f} ({of}); {holds}"


def claim_6(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    rows = [
        [name, *(str(number) for number in entry.values())] for name, entry in values["convolutions_needed"].items()
    ]
    headings = [
        "mazes",
        "corner to corner, 1 pixel per unit",
        "the same, 2 pixels",
        "centre to edge, 2 pixels",
        "corner to corner, 2 pixels, dilation 2",
    ]
    found.grids.append(
        Grid(headings, rows, "Convolutions needed. The paper's 8 and 12 hold at 1 pixel per unit; the images have 2.")
    )
    radii = [[str(row[key]) for key in ("depth", "dilation", "arithmetic", "gradient")] for row in values["radius"]]
    found.grids.append(Grid(["depth", "dilation", "radius by arithmetic", "by gradient"], radii))
    deeper = ", ".join(f"{name} from depth {depth}" for name, depth in values["first_depth_that_sees_all"].items())
    found.remarks.append(
        f"Every pixel sees the whole maze of the 2-pixel images: {deeper}. Gains beyond those depths are what to look for."
    )
    needed = values["convolutions_needed"]
    found.ours = (
        f"{needed['small']['one_pixel_corner_to_corner']} and {needed['large']['one_pixel_corner_to_corner']} at 1 pixel per unit, "
        f"{needed['small']['two_pixels_corner_to_corner']} and {needed['large']['two_pixels_corner_to_corner']} on the images used"
    )
    found.paper = "8 and 12"


def claim_7(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    rows = []
    for name in ("small", "medium", "large"):
        entry = values[name]
        shares = [", ".join(f"{share:.3f}" for share in entry[key]) for key in ("surplus_percent", "members_percent")]
        rows.append([name, *shares])
    note = f"Of {values['count']:,} training mazes, seeds {', '.join(map(str, values['seeds']))}."
    found.grids.append(Grid(["mazes", "% that occurred before", "% that have a twin"], rows, note))
    found.ours, found.paper = f"small {max(values['small']['surplus_percent']):.3f} % surplus at most", "< 0.5 %"


def claim_8(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    rows = [
        [name, str(values[name]["without_filter"]), str(values[name]["as_drawn"])]
        for name in ("small", "medium", "large")
    ]
    note = f"Of {values['test']:,} test mazes, those among {values['train']:,} training mazes. The authors' code has no filter."
    found.grids.append(Grid(["mazes", "drawn freely", "drawn here"], rows, note))
    found.ours = f"{values['small']['without_filter']} small ones overlap without a filter, {values['small']['as_drawn']} with ours"
    found.paper = "0"


def claim_11(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    rows = []
    for row in values["rows"]:
        rows.append(
            [row["net"], str(row["channels"]), str(row["ever_active"]), f"{100 * row['share_active_twice']:.1f}"]
        )
    found.grids.append(
        Grid(
            ["net", "filters", "ever active", "% of those active on several iterations"],
            rows,
            "" if scale == "full" else LAPTOP,
        )
    )
    shares = [100 * row["share_active_twice"] for row in values["rows"]]
    found.ours = (
        found.ours
        or ("" if scale == "full" else "laptop: ")
        + ", ".join(f"{share:.1f} %" for share in shares)
        + " of the active filters"
    )
    found.paper = "every filter"


def halting(found: Section, values: dict[str, Any], evidence: Evidence, scale: str) -> None:
    """Added to Figure 5."""
    picture = f"F5.iterations.{scale}"
    pictures.test_time_iterations(evidence.pictures / picture, values["nets"])
    found.pictures.append(picture)
    rows = []
    for net in values["nets"]:
        modes = [
            f"{net['accuracy'][mode]:.2f} ({net['iterations'][mode]:.1f})"
            for mode in ("default", "agreement", "max_confidence")
        ]
        rows.append([str(net["cells"]), str(net["depth"]), str(net["seed"]), *modes])
    images = max(net["images"] for net in values["nets"])
    note = (
        f"% solved (iterations taken on average) of the recurrent nets, on the first {images:,} test mazes; the tables above "
        f"have all of them."
    )
    found.grids.append(Grid(["cells", "depth", "seed", "default", "agreement", "maximum confidence"], rows, note))


BUILDERS = {
    "T3": probes,
    "T4": _sizes(paper.TABLE_4),
    "T5": _sizes(paper.TABLE_5),
    "T6": probes,
    "T7": probes,
    "F1": figure_1,
    "F3": figure_3,
    "F4": figure_4,
    "C1": claim_1,
    "C2": claim_2,
    "C3": claim_3,
    "C5": claim_5,
    "C6": claim_6,
    "C7": claim_7,
    "C8": claim_8,
    "C11": claim_11,
}
BUILDERS |= dict.fromkeys(("F6", "F9", "F10", "F11"), neurons)
BUILDERS |= dict.fromkeys(("F7", "F8", "F12", "F13"), visualisation)
