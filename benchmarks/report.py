"""`python -m benchmarks report`: records to the README's win/lose table, pictures and a page; uses summary, plots, page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import records, summary
from benchmarks.environment import ROOT
from benchmarks.records import Record
from benchmarks.summary import NOT_MEASURED, Row, Versus

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

# beyond this a difference is called one: about the spread of a median on a shared machine
TIE = 0.05

HEADER = (
    "| | forward, against eager | against the best other | training step, against eager | against the best other "
    '| step memory with `checkpoint="sqrt"` (its time) | error, rdk / eager |'
)


def ratio_text(versus: Versus | None, missing: str = NOT_MEASURED, show_opponent: bool = False) -> str:
    """**3.1×** where rdk wins, 0.80× (slower) where it loses, 1.02× where neither does."""
    if versus is None:
        return missing
    text = f"{versus.ratio:.2f}×" if versus.ratio < 9.95 else f"{versus.ratio:.0f}×"
    if versus.ratio > 1 + TIE:
        text = f"**{text}**"
    elif versus.ratio < 1 - TIE:
        text += " (slower)"
    return f"{text} {versus.theirs}" if show_opponent else text


def cells(row: Row) -> list[str]:
    """The texts of one row, without the case's name."""
    rollout = row.case.workload == "W4r"
    shown = []
    for name in ("forward", "training"):
        if name == "training" and rollout:
            shown += ["–", "–"]
        else:
            missing = row.why.get(name, NOT_MEASURED)
            shown.append(ratio_text(row.eager.get(name), missing) + _by_name(row, name))
            shown.append(ratio_text(row.best.get(name), missing, show_opponent=True))
    if rollout:
        shown.append("–")
    elif row.memory is None or row.scheduled is None:
        shown.append(row.why.get("training", NOT_MEASURED))
    else:
        ratio = row.memory.ratio
        shown.append(
            f"{f'{ratio:.1f}× less' if ratio >= 1 else f'{1 / ratio:.1f}× more'} ({ratio_text(row.scheduled)})"
        )
    errors = row.errors.get("training") or row.errors.get("forward")
    shown.append(f"{errors[0]:.0e} / {errors[1]:.0e}" if errors else NOT_MEASURED)
    return shown


def _by_name(row: Row, pass_name: str) -> str:
    """; `cpu` 2.62× where a backend asked for by name wins and what dispatch chose does not."""
    chosen, named = row.eager.get(pass_name), row.named.get(pass_name)
    if chosen is None or named is None or chosen.ratio > 1 + TIE or named.ratio <= 1 + TIE:
        return ""
    return f"; `{named.ours.removeprefix('rdk ')}` {named.ratio:.2f}×"


def name_of(row: Row) -> str:
    """W4 n=10, C128 32x32, batch 4 of 50."""
    batch = f"batch {row.case.batch}"
    cut = sorted(row.batches - {row.case.batch})
    if cut:
        batch = f"batch {cut[0]}" + (f"–{cut[-1]}" if len(cut) > 1 else "") + f" of {row.case.batch}"
    return f"{row.case.label}, C{row.case.channels} {row.case.height}x{row.case.width}, {batch}"


def markdown(found: Sequence[Record]) -> str:
    """The table of every device and precision with records, and an empty one for the GPU where none has any."""
    pairs = summary.devices([record for record in found if record["suite"] == "workloads"])
    parts = []
    if not any(_type_of(found, device) == "cuda" for device, _ in pairs):
        parts.append(_table("An NVIDIA GPU, bf16: nobody has measured it yet", summary.rows([], "", "")))
    for device, precision in pairs:
        parts.append(_table(title(found, device, precision), summary.rows(found, device, precision)))
    note = (
        "Ratios of medians taken in turns in one process after a check against float64; above 1 rdk is better, in bold by "
        f'more than {TIE:.0%}. Eager is the faster of its two memory layouts. rdk is what `backend="auto"` chose; where only a '
        "backend asked for by name wins, it stands behind. Left out on a CPU: one image takes longer than 2 s. "
        "[How it is measured](docs/benchmarks.md)."
    )
    return "\n\n".join([*parts, note])


def _type_of(found: Sequence[Record], device: str) -> str:
    return next(str(r["measured_on"]["device_type"]) for r in found if r["measured_on"]["device"] == device)


def title(found: Sequence[Record], device: str, precision: str) -> str:
    newest = max(
        (r for r in found if r["measured_on"]["device"] == device and r.get("precision") == precision),
        key=lambda r: r["date"],
    )
    about = newest["measured_on"]
    hardware = (
        about["hardware"]
        if about["device_type"] == "cuda"
        else f"{device} ({about['hardware']}, {about['threads']} thread)"
    )
    if about["device_type"] == "cpu" and about["threads"] > 1:
        hardware = f"{device} ({about['hardware']}, {about['threads']} threads)"
    driver = f", driver {about['driver']}" if about["driver"] else ""
    commit = f"{about['commit']}{' with changes' if about['dirty'] else ''}"
    return f"{hardware}, {precision}: torch {about['torch']}{driver}, commit {commit}, {newest['date'][:10]}"


def _table(title: str, rows: Sequence[Row]) -> str:
    columns = HEADER.count("|") - 1
    lines = [f"**{title}**", "", HEADER, "|" + "---|" * columns]
    lines += [f"| {name_of(row)} | {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines)


def rewrite(readme: Path, text: str) -> bool:
    """Puts the text between the markers of the README; returns whether it changed. Raises ValueError without the markers."""
    before = readme.read_text(encoding="utf-8")
    start, end = before.find(BEGIN), before.find(END)
    if start < 0 or end < start:
        raise ValueError(f"{readme} needs the lines {BEGIN} and {END}, in this order; the table goes between them.")
    after = f"{before[: start + len(BEGIN)]}\n{text}\n{before[end:]}"
    if after != before:
        readme.write_text(after, encoding="utf-8")
    return after != before


def run(
    folder: Path = records.FOLDER,
    readme: Path | None = ROOT / "README.md",
    pictures: bool = True,
    say: Callable[[str], None] = print,
) -> int:
    """Writes the README's part, pictures/ and report.html beside the records."""
    found = records.read_all(folder)
    say(f"{len(found)} records in {folder}")
    drawn = _drawn(found, folder, say) if pictures else []
    text = markdown(found)
    shown = [path for path in drawn if path.name.startswith(("speedup", "iterations"))]
    if shown and readme is not None:
        root = readme.resolve().parent
        text += "\n\n" + "\n".join(f"![{_alternative(path)}]({_relative(path, root)})" for path in shown)
    if readme is not None and readme.is_file():
        say(f"{readme}: {'rewritten' if rewrite(readme, text) else 'is up to date'}")
    elif readme is not None:
        say(f"{readme} is not there; its part would be:\n{text}")
    return 0


def _alternative(path: Path) -> str:
    kind = (
        "Speed-up per workload"
        if path.name.startswith("speedup")
        else "Time and memory of a training step against iterations"
    )
    return f"{kind}: {path.stem.split('_', 1)[1].replace('_', ' ')}"


def _relative(path: Path, root: Path) -> str:
    path = path.resolve().with_suffix(".svg")
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _drawn(found: Sequence[Record], folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Draws the pictures and writes the page. Raises ValueError where a library for that is missing."""
    try:
        from benchmarks import page, plots
    except ImportError as error:
        missing = f"pictures and page need {error.name}: pip install 'rdk[benchmarks]', or give --no-pictures."
        raise ValueError(missing) from None
    drawn = plots.draw_all(found, folder / "pictures")
    for path in drawn:
        say(f"drew {path}")
    say(f"wrote {page.write(found, drawn, folder / 'report.html')}")
    return drawn
