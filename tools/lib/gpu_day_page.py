"""The page of tools/gpu_day: its state for people, one file, no script, nothing from elsewhere."""

import html

STYLE = """:root{color-scheme:light dark}body{margin:0 auto;padding:1.5rem;max-width:64rem;font:16px/1.5 system-ui,
sans-serif}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}dl{display:grid;grid-template-columns:max-content
1fr;gap:.15rem 1rem}dt{opacity:.7}dd{margin:0}table{border-collapse:collapse;font-size:.9rem}th,td{text-align:left;
vertical-align:top;border-bottom:1px solid #8886;padding:.2rem .8rem .2rem 0}pre{overflow-x:auto;font-size:.8rem;
border:1px solid #8886;border-radius:.4rem;padding:.6rem}summary{cursor:pointer}.failed{color:#c33;font-weight:bold}
.passed{color:#2a7a2a}@media(prefers-color-scheme:dark){.failed{color:#f77}.passed{color:#7c7}}"""


def as_text(figures: dict) -> str:
    """Figures as a line."""
    return ", ".join(f"{k.replace('_', ' ')}: {' '.join(v) if isinstance(v, list) else format(v, ',')}"
                     for k, v in figures.items() if v != [])


def row(cells: list[str], tag: str = "td") -> str:
    """A row of a table; the second cell is a status and its own colour."""
    return "<tr>" + "".join(f"<{tag} class='{html.escape(c) if i == 1 else ''}'>{html.escape(c)}</{tag}>"
                            for i, c in enumerate(cells)) + "</tr>\n"


def page(state: dict) -> str:
    """The state as one page: no script, nothing from elsewhere."""
    bundle, machine = state["bundle"], state["machine"]
    facts = {"tdgen": f"{bundle['version']} ({bundle['commit']}), built for {bundle['devices']}",
             "began, updated": f"{state['began']}, {state['updated']}",
             "driver, CUDA, toolkit": ", ".join(machine[k] or "unknown" for k in ("driver", "cuda", "cuda_toolkit")),
             "host": f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"}
    facts["device under test"] = machine["device"] + ("" if machine["gpus"] else "; nvidia-smi names no GPU")
    for i, gpu in enumerate(machine["gpus"]):
        facts[f"GPU {i}"] = ", ".join(v for k, v in gpu.items() if k != "driver_version")
    by_value = sorted(state["parts"].items(), key=lambda kv: -kv[1]["value"])
    out = ["<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
           "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
           f"<title>tdgen GPU day: {state['verdict']}</title><style>{STYLE}</style>\n"
           f"<h1>tdgen GPU day: <span class={state['verdict'].split()[0]}>{state['verdict']}</span></h1>\n<dl>"]
    out += [f"<dt>{html.escape(k)}<dd>{html.escape(v)}\n" for k, v in facts.items()]
    out.append("</dl><h2>Parts</h2><table>" + row(["part", "status", "value", "seconds of", "figures"], "th"))
    out += [row([name, one["status"], str(one["value"]), f"{one['seconds']:.0f} of {one['budget_s']:g}",
                 as_text(one["figures"])]) for name, one in by_value]
    out.append("</table>\n")
    for name, one in by_value:
        out.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(one['about'])}. {html.escape(one.get('note', ''))}\n")
        if one["steps"]:
            out.append("<table>" + row(["step", "status", "seconds", "figures"], "th"))
            out += [row([step, s["status"], f"{s['seconds']:.1f}", as_text(s["figures"])])
                    for step, s in one["steps"].items()]
            out.append("</table>\n")
        for step, s in one["steps"].items():
            is_open = "" if s["status"] in ("passed", "skipped") else " open"
            out.append(f"<details{is_open}><summary>{html.escape(step)}: the end of {html.escape(s['log'])}</summary>"
                       f"<pre>{html.escape(s['tail'])}</pre></details>\n")
    return "".join(out)
