#!/usr/bin/env bash
# What the documentation says is there: its links, the files it names, the commands and the keys. And the README
# stays what can be read in a minute. Environment: TDGEN, the program.
set -u
: "${TDGEN:?path of the program}"
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
python3 - "$TDGEN" <<'P'
import glob, os, re, subprocess, sys

tdgen, faults = sys.argv[1], []
pages = sorted(glob.glob("*.md") + glob.glob("docs/*.md") + glob.glob("python/*.md"))
keys = set(re.findall(r"^  ([a-z]+\.[a-z_0-9]+) ", subprocess.run([tdgen, "--keys"], capture_output=True, text=True).stdout, re.M))
help_text = subprocess.run([tdgen, "--help"], capture_output=True, text=True).stdout
commands = set(re.findall(r"^  ([a-z]+) ", help_text, re.M))
assert len(keys) > 40 and "inspect" in commands and "prepare" in commands, (len(keys), commands)


def anchors(path):
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", open(path, encoding="utf-8").read(), re.M)}


for page in pages:
    text = open(page, encoding="utf-8").read()
    here = os.path.dirname(page)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if target.startswith(("http:", "https:")):
            continue
        path = os.path.normpath(os.path.join(here, target)) if target else page
        if not os.path.exists(path):
            faults.append(f"{page}: no {target}")
        elif anchor and anchor not in anchors(path):
            faults.append(f"{page}: {target} has no heading #{anchor}")
    # Files of this repository, wherever they are named.
    for name in re.findall(r"(?<![\w./~-])((?:conf|tools|docs|examples|demo|container|src|test|python)/[\w./-]*\w)", text):
        if "..." not in name and not os.path.exists(name) and not re.search(r"NNN|/DIR|ROOM", name):
            if not glob.glob(name + "*"):
                faults.append(f"{page}: there is no {name}")
    for command in re.findall(r"^ {4}(?:\$ )?tdgen ([a-z]+)(?= |$)", text, re.M):
        if command not in commands:
            faults.append(f"{page}: tdgen has no command {command}")
    sections = {k.split(".")[0] for k in keys}
    for key in re.findall(r"\b([a-z]+\.[a-z_0-9]+)=", text):
        if key.split(".")[0] in sections and key not in keys:
            faults.append(f"{page}: there is no key {key}")
size = os.path.getsize("README.md")
if size > 8192:
    faults.append(f"README.md has {size} bytes: at most 8192, the rest belongs into docs/")
print("\n".join(faults) or f"{len(pages)} pages, {len(keys)} keys, {len(commands)} commands")
sys.exit(bool(faults))
P
