"""Builds the glass boxes that the course ships, or reports how true their truth is.

python tools/build_glassboxes.py                      build all into helpers/data/glassbox (about 20 s)
python tools/build_glassboxes.py --check              build again and compare with the shipped files
python tools/build_glassboxes.py --report             the table box x property, measured on the shipped files
python tools/build_glassboxes.py --report --seeds 5   the same on five new builds of each kind, the worst figure of each
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.glassbox import DATA, KINDS  # noqa: E402
from tools.glassbox_builder.calibrate import build  # noqa: E402
from tools.glassbox_builder.kinds import RECIPES, mystery_recipe  # noqa: E402
from tools.glassbox_builder.noise import generator  # noqa: E402
from tools.glassbox_builder.truth import truth_of  # noqa: E402
from tools.glassbox_builder.write import alike, box_files, shared_files, write  # noqa: E402

SEED = 0  # of the four named boxes
MYSTERIES = {f"mystery-{i}": (KINDS[i % len(KINDS)], 100 + i) for i in range(2 * len(KINDS))}


def made(name: str) -> dict[str, bytes]:
    """The files of one shipped box."""
    kind, seed = MYSTERIES.get(name, (name, SEED))
    recipe = RECIPES[kind] if name in KINDS else mystery_recipe(kind, generator(seed, "recipe"))
    assembly, weights, direction = build(recipe, seed)
    return box_files(name, weights, truth_of(kind, assembly, direction))


def all_files() -> dict[str, bytes]:
    """Every shipped file of the boxes, by name."""
    files = shared_files()
    for name in (*KINDS, *MYSTERIES):
        print(f"building {name}", flush=True)
        files |= made(name)
    return files


def check() -> int:
    """Compares a new build with the shipped files; 1 if one differs by more than another machine's rounding does."""
    new = all_files()
    other = [name for name, content in new.items() if (DATA / name).read_bytes() != content]
    different = [name for name in other if not alike(name, new[name], (DATA / name).read_bytes())]
    if different:
        print(f"different: {', '.join(different)}")
    elif other:
        print(f"the same circuits; weights differ by rounding in {len(other)} files")
    else:
        print("all files are as they were shipped, byte for byte")
    return int(bool(different))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--seeds", type=int, default=0, help="report on so many new builds of each kind instead")
    options = parser.parse_args()
    if options.check:
        return check()
    if options.report:
        from tools.glassbox_builder.report import report

        return report(options.seeds)
    write(DATA, all_files())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
