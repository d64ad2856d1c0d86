"""Draws docs/architecture.svg, the picture of the package, from the imports in its source.

    python scripts/architecture.py

tests/unit/test_structure.py checks that the imports keep to FLOORS and the picture is current.
"""

from __future__ import annotations

import ast
import graphlib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cpo_ds"
PICTURE = ROOT / "docs" / "architecture.svg"

# Rooms are the folders and single modules of cpo_ds/, each with a word for what it holds. A room
# imports only rooms on lower floors, or to its left on its own floor. The lowest floor is first.
FLOORS: list[dict[str, str]] = [
    {
        "errors": "messages, exit codes",
        "schema": "rows, pairs, batches",
        "shipped": "files in a wheel",
        "settings": "their sections",
        "config": "typed settings",
        "recipe": "YAML and options",
        "devices": "CPU or GPU",
    },
    {"storage": "files and folders", "ranks": "many processes"},
    {"data": "rows to batches", "model": "policy, log-probs", "losses": "formulas"},
    {"engine": "DeepSpeed"},
    {"checkpoint": "save and resume", "planner": "memory, time", "scoring": "COMET, chrF"},
    {"export": "Hugging Face folders", "translate": "sources to translations"},
    {"run": "training"},
    {"doctor": "checks of hosts"},
    {
        "report": "curves of runs",
        "prepare": "candidates to pairs",
        "evaluate": "what was gained",
        "start": "how a run is begun",
    },
    {"rounds": "iterated training"},
    {"train": "the script", "cli": "cpo-ds"},
]
ROOMS = [room for floor in FLOORS for room in floor]

Corner = tuple[float, float]  # x and y in pixels

WIDTH, BOX_WIDTH, BOX_HEIGHT, FLOOR_HEIGHT = 1080, 164, 44, 84
STYLE = (
    "text{font-family:sans-serif;text-anchor:middle;fill:#1f2933}"
    ".room{font-size:15px;font-weight:600}.word{font-size:11px;fill:#52606d}"
    "rect{rx:6px;fill:#f5f7fa;stroke:#7b8794}path{fill:none;stroke:#9aa5b1;stroke-width:1.3}"
    "#tip{fill:#9aa5b1;stroke:none}"
)


def module_name(path: Path) -> str:
    """Returns the module of a file: `data.rows` of `cpo_ds/data/rows.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def path_of(module: str) -> Path:
    """Returns a module's file: the reverse of `module_name`."""
    folder = PACKAGE.joinpath(*module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def imported_names(source: str, module: str = "") -> set[str]:
    """Returns the full names of everything that `source` imports, in functions too.

    `module` is the name of its module in cpo_ds, from which relative imports are resolved.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = f"cpo_ds.{module}".split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif module == "cli" and isinstance(node, ast.Constant):
            # cli.py names the modules of commands as strings, and imports the given one alone.
            names |= {str(node.value)} if str(node.value).startswith("cpo_ds.") else set()
    return names


def package_imports() -> dict[str, set[str]]:
    """Returns all modules of the package, each with the modules of the package that it imports."""
    modules = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        imports[module] = set()
        for name in imported_names(path.read_text(encoding="utf-8"), module):
            target = name.removeprefix("cpo_ds.")
            while target not in modules and "." in target:  # a function or class of that module
                target = target.rpartition(".")[0]
            if name.startswith("cpo_ds.") and target in modules and target != module:
                imports[module].add(target)
    return imports


def room_imports(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Turns imports between modules into imports between rooms, without those inside a room."""
    rooms: dict[str, set[str]] = {}
    for module, targets in imports.items():
        room = module.partition(".")[0]
        if room:
            others = {target.partition(".")[0] for target in targets} - {room}
            rooms[room] = rooms.get(room, set()) | others
    return rooms


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Returns modules that import each other in a circle; an empty list if there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def direct_imports(rooms: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Returns the imports to draw, as (importer, imported).

    An import that follows from others is not drawn: a -> c, given a -> b and b -> c. Neither are
    imports of the lowest floor: nearly every room has them, and their arrows would hide the rest.
    """

    def reachable(room: str) -> set[str]:
        return rooms[room].union(*(reachable(target) for target in rooms[room]))

    return [
        (room, target)
        for room in ROOMS
        for target in sorted(rooms[room])
        if target not in FLOORS[0]
        and not any(target in reachable(other) for other in rooms[room] - {target})
    ]


def draw(rooms: dict[str, set[str]]) -> str:
    """Returns the picture as SVG: a row of boxes for each floor, an arrow for each import."""
    # A box with two lines of text for each room; the lowest floor is at the bottom.
    height = FLOOR_HEIGHT * len(FLOORS)
    corners: dict[str, Corner] = {}
    boxes = []
    for number, floor in enumerate(FLOORS):
        top = height - FLOOR_HEIGHT * (number + 1) + (FLOOR_HEIGHT - BOX_HEIGHT) / 2
        for column, (room, word) in enumerate(floor.items()):
            left = WIDTH * (column + 0.5) / len(floor) - BOX_WIDTH / 2
            corners[room] = left, top
            middle = left + BOX_WIDTH / 2
            boxes += [
                f'<rect x="{left:g}" y="{top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}"/>',
                f'<text class="room" x="{middle:g}" y="{top + 19:g}">{escape(room)}</text>',
                f'<text class="word" x="{middle:g}" y="{top + 35:g}">{escape(word)}</text>',
            ]

    # Arrows come first in the file, so that boxes hide their ends and not the other way round.
    arrows = [
        arrow(corners[room], corners[target], list(corners.values()))
        for room, target in direct_imports(rooms)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" style="fill:white;stroke:none"/>',
            '<marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path id="tip" d="M0,0L8,4L0,8z"/></marker>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def arrow(importer: Corner, imported: Corner, boxes: list[Corner]) -> str:
    """Returns the SVG of an arrow between two of the boxes, given by their upper left corners.

    It goes from the bottom of one to the top of the other, or from side to side on one floor.
    """
    (x1, y1), (x2, y2) = importer, imported
    if y1 == y2:
        line = f"M{x1:g},{y1 + BOX_HEIGHT / 2:g} L{x2 + BOX_WIDTH:g},{y2 + BOX_HEIGHT / 2:g}"
    else:
        start, end = x1 + BOX_WIDTH / 2, x2 + BOX_WIDTH / 2
        line = f"M{start:g},{y1 + BOX_HEIGHT:g} "
        if x1 == x2 and any(x == x1 and y1 < y < y2 for x, y in boxes):
            bow = start - BOX_WIDTH  # straight down it would hide behind a box, so it goes around
            line += f"C{bow:g},{y1 + BOX_HEIGHT + 20:g} {bow:g},{y2 - 20:g} {end:g},{y2:g}"
        else:
            line += f"L{end:g},{y2:g}"
    return f'<path d="{line}" marker-end="url(#end)"/>'


def main() -> None:
    """Writes the picture."""
    PICTURE.write_text(draw(room_imports(package_imports())), encoding="utf-8")


if __name__ == "__main__":
    main()
