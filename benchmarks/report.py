"""`python -m benchmarks report`: records to the README's tables, pictures and a page; uses summary, plots, page; also for gpu."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import records, standing, summary
from benchmarks.environment import ROOT
from benchmarks.records import Record, Setting
from benchmarks.summary import NOT_MEASURED, TIE, Row, Versus
from benchmarks.workloads import CPU_SHAPES, LINEAR_SHAPES, MAZE_SHAPES, TINY_SHAPES, Case

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

HEADER = (
    "| | forward, against eager | by least times | against the best other | training step, against eager | by least times "
    '| against the best other | step memory with `checkpoint="sqrt"` (its time) | error, rdk / eager |'
)

SHAPES_HEADER = (
    "| | forward, against eager | by least times | against the best other | training step, against eager | by least times "
    "| against the best other |"
)

# what the tables of shapes are called, the suite that measures them, and their rows
SHAPES: tuple[tuple[str, str, tuple[Case, ...]], ...] = (
    ("CPU shapes", "shapes", (*CPU_SHAPES, *MAZE_SHAPES)),
    ("Tiny calls", "shapes", TINY_SHAPES),
    ("RecurrentLinear", "linear", LINEAR_SHAPES),
)


def ratio_text(versus: Versus | None, missing: str = NOT_MEASURED, show_opponent: bool = False) -> str:
    """**3.1×** where rdk wins, 0.80× (slower) where it loses, 1.02× where neither does."""
    if versus is None:
        return missing
    text = f"{versus.ratio:.2f}×" if versus.ratio < 9.95 else f"{versus.ratio:.0f}×"
    if versus.wins:
        text = f"**{text}**"
    elif versus.loses:
        text += " (slower)"
    return f"{text} {versus.theirs}" if show_opponent else text


def cells(row: Row) -> list[str]:
    """The texts of one row, without the case's name."""
    rollout = row.case.workload == "W4r"
    shown = []
    for name in ("forward", "training"):
        if name == "training" and rollout:
            shown += ["–", "–", "–"]
        else:
            missing = row.why.get(name, NOT_MEASURED)
            shown.append(ratio_text(row.eager.get(name), missing) + _by_name(row, name))
            shown.append(ratio_text(row.least.get(name), missing))
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
    if chosen is None or named is None or chosen.wins or not named.wins:
        return ""
    return f"; `{named.ours.removeprefix('rdk ')}` {named.ratio:.2f}×"


def name_of(row: Row) -> str:
    """W4 n=10, C128 32x32, batch 4 of 50."""
    return f"{row.case.label}, C{row.case.channels} {row.case.height}x{row.case.width}, {row.batch}"


def shape_tables(found: Sequence[Record]) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """Title and lines of the tables of shapes in each setting."""
    for name, suite, cases in SHAPES:
        for setting in summary.settings(found, suite):
            rows = summary.rows_of(found, setting, suite, cases)
            if any(row.eager or row.why for row in rows):
                yield f"{name}, whole batches, {title(found, setting, suite, cases)}", shape_lines(rows)


def workload_lines(found: Sequence[Record], setting: Setting | None) -> list[tuple[str, list[str]]]:
    """Name and texts of every headline case."""
    return [(name_of(row), cells(row)) for row in summary.rows(found, setting)]


def shape_lines(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Name and texts of every shape, and under them the geometric means over the shapes measured."""
    columns = [(name, figure) for name in ("forward", "training") for figure in ("eager", "least", "best")]

    def text(row: Row, name: str, figure: str) -> str:
        versus = getattr(row, figure).get(name)
        shown = ratio_text(versus, row.why.get(name, NOT_MEASURED), show_opponent=figure == "best")
        return shown + (_by_name(row, name) if figure == "eager" else "")

    def mean(name: str, figure: str) -> str:
        ratios = [getattr(row, figure)[name].ratio for row in rows if name in getattr(row, figure)]
        return ratio_text(Versus(summary.geometric_mean(ratios)) if ratios else None)

    lines = [(row.case.description, [text(row, *column) for column in columns]) for row in rows]
    measured = sum(bool(row.eager) for row in rows)
    return [
        *lines,
        (f"geometric mean of {measured} shape{'s' if measured != 1 else ''}", [mean(*column) for column in columns]),
    ]


def tables(found: Sequence[Record]) -> Iterator[tuple[str, str, list[tuple[str, list[str]]]]]:
    """Title, header and lines: of every setting with records, and an empty table for the GPU where none has any."""
    settings = summary.settings(found, "workloads")
    if not any(setting.device_type == "cuda" for setting in settings):
        yield "An NVIDIA GPU, bf16: nobody has measured it yet", HEADER, workload_lines([], None)
    for setting in settings:
        yield title(found, setting, "workloads", summary.headline()), HEADER, workload_lines(found, setting)
    for name, lines in shape_tables(found):
        yield name, SHAPES_HEADER, lines


def markdown(found: Sequence[Record]) -> str:
    """The tables and what they mean."""
    note = (
        "Ratios of medians taken in turns in one process after a check against float64; above 1 rdk is better, in bold by "
        f"more than {TIE:.0%} and more than twice the standard error of the two medians. Eager is the faster of its two memory "
        'layouts, and so is rdk for tiny calls. rdk is what `backend="auto"` chose, or the best backend where no '
        "measurements let it choose; where only a backend asked for by name wins, it stands behind. Left out on a CPU: one "
        "image takes longer than 2 s. [How it is measured](docs/benchmarks.md)."
    )
    return "\n\n".join([*(_table(*table) for table in tables(found)), note])


def title(found: Sequence[Record], setting: Setting, suite: str, cases: Sequence[Case]) -> str:
    """Hardware, versions and commits of the records that a table of these cases is made of, the commits with their days."""
    chosen = [r for r in found if r["suite"] == suite and records.setting_of(r) == setting]
    chosen = [r for r in chosen if records.uncut_case_of(r) in cases]
    chosen.sort(key=lambda r: str(r["date"]))

    def known(name: str) -> str:
        return " and ".join(dict.fromkeys(str(r["measured_on"][name]) for r in chosen if r["measured_on"][name]))

    hardware = known("hardware")
    if setting.threads is not None:
        threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
        hardware = f"{setting.device} ({hardware}, {threads})"
    driver = f", driver {known('driver')}" if known("driver") else ""
    days = {commit_of(r): r["date"][:10] for r in chosen}
    commits = ", ".join(f"{commit} of {day}" for commit, day in days.items())
    versions = f"torch {known('torch')}{driver}"
    return f"{hardware}, {setting.precision}: {versions}, commit{'s' if len(days) > 1 else ''} {commits}"


def commit_of(record: Record) -> str:
    about = record["measured_on"]
    return f"{about['commit']}{' with changes' if about['dirty'] else ''}"


def _table(title: str, header: str, lines: Sequence[tuple[str, list[str]]]) -> str:
    columns = header.count("|") - 1
    shown = [f"**{title}**", "", header, "|" + "---|" * columns]
    return "\n".join([*shown, *(f"| {name} | {' | '.join(texts)} |" for name, texts in lines)])


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
    """Writes the README's part, pictures/ and report.html beside the records. Raises ValueError where there are no records."""
    everything = records.read_all(folder)
    if not everything:
        raise ValueError(
            f"there are no records in {folder}: {'no *.jsonl has any' if folder.is_dir() else 'no such folder'}."
        )
    found = standing.standing(everything)
    say(f"{len(everything)} records in {folder}, {len(everything) - len(found)} of them superseded")
    drawn = _drawn(found, folder, say) if pictures else sorted((folder / "pictures").glob("*.png"))
    text = markdown(found)
    shown = [path for kind in ("speedup", "iterations") for path in drawn if path.name.startswith(kind)]
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
        missing = f"pictures and page need {error.name}: pip install -e '.[benchmarks]' in the checkout, or give --no-pictures."
        raise ValueError(missing) from None
    drawn = plots.draw_all(found, folder / "pictures")
    for path in drawn:
        say(f"drew {path}")
    say(f"wrote {page.write(found, drawn, folder / 'report.html')}")
    return drawn
