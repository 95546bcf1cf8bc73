"""The plan as one page of text."""

from collections.abc import Sequence

from agemem_jax.planning.plan import advice


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first is set left, the others right."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    rows.insert(1, ["-" * w for w in widths])
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )


def amount(x: float | None, unit: str) -> str:
    """A number with a decimal prefix: 3.2 TB."""
    if x is None:
        return "-"
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= factor:
            return f"{x / factor:.3g} {prefix}{unit}"
    return f"{x:.3g} {unit}".rstrip()


def seconds(x: float | None) -> str:
    """A time in a unit that suits it."""
    if x is None:
        return "-"
    return f"{x:.3g} s" if x >= 1 else f"{x * 1e3:.3g} ms" if x >= 1e-3 else f"{x * 1e6:.3g} us"


def count(x: float) -> str:
    """A number of runs."""
    return f"{x:,.0f}" if x >= 100 or x == int(x) else f"{x:.1f}"


def write(plan: dict) -> str:
    """The page of a plan: {"title", "notes", "stages", "summary"}, all of it printed."""
    parts = [plan["title"], *plan.get("notes", [])]
    for stage in plan["stages"]:
        parts += ["", *_stage(stage)]
    phases = [phase for stage in plan["stages"] for phase in stage.get("phases", [])]
    parts += ["", *_summary(plan["summary"], phases)]
    return "\n".join(parts)


def _stage(stage: dict) -> list[str]:
    hbm = stage["hbm"]
    verdict = "fits" if stage["fits"] else "DOES NOT FIT"
    total = "?" if hbm["total"] is None else f"{hbm['total']:.2f}"
    compiled = f"compiled in {stage['compile_s']:.0f} s"
    parts = [f"== {stage['stage']}: {verdict}, {total} of {hbm['capacity']:.2f} GiB a chip; {compiled} =="]
    parts += [f"   To make it fit: {line}" for line in advice(stage)]
    if "refused" in stage:
        return [*parts, f"   The compiler: {stage['refused']}"]
    gib = lambda x: f"{x:.2f}"  # noqa: E731
    kinds = ("arguments", "outputs", "temporaries", "code", "donated")
    parts += ["HBM, GiB a chip:  " + ", ".join(f"{k} {gib(hbm[k])}" for k in kinds)]
    parts += ["  arguments: " + ", ".join(f"{k} {gib(v)}" for k, v in stage["arguments"].items() if v >= 0.005)]
    arrays = [f"{a['shape']} {gib(a['gib'])} ({a['scope']})" for a in stage["largest_arrays"][:4] if a["gib"] >= 0.005]
    parts += ["  largest arrays made: " + "; ".join(arrays)] if arrays else []
    parts += [
        "",
        table(
            "phase,FLOP,HBM bytes,compute,HBM,interconn.,binds,overlapped,predicted,serial,compiler".split(","),
            [
                (
                    p["phase"], amount(p["flops"], ""), amount(p["bytes"], "B"), seconds(p["compute_s"]),
                    seconds(p["hbm_s"]), seconds(p["interconnect_s"]), p["binds"], seconds(p["overlapped_s"]),
                    seconds(p["predicted_s"]), seconds(p["serial_s"]), seconds(p["compiler_s"]),
                )
                for p in stage["phases"]
            ],
        ),
    ]  # fmt: skip
    if stage["collectives"]:
        shown, rest = stage["collectives"][:16], stage["collectives"][16:]
        lines = [
            (
                c["phase"], c["kind"], c["axis"], str(c["devices"]), amount(c["bytes"], "B"), count(c["times"]),
                seconds(c["seconds"]), "hidden" if c["overlaps"] else "exposed", c["scope"],
            )
            for c in shown
        ]  # fmt: skip
        parts += ["", table("phase,collective,axis,of,size,times,total,schedule,scope".split(","), lines)]
        if rest:
            parts.append(f"and {len(rest)} smaller kinds, together {seconds(sum(c['seconds'] for c in rest))}")
    parts += ["", "Most time goes on: " + "; ".join(
        f"{c['scope'] or 'no scope'}{' (' + c['collective'] + ')' if c['collective'] else ''} {seconds(c['seconds'])}"
        for c in stage["costliest"][:6]
    )]  # fmt: skip
    guessed = [loop for loop in stage["loops"] if loop["source"] != "program"]
    words = {"caller": "", "bound": " (at most)", "unknown": " (unknown, taken once)"}
    lines = [f"{x['scope']} x {count(x['trips'])}{words[x['source']]}" for x in guessed]
    return parts + (["Loops that depend on data: " + ", ".join(lines)] if lines else [])


def _summary(summary: dict, phases: Sequence[dict]) -> list[str]:
    if summary["seconds_per_update"] is None:
        return ["No speeds: a stage does not fit."]
    what = "One update"
    speed = f"{summary['generated_tokens_per_s']:,.0f} generated tokens/s on the whole slice (predicted)."
    if summary["updates_per_hour"] is None:
        what = f"Of one update, stage {', '.join(map(str, summary['of_stages']))}"
    else:
        speed = f"{summary['updates_per_hour']:.1f} updates/hour, {speed}"
    lines = [f"{what}: {seconds(summary['seconds_per_update'])}, {speed}"]
    if "bandwidth_share" in summary:
        share = summary["bandwidth_share"]
        lines.append(f"Decode: {share:.0%} of the HBM roofline (weights and cache, read once a step).")
        lines.append(f"  {_binding(phases, ('decode',))}")
    if "utilisation" in summary:
        share = summary["utilisation"]
        lines.append(f"Update: {share:.0%} of the peak in model FLOPs (the policy's; without recomputation).")
        lines.append(f"  {_binding(phases, ('gradient', 'kernels', 'optimizer'))}")
    return lines


def _binding(phases: Sequence[dict], names: Sequence[str]) -> str:
    """Where the time of some phases goes, and what binds each of them."""
    mine = [p for p in phases if p["phase"] in names]
    return "Of its time: " + "; ".join(
        f"{p['phase']} {seconds(p['predicted_s'])}, {p['binds']} binds (compute {seconds(p['compute_s'])}, HBM "
        f"{seconds(p['hbm_s'])}, interconnect {seconds(p['interconnect_s'])})"
        for p in mine
    )
