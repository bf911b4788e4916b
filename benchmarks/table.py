"""Print the results in benchmarks/results as Markdown tables, or put them into a document.

    python benchmarks/table.py [--results FOLDER] [--into docs/benchmarks.md]

In a document the tables go between the lines `<!-- NAME -->` and `<!-- /NAME -->`, so that no number
is typed by hand. Names: machine, goals, step, training, harvest,
trial.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import machine

Results = dict[str, Any]
MINE = "ours trial"
MISSING = "not measured"


def number(found: dict[str, Any] | None, form: str = "{:.1f}", unit: str = "") -> str:
    """Return a median with its range; what has no quiet sample is said to have none."""
    if not found or found["median"] is None:
        return MISSING
    low, median, high = (form.format(found[key]) for key in ("low", "median", "high"))
    return f"{median}{unit} ({low} to {high})"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of_machine(results: dict[str, Results]) -> str:
    rows = []
    for name, one in results.items():
        if "machine" in one:
            m = one["machine"]
            where = f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']:g} GiB, Python {m['python']}"
            rows.append([name, one["date"], where, ", ".join(_versions(one))])
    return table(["result", "date", "machine", "versions"], rows)


def _versions(one: Results) -> list[str]:
    found: dict[str, str] = {}
    for cell in one.get("cells", []) if isinstance(one.get("cells"), list) else []:
        for versions in cell["versions"].values():
            found |= versions
    if isinstance(one.get("versions"), dict):
        found |= one["versions"]
    for case in one.get("cases", {}).values() if isinstance(one.get("cases"), dict) else []:
        for versions in case.get("versions", {}).values():
            found |= versions
    return [f"{name} {version}" for name, version in sorted(found.items())]


def title(cell: Results) -> str:
    return f"{cell['kind']} {cell['d_in']} x {cell['d_sae']}, {cell['activations']}"


def of_step(results: dict[str, Results]) -> str:
    parts = []
    for cell in results["sae_step"]["cells"]:
        rows = []
        for name, speed in cell["tokens_per_second"].items():
            if name.startswith("floor "):
                continue
            memory = (cell["memory"].get(name) or {}).get("share")
            rows.append(
                [
                    name,
                    number(speed, "{:,.0f}"),
                    ""
                    if name.startswith(("ours", "floor"))
                    else number(cell["times_faster"].get(MINE, {}).get(name), "{:.2f}", "x"),
                    "" if name == "floor" else number(cell["share_of_floor"].get(name), "{:.0%}"),
                    "" if memory is None else f"{memory:.0%}",
                ]
            )
        head = ["who", "tokens/s", "ours is faster by", "of the floor", "memory beyond state"]
        k, batch = cell["k"], cell["batch_tokens"]
        parts.append(f"**{title(cell)}**, k {k}, batch {batch:,}\n\n" + table(head, rows))
        parts += [_skipped(cell)] if cell["skipped"] else []
    return "\n\n".join(parts)


def _skipped(found: Results) -> str:
    return (
        "Skipped: " + "; ".join(f"{one['side']} ({one['why']})" for one in found["skipped"]) + "."
    )


def of_training(results: dict[str, Results]) -> str:
    one = results["whole_training"]
    settings, parts = one["settings"], []
    for kind, found in one["kinds"].items():
        rows = []
        for name, seconds in found["seconds"].items():
            last = found["curves"][name][-1]
            matched = found["sides"][name.split(" ")[0]].get("matched")
            rows.append(
                [
                    name,
                    f"{last['l0']:.1f}" + (" (not matched)" if matched is False else ""),
                    f"{last['explained_variance']:.4f}",
                    number(seconds),
                    number(found.get("times_faster", {}).get(name), "{:.2f}", "x"),
                    number(found.get("times_faster_to_common", {}).get(name), "{:.2f}", "x"),
                ]
            )
        head = ["who", "L0", "explained variance", "seconds", "ours is faster by"]
        head += [f"to explained variance {found['common_explained_variance']:.3f}"]
        size = f"{settings['source']} {settings['d_in']} x {settings['d_sae']}"
        about = f"**{kind}**, {size}, {settings['tokens']:,} tokens"
        parts.append(
            f"{about}\n\n" + table(head, [[c.replace(MISSING, "") for c in r] for r in rows])
        )
        parts += [_skipped(found)] if found["skipped"] else []
    return "\n\n".join(parts)


def of_trial(results: dict[str, Results]) -> str:
    parts = []
    for name, found in results["whole_trial"]["cases"].items():
        case = found["case"]
        rows = [
            [
                who,
                number(seconds),
                number(found["ours_over_peer"].get(who), "{:.2f}").replace(MISSING, ""),
            ]
            for who, seconds in found["seconds"].items()
        ]
        size = f"{case['d_in']} x {case['d_sae']}, {case['train_tokens']:,} tokens"
        parts.append(
            f"**{name}**, layer {case['layer']}, {size}; ours: {found['arms']} arms, {found['saes']} SAEs\n\n"
            + table(["who", "seconds", "our trial takes, of its time"], rows)
        )
        shares = ", ".join(f"{part} {share:.0%}" for part, share in found["shares"].items())
        parts.append(f"Of our wall time: {shares}.")
        parts += [_skipped(found)] if found["skipped"] else []
    return "\n\n".join(parts)


def of_harvest(results: dict[str, Results]) -> str:
    parts = []
    for name, found in results["harvest"]["models"].items():
        rows = [
            [
                who,
                number(speed, "{:,.0f}"),
                *(
                    number(found["ratios"].get(f"{mine} / {who}"), "{:.2f}", "x").replace(
                        MISSING, ""
                    )
                    for mine in ("ours fp32", "ours bf16")
                ),
            ]
            for who, speed in found["tokens_per_second"].items()
        ]
        head = ["who", "tokens/s", "ours fp32 is faster by", "ours bf16 is faster by"]
        parts.append(f"**{name}**\n\n" + table(head, rows))
    return "\n\n".join(parts)


# kind of peer, as installed or tuned, and by how much a step must be faster
STEP_GOALS = (
    ("sae-lens installed", 8.0),
    ("dictionary-learning installed", 7.0),
    ("sparsify installed", 3.5),
    ("sae-lens tuned", 4.0),
    ("dictionary-learning tuned", 4.0),
    ("sparsify tuned", 1.8),
)
SHAPES = ((512, 4096), (768, 12288))


def of_goals(results: dict[str, Results]) -> str:
    rows = []
    if "sae_step" in results:
        rows += _step_goals(results["sae_step"])
    if "whole_training" in results:
        rows += _training_goals(results["whole_training"])
    if "harvest" in results:
        rows += _harvest_goals(results["harvest"])
    if "whole_trial" in results:
        for name, found in results["whole_trial"]["cases"].items():
            for who, ratio in found["ours_over_peer"].items():
                goal = f"trial of {found['arms']} arms against one SAE by {who}, {name}"
                rows.append(_judged(goal, ratio, 1.0, below=True))
    return table(["what", "goal", "measured", "reached"], rows)


def _judged(what: str, found: dict[str, Any] | None, goal: float, below: bool = False) -> list[str]:
    sign = "at most" if below else "at least"
    if not found or found["median"] is None:
        return [what, f"{sign} {goal:g}x", MISSING, ""]
    reached = found["median"] <= goal if below else found["median"] >= goal
    return [what, f"{sign} {goal:g}x", number(found, "{:.2f}", "x"), "yes" if reached else "no"]


def _step_goals(one: Results) -> list[list[str]]:
    rows = []
    for cell in one["cells"]:
        if (cell["d_in"], cell["d_sae"]) not in SHAPES:
            continue
        ratios = cell["times_faster"]
        for peer, goal in STEP_GOALS:
            if peer in ratios.get(MINE, {}):
                rows.append(
                    _judged(f"{title(cell)}: step against {peer}", ratios[MINE][peer], goal)
                )
        plain = ratios.get("ours plain", {}).get("sparsify tuned")
        if plain:
            rows.append(_judged(f"{title(cell)}: plain step against sparsify tuned", plain, 1.2))
        share = cell["share_of_floor"].get(MINE)
        if share and share["median"] is not None:
            reached = "yes" if share["median"] >= 0.6 else "no"
            what = f"{title(cell)}: share of the encoder product"
            rows.append([what, "at least 60%", number(share, "{:.0%}"), reached])
        memory = cell["memory"].get(MINE)
        if memory and memory["share"] is not None:
            reached = "yes" if memory["share"] <= 0.2 else "no"
            what = f"{title(cell)}: memory beyond weights, moments and a batch"
            rows.append([what, "at most 20%", f"{memory['share']:.0%}", reached])
    return rows


def _training_goals(one: Results) -> list[list[str]]:
    rows = []
    for kind, found in one["kinds"].items():
        seconds = found["seconds"]
        for condition in ("installed", "tuned"):
            peers = [
                name
                for name in found.get("times_faster", {})
                if name.endswith(condition)
                and seconds[name]["median"] is not None
                and not name.startswith("sparsify")
            ]
            if kind in ("relu", "jumprelu") and peers:
                fastest = min(peers, key=lambda name: seconds[name]["median"])
                what = f"{kind}: whole training against {fastest}, the faster of the two"
                rows.append(_judged(what, found["times_faster"][fastest], 2.5))
    return rows


def _harvest_goals(one: Results) -> list[list[str]]:
    found = one.get("models", {}).get("gpt2-shaped")
    if found is None:
        return []
    ratios, rows = found["ratios"], []
    for condition in ("installed", "tuned"):
        ratio = ratios.get(f"ours fp32 / SAELens store {condition}")
        if ratio:
            what = f"harvest in fp32 against SAELens' store {condition}, gpt2-shaped"
            rows.append(_judged(what, ratio, 2.5))
    bare = ratios.get("ours fp32 / bare fp32")
    if bare:
        what = "speed of harvest against a bare truncated forward, gpt2-shaped"
        rows.append(_judged(what, bare, round(1 / 1.15, 2)))
    return rows


TABLES: dict[str, tuple[str | None, Callable[[dict[str, Results]], str]]] = {
    "machine": (None, of_machine),
    "goals": (None, of_goals),
    "step": ("sae_step", of_step),
    "training": ("whole_training", of_training),
    "harvest": ("harvest", of_harvest),
    "trial": ("whole_trial", of_trial),
}


def read(folder: Path) -> dict[str, Results]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(one, dict) and one.get("benchmark"):
            found[path.stem] = one
    return found


def into(document: Path, tables: dict[str, str]) -> None:
    """Put each table between its two marks."""
    text = document.read_text(encoding="utf-8")
    for name, one in tables.items():
        mark = re.escape(name)
        marks = re.compile(f"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        text = marks.sub(lambda found, one=one: f"{found[1]}\n{one}\n\n{found[2]}", text)  # type: ignore[misc]
    document.write_text(text, encoding="utf-8")
    print(f"wrote {document}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--into", type=Path, help="document whose tables are replaced")
    arguments = parser.parse_args()
    results = read(arguments.results)
    tables = {
        name: make(results)
        for name, (needed, make) in TABLES.items()
        if needed is None or needed in results
    }
    if arguments.into:
        into(arguments.into, tables)
        return
    for name, one in tables.items():
        print(f"## {name}\n\n{one}\n")


if __name__ == "__main__":
    main()
