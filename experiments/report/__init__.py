"""Writes REPORT.md, report.html and the table of experiments/README.md from the committed records; called by cli.py."""

from __future__ import annotations

import base64
from pathlib import Path

from experiments import records
from experiments.configs import EXPERIMENTS
from experiments.data.atomic import write_atomic
from experiments.report import sections_analysis, sections_training
from experiments.report.section import Section, frame
from experiments.report.sections_training import Evidence

BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"
PAPER = {
    "T1": "93.99 ± 0.10, 96.04 ± 0.08, 87.42 ± 0.19 % against 94.69, 95.48, 87.71 %",
    "T2": "R 75.07, 90.41, 94.70, 95.19; FF 75.59, 90.58, 93.84, 95.00 %",
    "T3": "R 90.3, FF 90.6 % after module 4",
    "T6": "R 90.4, FF 90.8 % after module 4",
    "T7": "MLP 55.39, ConvNet 73.84 % after the last",
    "C4": "76.48 against 75.13 %",
    "C10": "several hours per net on a 2080 Ti",
    "T1-depths": "–",
    "F5-adam": "–",
}


def write(results: Path, readme: Path | None) -> list[Path]:
    """Writes the report into `results` and the table into `readme`; the paths written."""
    evidence = Evidence(frame(records.runs(results)), records.analyses(results), results / "pictures")
    sections = [_section(name, evidence) for name in EXPERIMENTS]
    strays = evidence.strays()
    written = [results / "REPORT.md", results / "report.html"]
    write_atomic(written[0], lambda file: file.write(_markdown(sections, strays).encode()))
    write_atomic(written[1], lambda file: file.write(_html(sections, strays, results / "pictures").encode()))
    if readme is not None:
        before, _, rest = readme.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        text = f"{before}{BEGIN}\n{_summary(sections)}\n{END}{after}"
        write_atomic(readme, lambda file: file.write(text.encode()))
        written.append(readme)
    return written


def _section(name: str, evidence: Evidence) -> Section:
    if name in sections_analysis.BUILDERS:
        found = sections_analysis.section(name, evidence)
    else:
        found = sections_training.section(name, evidence)
    if name == "F5":
        for scale in ("full", "laptop"):
            record = evidence.analyses.get(("F5", scale))
            if record is not None and record["values"]["nets"]:
                sections_analysis.halting(found, record["values"], evidence, scale)
    found.paper = found.paper or PAPER.get(name, "picture only" if name.startswith("F") else "see the table")
    return found


def _summary(sections: list[Section]) -> str:
    lines = ["| | what | command | ours | the paper's |", "|---|---|---|---|---|"]
    for section in sections:
        ours = section.ours or "not run"
        lines.append(f"| {section.name} | {section.title} | `run {section.name}` | {ours} | {section.paper} |")
    return "\n".join(lines)


def _markdown(sections: list[Section], strays: list[str]) -> str:
    lines = [
        "# Report",
        "",
        "Written by `python -m experiments report` from the records beside it; ± is one standard error, n the number of runs.",
        "Rows at laptop scale are other data and smaller nets: they show trends, and are not compared with the paper's numbers.",
        "",
        _summary(sections),
    ]
    if strays:
        lines += ["", f"{len(strays)} recorded runs belong to no preset and stand in no table: {'; '.join(strays)}."]
    for section in sections:
        lines += ["", f"## {section.name}: {section.title}", "", f"Paper: {section.claim}", "", f"`{section.command}`"]
        for picture in section.pictures:
            lines += ["", f"![{section.name}](pictures/{picture}.png)"]
        for grid in section.grids:
            lines += ["", f"| {' | '.join(grid.headings)} |", "|" + "---|" * len(grid.headings)]
            lines += [f"| {' | '.join(row)} |" for row in grid.rows]
            lines += ["", grid.note] if grid.note else []
        lines += ["", *(f"- {remark}" for remark in section.remarks)] if section.remarks else []
        lines += ["", f"**{section.missing}**"] if section.missing else []
        lines += ["", *(f"Source: {source}  " for source in section.sources)] if section.sources else []
    return "\n".join(lines) + "\n"


def _html(sections: list[Section], strays: list[str], pictures: Path) -> str:
    import jinja2

    def inlined(name: str) -> str:
        return "data:image/png;base64," + base64.b64encode((pictures / f"{name}.png").read_bytes()).decode()

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.jinja").render(sections=sections, strays=strays, inlined=inlined)
